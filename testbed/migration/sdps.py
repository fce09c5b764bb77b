"""Slow down during page send: how much a guest's vCPUs have to sleep so that pre-copy ends.

Why it is as it is: docs/decisions/0016-sdps.md.
"""

from __future__ import annotations

from dataclasses import dataclass

_MS_NS = 1_000_000
_MOST_RELAXED = 2  # times the share that the vCPUs had; a short iteration may show no write at all


@dataclass(frozen=True, slots=True)
class SdpsSpec:
    """When vCPUs are slowed down, and how far.

    `target_percent` is the transmit rate aimed at, in per cent of the dirty rate (SdpsTargetRate,
    facts section 6). `longest_sleep_ns` is the most that a vCPU sleeps for a millisecond that it
    has run; 299 ms leave it a third of a per cent of its time, in which it writes next to nothing.
    """

    target_percent: int = 500
    longest_sleep_ns: int = 299_000_000

    def __post_init__(self) -> None:
        if self.target_percent < 100:
            raise ValueError(f"a target of {self.target_percent} % is less than the dirty rate")
        if self.longest_sleep_ns <= 0:
            raise ValueError("the longest sleep must be above 0")


def slow_down(
    transmit_bytes_per_s: float,
    dirty_bytes_per_s: float,
    sleep_ns_per_ms: int | None,
    spec: SdpsSpec,
    min_progress_percent: int = 130,
) -> int | None:
    """How long the vCPUs are to sleep for each millisecond that they run, after an iteration.

    A vCPU that sleeps s ns for each ms that it has run has the share 1e6 / (1e6 + s) of its time.
    The share is multiplied, again after each iteration, by what the dirty rate is above its target:
    the first share is right for a guest that always writes; one that is paced has slack, and gets
    less until that is used up.

    Args:
        transmit_bytes_per_s: of the iteration.
        dirty_bytes_per_s: distinct pages that the guest wrote meanwhile, sleeping as it did.
        sleep_ns_per_ms: how that was; None: not at all.
        spec: the target and the most.
        min_progress_percent: transmit rate in per cent of the dirty rate; from there on pre-copy
            advances by itself, and a guest that runs free stays so.

    Returns:
        The sleep; `spec.longest_sleep_ns` is all that can be done. None: it is not needed.
    """
    slept_ns = sleep_ns_per_ms or 0
    if not slept_ns and transmit_bytes_per_s * 100 >= min_progress_percent * dirty_bytes_per_s:
        return None
    aimed = transmit_bytes_per_s * 100 / max(spec.target_percent, min_progress_percent)
    if aimed <= 0:
        return spec.longest_sleep_ns
    # 1 / share, in ns of time for a millisecond of running.
    times = max(dirty_bytes_per_s / aimed, 1 / _MOST_RELAXED)
    sleep_ns = round((_MS_NS + slept_ns) * times) - _MS_NS
    return min(sleep_ns, spec.longest_sleep_ns) if sleep_ns > 0 else None
