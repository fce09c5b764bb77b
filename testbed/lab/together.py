"""Several things done at a time, as many as the machine has room for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_T = TypeVar("_T")


async def at_most(width: int, work: Iterable[Callable[[], Awaitable[_T]]]) -> list[_T]:
    """Do all of the work, `width` pieces at a time, begun in order; their results in order.

    Raises:
        BaseException: what the first that failed raised; the rest was cancelled, and has ended.
    """
    waiting = enumerate(work)
    results: dict[int, _T] = {}

    async def one_after_the_other() -> None:
        for number, piece in waiting:
            results[number] = await piece()

    tasks = [asyncio.create_task(one_after_the_other()) for _ in range(width)]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return [results[number] for number in sorted(results)]
