"""Several things at a time: no more than the width, results in order, and an end to the rest."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.lab.together import at_most


@given(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=12))
def test_as_many_at_a_time_and_the_results_in_order(width: int, turns: list[int]) -> None:
    under_way, most = 0, 0

    async def piece(number: int, count: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(count):
            await asyncio.sleep(0)
        under_way -= 1
        return number

    work = [partial(piece, number, 1 + count) for number, count in enumerate(turns)]
    assert asyncio.run(at_most(width, work)) == list(range(len(turns)))
    assert most == min(width, len(turns))


def test_a_failure_ends_what_is_under_way_and_begins_nothing_more() -> None:
    begun, ended = [], []

    async def forever(number: int) -> None:
        begun.append(number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise OSError("no more processes")

    work = [partial(forever, 0), fail, partial(forever, 2), partial(forever, 3)]
    with pytest.raises(OSError, match="no more processes"):
        asyncio.run(at_most(3, work))
    assert sorted(begun) == sorted(ended) == [0, 2]
