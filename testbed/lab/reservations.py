"""NIOC's idle reservations, kept from all others: follows what each class uses of its own."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel.htb_change import RunningShape
from testbed.plan.allocation import lending_rate_bytes_per_s
from testbed.plan.policies import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.plan.plan import Plan
    from testbed.plan.steps import Step

INTERVAL_S = 0.1
_LEAST_CHANGE = 1 / 500  # of the link: less is not worth a message
_ROOT_MINOR = 1


class Reservations:
    """The uplinks whose idle reservations are lent to nobody.

    Every tenth of a second each one's root class is given the rate that leaves the reservations
    which are not in use unused (`lending_rate_bytes_per_s`). A class that wakes up has all of
    its reservation at once, as HTB asks nobody for that.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._followed: dict[str, _Followed] = {}
        self._task: asyncio.Task[None] | None = None

    def follow(self, plan: Plan) -> None:
        """Follow the uplinks of this plan from now on.

        Raises:
            KernelError: one is not there.
        """
        wanted = {
            step.key: step for step in plan.steps if isinstance(step, Shape) and not step.lends_idle
        }
        for key in [*self._followed]:
            if self._followed[key].step != wanted.get(key):
                self._followed.pop(key).running.release()
        for key, step in wanted.items():
            if key not in self._followed:
                self._followed[key] = _Followed(step, RunningShape(step))
        if self._followed and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def leave(self, steps: Iterable[Step]) -> None:
        """Follow these no more, as they are about to change; their roots stay as they are."""
        for step in steps:
            followed = self._followed.pop(step.key, None)
            if followed is not None:
                followed.running.release()

    def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
        for followed in self._followed.values():
            followed.running.release()
        self._followed.clear()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            troubles = []
            for followed in self._followed.values():
                try:
                    followed.adjust(time.monotonic_ns())
                except KernelError as error:
                    troubles.append(f"idle reservations are lent meanwhile: {error}")
            self.trouble = "; ".join(troubles) or None


@dataclass(slots=True)
class _Followed:
    step: Shape
    running: RunningShape
    sent_bytes: dict[int, int] = field(default_factory=dict)
    at_ns: int = 0
    rate: int = 0

    def adjust(self, now_ns: int) -> None:
        """Give the root what it may have, by what has been sent since the last time."""
        facts = self.running.read()
        classes = [one for one in self.step.classes if one.major == 1]
        if any(one.minor not in facts for one in classes):
            target = f"{self.step.dev} in {self.step.netns}"
            raise KernelError("read the classes of", target, "some are gone")
        sent = {one.minor: facts[one.minor].sent_bytes for one in classes}
        before, elapsed_ns = self.sent_bytes, now_ns - self.at_ns
        self.sent_bytes, self.at_ns = sent, now_ns
        if not before:
            return
        link = self.step.htb_rate_bytes_per_s
        rate = lending_rate_bytes_per_s(
            link,
            [one.rate_bytes_per_s for one in classes],
            [(sent[one.minor] - before[one.minor]) * 1e9 / elapsed_ns for one in classes],
        )
        if abs(rate - self.rate) > link * _LEAST_CHANGE:
            self.running.set_rate(_ROOT_MINOR, rate, rate)
            self.rate = rate
