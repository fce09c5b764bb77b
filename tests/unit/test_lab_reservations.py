"""Who follows idle reservations: what it says when an uplink is gone, and when it lets go."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from testbed.errors import KernelError
from testbed.lab import reservations
from testbed.plan.plan import Plan
from testbed.plan.policies import Shape, TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

LINK = 100_000_000
CLASS = TrafficClass(0x13, "vmotion", LINK // 4, LINK, 65536, 65536)


class Root:
    """Stands for the kernel's HTB of one uplink, whose class is idle."""

    def __init__(self, step: Shape) -> None:
        self.step = step
        self.facts: dict[int, Any] = {0x13: SimpleNamespace(sent_bytes=0)}
        self.rates: list[int] = []
        self.gone = False

    def read(self) -> dict[int, Any]:
        if self.gone:
            raise KernelError("read the classes of", self.step.dev, "no such device")
        return self.facts

    def set_rate(self, _: int, rate: int, __: int) -> None:
        self.rates.append(rate)

    def release(self) -> None:
        pass


def shape(dev: str) -> Shape:
    return Shape(
        "ns", dev, 8 * LINK, 1500, LINK, 65536, "wire", classes=(CLASS,), default=0x13,
        lends_idle=False,
    )  # fmt: skip


def followed(
    monkeypatch: pytest.MonkeyPatch,
    judge: Callable[[reservations.Reservations, dict[str, Root]], Any],
) -> None:
    """Two uplinks, followed every millisecond; `judge` is a coroutine."""
    roots: dict[str, Root] = {}

    def running(step: Shape) -> Root:
        roots[step.dev] = Root(step)
        return roots[step.dev]

    async def follow() -> None:
        found = reservations.Reservations()
        found.follow(Plan("lab", (shape("vmnic0"), shape("vmnic1"))))
        try:
            await judge(found, roots)
        finally:
            found.close()

    monkeypatch.setattr(reservations, "RunningShape", running)
    monkeypatch.setattr(reservations, "INTERVAL_S", 0.001)
    asyncio.run(follow())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_an_idle_reservation_is_taken_off_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    async def judge(_: reservations.Reservations, roots: dict[str, Root]) -> None:
        await until(lambda: all(root.rates for root in roots.values()))
        assert roots["vmnic0"].rates == [LINK - LINK // 4]

    followed(monkeypatch, judge)


def test_one_uplink_in_trouble_is_told_though_another_is_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def judge(found: reservations.Reservations, roots: dict[str, Root]) -> None:
        roots["vmnic0"].gone = True
        await until(lambda: bool(found.trouble))
        await until(lambda: bool(roots["vmnic1"].rates))
        assert "vmnic0" in (found.trouble or "")
        roots["vmnic0"].gone = False
        await until(lambda: found.trouble is None)
        # A class that has gone ends neither.
        roots["vmnic0"].facts.clear()
        await until(lambda: "some are gone" in (found.trouble or ""))
        roots["vmnic0"].facts[0x13] = SimpleNamespace(sent_bytes=0)
        await until(lambda: found.trouble is None)

    followed(monkeypatch, judge)


def test_what_is_about_to_change_is_touched_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def judge(found: reservations.Reservations, roots: dict[str, Root]) -> None:
        await until(lambda: bool(roots["vmnic0"].rates))
        found.leave([shape("vmnic0")])
        roots["vmnic0"].rates.clear()
        before = roots["vmnic1"]
        before.facts[0x13] = SimpleNamespace(sent_bytes=10**12)
        roots["vmnic0"].facts[0x13] = SimpleNamespace(sent_bytes=10**12)
        count = len(before.rates)
        await until(lambda: len(before.rates) > count)
        assert not roots["vmnic0"].rates

    followed(monkeypatch, judge)
