"""The phases of a migration, which may follow which, and how a failure names its phase."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from testbed.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.report.result import EngineReport


class Phase(Enum):
    """Where a migration is (vmotion-facts.md, row 42)."""

    CONNECT = "connect"  # sockets are opened, each end proves who it is
    PREPARE = "prepare"  # the destination has memory for the guest, and a masked VM
    TRACE = "trace"  # dirty tracking is installed
    PRECOPY = "pre-copy"  # memory is copied while the guest runs
    SWITCHOVER = "switchover"  # the guest is stunned, the last pages are sent
    RESUME = "resume"  # the destination has been told to run the guest
    PAGE_IN = "page-in"  # it runs there, and the pages that it lacks are sent
    COMPLETED = "completed"
    FAILED = "failed"


_NEXT = {
    Phase.CONNECT: {Phase.PREPARE, Phase.FAILED},
    Phase.PREPARE: {Phase.TRACE, Phase.FAILED},
    Phase.TRACE: {Phase.PRECOPY, Phase.FAILED},
    Phase.PRECOPY: {Phase.SWITCHOVER, Phase.FAILED},
    Phase.SWITCHOVER: {Phase.RESUME, Phase.FAILED},
    # No way to FAILED: who owns the guest now is for the lab to find out (MigrationUncertain).
    Phase.RESUME: {Phase.PAGE_IN, Phase.COMPLETED},
    Phase.PAGE_IN: {Phase.COMPLETED},
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


class MigrationLost(MigrationFailed):
    """The guest ran at the destination without all of its pages, and can't get them any more.

    Nor may it go on at its source, where it would be as it was before: it has failed, and both ends
    have to be powered off.
    """


def failure(phase: Phase, vm: str, cause: str, dead_vcpus: Sequence[int]) -> MigrationFailed:
    """What a migration that failed in this phase raises at its source."""
    if phase is Phase.PAGE_IN:
        return MigrationLost(phase, cause, f"power {vm} off at both hosts, then on")
    if dead_vcpus:
        cause = f"vCPU {', '.join(map(str, dead_vcpus))} has died ({cause})"
    if phase is Phase.RESUME:
        return MigrationUncertain(
            phase,
            f"the destination was told to run {vm} and did not answer ({cause})",
            "find out whether it runs there before it is resumed here",
        )
    remedy = f"{vm} has failed" if dead_vcpus else f"{vm} runs on at its source"
    return MigrationFailed(phase, cause, remedy)
