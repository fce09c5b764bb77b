"""When the frames of one direction of a wire are due, and how far ahead to wake for it."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.plan.policies import Delay


class Schedule:
    """The frames on their way in one direction, in order: none overtakes another.

    The jitter of a frame is uniform in plus or minus `jitter_ns`. A frame that would be due
    before its predecessor waits for it, as on a real path and in netem with a rate: a dense
    flow is delayed by nearly `delay_ns + jitter_ns`, frames further apart than twice the jitter
    by `delay_ns` in the mean.

    Args:
        delay: the one-way delay; it may be replaced at any time, for the frames that follow.
        seed: of the jitter.
    """

    def __init__(self, delay: Delay, seed: int) -> None:
        self.delay = delay
        self._random = random.Random(seed)
        self._last_due_ns = 0
        self._waiting: deque[tuple[int, int]] = deque()

    def add(self, arrived_ns: int, packet_id: int) -> int:
        """Take a frame in; when it is due."""
        delay_ns, jitter_ns = self.delay.delay_ns, self.delay.jitter_ns
        if jitter_ns:
            delay_ns += round(self._random.uniform(-jitter_ns, jitter_ns))
        due_ns = max(arrived_ns + max(delay_ns, 0), self._last_due_ns)
        self._last_due_ns = due_ns
        self._waiting.append((due_ns, packet_id))
        return due_ns

    @property
    def least_delay_ns(self) -> int:
        """What every frame takes at least."""
        return max(self.delay.delay_ns - self.delay.jitter_ns, 0)

    @property
    def next_due_ns(self) -> int | None:
        """When the first frame is due; None if none is on its way."""
        return self._waiting[0][0] if self._waiting else None

    def release(self, until_ns: int) -> tuple[int, list[int]]:
        """Take out what is due until then: the last frame's number, and when each was due."""
        waiting, dues, last = self._waiting, [], 0
        while waiting and waiting[0][0] <= until_ns:
            due_ns, last = waiting.popleft()
            dues.append(due_ns)
        return last, dues

    def __len__(self) -> int:
        return len(self._waiting)


class Lead:
    """How long before a frame is due to be woken, so that half are let go early and half late.

    Each wake-up moves it by one step, up after a late one and down after an early one: that
    finds the median of what the machine needs, and one long stall doesn't spoil it.
    """

    STEP_NS = 1_000
    MOST_NS = 200_000

    def __init__(self, start_ns: int = 50_000) -> None:
        self.lead_ns = start_ns

    def learn(self, late_ns: int) -> None:
        """Take in by how much a frame left late (early: negative)."""
        step_ns = self.STEP_NS if late_ns > 0 else -self.STEP_NS
        self.lead_ns = min(max(self.lead_ns + step_ns, 0), self.MOST_NS)
