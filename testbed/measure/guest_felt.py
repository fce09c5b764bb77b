"""What a guest felt while something was done to it: rates, dips, halts, latencies, time lost.

Times count from an instant that whoever judged (testbed/measure/guest_judge.py) has chosen.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkloadFelt:
    """What happened to one workload within the window.

    `usual_per_s` is its median rate before, or of the whole time where nothing was sampled
    `before`; `lowest_per_s` the lowest in any whole `lowest_over_ns`, from `lowest_at_ns` on.
    `halt_ns` is the longest time without an operation, which began at `halt_at_ns`, to within one
    operation around a stop, else to the sampling interval; `usual_halt_ns` the longest before.
    None for a workload that is not always at work, or a window too short.
    Latencies are None where no operation was timed; the 99th percentile is within its power of two.
    """

    name: str
    operation: str
    operations: int
    bytes: int
    usual_per_s: float | None
    before: bool
    lowest_per_s: float | None
    lowest_over_ns: int | None
    lowest_at_ns: int | None
    halt_ns: int | None
    halt_at_ns: int | None
    usual_halt_ns: int | None
    latency_mean_ns: float | None
    latency_p99_ns: float | None
    usual_latency_p99_ns: float | None

    @property
    def dip(self) -> float | None:
        """By what share of the usual rate it fell: 0 not at all, 1 to nothing."""
        if not self.usual_per_s or self.lowest_per_s is None:
            return None
        return max(0.0, 1 - self.lowest_per_s / self.usual_per_s)


@dataclass(frozen=True, slots=True)
class VcpuFelt:
    """How a vCPU spent the window, and its longest time without a heartbeat, to an interval.

    A stop in its midst is told whole and exactly.
    """

    vcpu: int
    run_ns: int
    idle_ns: int
    throttled_ns: int
    stopped_ns: int
    longest_gap_ns: int
    longest_gap_at_ns: int


@dataclass(frozen=True, slots=True)
class GuestFelt:
    """What a guest felt from `from_ns` until `until_ns`.

    `samples` were read, `interval_ns` apart as asked, `longest_interval_ns` at worst.
    """

    interval_ns: int
    samples: int
    longest_interval_ns: int
    from_ns: int
    until_ns: int
    workloads: tuple[WorkloadFelt, ...]
    vcpus: tuple[VcpuFelt, ...]
