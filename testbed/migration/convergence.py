"""When to stop copying and stun the guest: functions of numbers, asked after each iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from testbed.guest.memory import PAGE_BYTES
from testbed.units import format_byte_rate, format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.migration.specification import MigrationSpec
    from testbed.report.result import Iteration

# A shorter iteration tells how long a round trip takes, not how fast the path is.
_RATE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Decision:
    """What comes next, and for a failure why and what to do.

    `resume early` is a switchover, too, after which the pages left are sent (Quick Resume).
    """

    next: Literal["copy", "switch over", "resume early", "fail"]
    cause: str = ""
    remedy: str = ""


def transmit_rate_bps(iterations: Sequence[Iteration]) -> float:
    """The rate of the latest iteration that sent enough to show it.

    If none did, as of a VM that is nearly all zero, that at which the first got through its pages.
    """
    for iteration in reversed(iterations):
        if iteration.memory_bytes >= _RATE_BYTES:
            return iteration.throughput_bps
    first = iterations[0]
    return first.pages * PAGE_BYTES * 8e9 / first.duration_ns if first.duration_ns else 0.0


def _will_show_more(first: Iteration) -> bool:
    """Whether the path's rate is not known yet, as all was zero, but will be from the rest."""
    return first.memory_bytes < _RATE_BYTES <= first.dirty_pages * PAGE_BYTES


def copy_ns(iterations: Sequence[Iteration], pages: int) -> int:
    """How long so many pages take at the transmit rate."""
    return round(pages * PAGE_BYTES * 8e9 / max(transmit_rate_bps(iterations), 1))


def stun_ns(iterations: Sequence[Iteration], pages: int, spec: MigrationSpec) -> int:
    """How long a stun with so many pages left is estimated to be: for what goes over the path.

    A full bitmap is a bit for each page of the VM (facts row 39). Pages that come after resume
    take no part in it.
    """
    if spec.remaining_pages == "after resume" and spec.may_resume_early:
        pages = 0
    bitmap_bytes = iterations[0].pages // 8 if spec.bitmap == "full" else 0
    return copy_ns(iterations, pages + bitmap_bytes // PAGE_BYTES)


def decide(
    iterations: Sequence[Iteration], spec: MigrationSpec, sleep_ns_per_ms: int | None = None
) -> Decision:
    """Switch over if the rest can be sent within the goal at the measured transmit rate.

    And if the stun is not estimated to be longer than its limit. Otherwise copy on, unless two
    iterations in a row (one may have met a busy machine) were not faster than the guest by the
    least progress, with vCPUs that SDPS can't slow down further, or there have been too many.

    Args:
        iterations: until now.
        spec: goal, limits, and what is done without convergence.
        sleep_ns_per_ms: what SDPS has the vCPUs sleep; None: nothing.
    """
    rate_bps = transmit_rate_bps(iterations)
    last = iterations[-1]
    rest_ns = copy_ns(iterations, last.dirty_pages)
    if len(iterations) == 1 < spec.max_iterations and _will_show_more(last):
        return Decision("copy")
    if rest_ns <= spec.switchover_goal_ns and not over_limit(iterations, last.dirty_pages, spec):
        return Decision("switch over")
    least = spec.min_progress_percent / 100
    slow = [it.throughput_bps < least * it.dirty_rate_bytes_per_s * 8 for it in iterations[-2:]]
    more_sdps = spec.sdps is not None and (sleep_ns_per_ms or 0) < spec.sdps.longest_sleep_ns
    if len(iterations) < spec.max_iterations and (more_sdps or slow != [True, True]):
        return Decision("copy")
    if spec.quick_resume and spec.may_resume_early:
        return Decision("resume early")
    goal = f"the switchover goal of {format_duration(spec.switchover_goal_ns)}"
    if over := over_limit(iterations, last.dirty_pages, spec):
        goal = f"{goal}, or {over}"
    return Decision(
        "fail",
        f"pre-copy does not converge: after {len(iterations)} iterations the guest dirties "
        f"{format_byte_rate(last.dirty_rate_bytes_per_s)} of distinct pages while "
        f"{format_byte_rate(rate_bps / 8)} are transmitted ({spec.min_progress_percent} % of the "
        f"dirty rate are asked for), and the {last.dirty_pages} pages left would take "
        f"{format_duration(rest_ns)}, more than {goal}",
        "lower the VM's dirty rate, give the path more bandwidth, raise the switchover goal, or"
        f" turn {'SDPS or ' if spec.sdps is None else ''}Quick Resume on",
    )


def over_limit(iterations: Sequence[Iteration], pages: int, spec: MigrationSpec) -> str:
    """By what a stun with so many pages left would be too long; empty: it would not."""
    estimated_ns = stun_ns(iterations, pages, spec)
    if spec.downtime_limit_ns is None or estimated_ns <= spec.downtime_limit_ns:
        return ""
    return (
        f"a stun of {format_duration(estimated_ns)}, more than the downtime limit of "
        f"{format_duration(spec.downtime_limit_ns)}"
    )


def overdue(elapsed_ns: int, spec: MigrationSpec) -> str:
    """Why a migration that has taken so long has to end; empty: it may go on."""
    if spec.deadline_ns is None or elapsed_ns <= spec.deadline_ns:
        return ""
    return f"it has taken longer than its deadline of {format_duration(spec.deadline_ns)}"
