"""When to stop copying and stun the guest: a function of numbers, asked after each iteration."""

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
    """What comes next, and for a failure why and what to do."""

    next: Literal["copy", "switch over", "fail"]
    cause: str = ""
    remedy: str = ""


def transmit_rate_bps(iterations: Sequence[Iteration]) -> float:
    """The rate of the latest iteration that was long enough to show it; the first always is."""
    for iteration in reversed(iterations):
        if iteration.memory_bytes >= _RATE_BYTES:
            return iteration.throughput_bps
    return iterations[0].throughput_bps


def copy_ns(iterations: Sequence[Iteration], pages: int) -> int:
    """How long so many pages take at the transmit rate."""
    return round(pages * PAGE_BYTES * 8e9 / max(transmit_rate_bps(iterations), 1))


def decide(iterations: Sequence[Iteration], spec: MigrationSpec) -> Decision:
    """Switch over if the rest can be sent within the goal at the measured transmit rate.

    Otherwise copy on, unless two iterations in a row (one may have met a busy machine) were
    not faster than the guest by the least progress, or there have been too many.
    """
    rate_bps = transmit_rate_bps(iterations)
    last = iterations[-1]
    rest_ns = copy_ns(iterations, last.dirty_pages)
    if rest_ns <= spec.switchover_goal_ns:
        return Decision("switch over")
    least = spec.min_progress_percent / 100
    slow = [it.throughput_bps < least * it.dirty_rate_bytes_per_s * 8 for it in iterations[-2:]]
    if slow != [True, True] and len(iterations) < spec.max_iterations:
        return Decision("copy")
    return Decision(
        "fail",
        f"pre-copy does not converge: after {len(iterations)} iterations the guest dirties "
        f"{format_byte_rate(last.dirty_rate_bytes_per_s)} of distinct pages while "
        f"{format_byte_rate(rate_bps / 8)} are transmitted ({spec.min_progress_percent} % of the "
        f"dirty rate are asked for), and the {last.dirty_pages} pages left would take "
        f"{format_duration(rest_ns)}, more than the switchover goal of "
        f"{format_duration(spec.switchover_goal_ns)}",
        "lower the VM's dirty rate, give the path more bandwidth, or raise the switchover goal",
    )
