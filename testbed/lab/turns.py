"""Who may change a lab when: one change alone, or migrations beside one another."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turns:
    """First come, first served: a change that waits for migrations holds back those after it."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()  # a fair one: it is given in the order in which it was asked
        self._beside = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def must_wait(self, *, alone: bool) -> bool:
        """Whether one who comes now has to wait."""
        return self._turn.locked() or (alone and not self._idle.is_set())

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nothing else changes the lab meanwhile."""
        async with self._turn:
            await self._idle.wait()
            yield

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Others may do the same meanwhile, and nobody changes the lab alone."""
        async with self._turn:
            self._beside += 1
            self._idle.clear()
        try:
            yield
        finally:
            self._beside -= 1
            if not self._beside:
                self._idle.set()
