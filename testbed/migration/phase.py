"""The phases of a migration, which may follow which, and how a failure names its phase."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from testbed.errors import MigrationError

if TYPE_CHECKING:
    from testbed.report.result import EngineReport


class Phase(Enum):
    """Where a migration is (vmotion-facts.md, row 42)."""

    CONNECT = "connect"  # sockets are opened, each end proves who it is
    PREPARE = "prepare"  # the destination has memory for the guest, and a masked VM
    TRACE = "trace"  # dirty tracking is installed
    PRECOPY = "pre-copy"  # memory is copied while the guest runs
    SWITCHOVER = "switchover"  # the guest is stunned, the last pages are sent
    RESUME = "resume"  # the destination has been told to run the guest
    COMPLETED = "completed"
    FAILED = "failed"


_NEXT = {
    Phase.CONNECT: {Phase.PREPARE, Phase.FAILED},
    Phase.PREPARE: {Phase.TRACE, Phase.FAILED},
    Phase.TRACE: {Phase.PRECOPY, Phase.FAILED},
    Phase.PRECOPY: {Phase.SWITCHOVER, Phase.FAILED},
    Phase.SWITCHOVER: {Phase.RESUME, Phase.FAILED},
    # No way to FAILED: who owns the guest now is for the lab to find out (MigrationUncertain).
    Phase.RESUME: {Phase.COMPLETED},
    Phase.COMPLETED: set(),
    Phase.FAILED: set(),
}


def enter(now: Phase, following: Phase) -> Phase:
    """The phase that follows.

    Raises:
        ValueError: it may not follow.
    """
    if following not in _NEXT[now]:
        raise ValueError(f"{following.name} cannot follow {now.name}")
    return following


class MigrationFailed(MigrationError):  # noqa: N818 - a migration fails, it is not in error
    """A migration failed, and the guest runs on at its source.

    `measured` is what the source had measured until then, if it had begun.
    """

    def __init__(self, phase: Phase, cause: str, remedy: str = "") -> None:
        self.phase, self.cause, self.remedy = phase, cause, remedy
        self.measured: EngineReport | None = None
        super().__init__(
            f"migration failed in phase {phase.value}: {cause}" + (f"; {remedy}" if remedy else "")
        )


class MigrationUncertain(MigrationFailed):
    """The destination was told to run the guest and did not answer: it may be running there.

    The source's guest stays suspended. Whoever can ask the destination, or end it, decides:
    `source.take_back` if the guest does not run there and never will, else power it off here.
    """
