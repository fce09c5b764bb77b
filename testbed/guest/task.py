"""What a workload is to the vCPU that runs it: steps between which it may be stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.guest.specification import GuestSpec

NEVER_NS = float("inf")
LONGEST_STEP_NS = 200_000
"""A step is to take no longer, so that a vCPU can be stopped that soon."""


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a task is given, on one vCPU.

    `record` are the 32 words of its state in guest memory (`layout.TASK`): what must survive a
    move is there, or in its pages. `first_page` and `page_count` are this vCPU's part of the
    pages that the workload has for itself. `mark` notes pages as written, after they were: every
    write of a task passes it. `kick` wakes the VM's NIC process. `wake_fd` is the eventfd on which
    the vCPU sleeps: whatever adds to it is an interrupt, after which tasks are asked whether
    something is pending; -1: it has none.
    """

    spec: GuestSpec
    number: int
    vcpu: int
    memory: Memory
    record: memoryview
    first_page: int
    page_count: int
    key: int
    mark: Callable[[NDArray[np.int64]], None]
    kick: Callable[[], None]
    wake_fd: int = -1


class Task(Protocol):
    """One workload on one vCPU."""

    def start(self, now_ns: int) -> float:
        """The vCPU runs from now on: first, again, or at another host; goes on from the record.

        Returns:
            When the first step is due (CLOCK_MONOTONIC); `NEVER_NS`: only when `pending`.
        """

    def pending(self) -> bool:
        """Whether something waits that is to be done at once, whatever is due."""

    def step(self, now_ns: int) -> float:
        """Do a little.

        Returns:
            When the next step is due; in the past: at once.
        """

    def drain(self) -> None:
        """Let nothing be under way any more: the vCPU is about to stop."""
