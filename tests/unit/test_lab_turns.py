"""Whose turn it is: changes alone, migrations beside one another, and the queue of migrations."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from testbed.lab.migration_queue import MigrationQueue
from testbed.lab.turns import Turns
from testbed.migration.concurrency import Move


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_migrations_go_side_by_side_and_a_change_waits_for_them() -> None:
    async def main() -> list[str]:
        turns, said = Turns(), []

        async def change(name: str) -> None:
            async with turns.alone():
                said.append(name)

        async def move(name: str) -> None:
            async with turns.beside():
                said.append(name)

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(turns.beside())
            assert not turns.must_wait(alone=False)
            assert turns.must_wait(alone=True)
            await stack.enter_async_context(turns.beside())
            tasks = [asyncio.create_task(change("apply"))]
            await _settle()
            # One that comes after a change which waits must not overtake it, or it waits for ever.
            assert turns.must_wait(alone=False)
            tasks.append(asyncio.create_task(move("late")))
            await _settle()
            assert said == []
        await asyncio.gather(*tasks)
        assert not turns.must_wait(alone=True)
        return said

    assert asyncio.run(main()) == ["apply", "late"]


def test_a_change_that_is_cancelled_while_it_waits_holds_nobody_back() -> None:
    async def main() -> None:
        turns = Turns()

        async def change() -> None:
            async with turns.alone():
                raise AssertionError

        async with turns.beside():
            task = asyncio.create_task(change())
            await _settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not turns.must_wait(alone=False)

    asyncio.run(main())


def move(vm: str, to: str = "esx02") -> Move:
    return Move(vm, "esx01" if to == "esx02" else "esx04", to)


def two_each() -> dict[str, int]:
    return {"esx01": 2, "esx02": 2, "esx03": 2}


def test_the_queue_lets_in_by_order_and_whoever_has_room() -> None:
    async def main() -> list[str]:
        queue = MigrationQueue(two_each)
        said: list[str] = []
        gone = asyncio.Event()
        leave = {name: asyncio.Event() for name in "abcdx"}

        async def one(name: str, to: str) -> None:
            def wait(cause: str) -> None:
                assert "esx01 has 2 migrations" in cause
                said.append(f"{name} waits")

            async with queue.admitted(move(name, to), None, wait, gone) as inside:
                assert inside
                said.append(name)
                await leave[name].wait()

        tasks = [asyncio.create_task(one(name, "esx02")) for name in "abcd"]
        tasks.append(asyncio.create_task(one("x", "esx03")))
        await _settle()
        assert said == ["a", "b", "c waits", "d waits", "x"]  # x is not held back by c
        leave["b"].set()
        await _settle()
        assert said[5:] == ["c"]
        for event in leave.values():
            event.set()
        await asyncio.gather(*tasks)
        return said

    assert asyncio.run(main())[-1] == "d"


def test_a_profile_asked_for_has_its_own_limit() -> None:
    async def main() -> list[str]:
        queue = MigrationQueue(two_each)
        said: list[str] = []

        async def one(name: str, limits: dict[str, int] | None) -> None:
            def wait(cause: str) -> None:
                said.append(f"{name} waits")

            gone = asyncio.Event()
            async with queue.admitted(move(name), None, wait, gone, limits):
                said.append(name)
                await _settle()

        async def both(limit: int, *names: str) -> None:
            limits = {"esx01": limit, "esx02": limit}
            await asyncio.gather(*(one(name, limits) for name in names))

        await both(1, "a", "b")
        await both(3, "c", "d", "e")
        return said

    assert asyncio.run(main()) == ["a", "b waits", "b", "c", "d", "e"]


def test_whoever_leaves_the_queue_leaves_no_gap() -> None:
    async def main() -> list[bool]:
        queue = MigrationQueue(two_each)
        found = []

        async def one(gone: asyncio.Event) -> None:
            async with queue.admitted(move("c"), None, lambda _: None, gone) as inside:
                found.append(inside)

        gone, never = asyncio.Event(), asyncio.Event()
        async with AsyncExitStack() as stack:
            for name in "ab":
                entered = queue.admitted(move(name), None, lambda _: None, never)
                assert await stack.enter_async_context(entered)
            waiting = asyncio.create_task(one(gone))
            killed = asyncio.create_task(one(never))
            await _settle()
            gone.set()
            await waiting
            killed.cancel()
            await asyncio.gather(killed, return_exceptions=True)
            assert found == [False]
        await one(never)
        return found

    assert asyncio.run(main()) == [False, True]
