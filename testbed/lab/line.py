"""Those who wait in line for something that only some may have at a time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

T = TypeVar("T")


class WaitingLine(Generic[T]):
    """Admits in the order of arrival; one who can't be yet holds back nobody who can.

    Args:
        fits: whether one more may come in beside those who are.
    """

    def __init__(self, fits: Callable[[Sequence[T], T], bool]) -> None:
        self._fits = fits
        self._inside: list[T] = []
        self._waiting: list[tuple[T, asyncio.Event]] = []

    @asynccontextmanager
    async def admitted(
        self, one: T, wait: Callable[[int], None], gone: asyncio.Event
    ) -> AsyncIterator[bool]:
        """Come in, in turn.

        Args:
            one: who.
            wait: called with how many are ahead, if there is no room at once.
            gone: set when whoever waits is to wait no more.

        Yields:
            Whether it has come in; False if it waits no more.
        """
        entry = (one, asyncio.Event())
        self._waiting.append(entry)
        try:
            self._let_in()
            if not entry[1].is_set():
                wait(len(self._waiting) - 1)
                await _first_of(entry[1], gone)
            yield entry[1].is_set()
        finally:
            (self._inside.remove(one) if entry[1].is_set() else self._waiting.remove(entry))
            self._let_in()

    def _let_in(self) -> None:
        for entry in [*self._waiting]:
            one, admitted = entry
            if self._fits(self._inside, one):
                self._waiting.remove(entry)
                self._inside.append(one)
                admitted.set()


async def _first_of(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
