"""Judges what a guest felt, from samples of its own counters: nothing outside it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.measure.guest_felt import GuestFelt, VcpuFelt, WorkloadFelt
from testbed.measure.guest_samples import counted, quantile_ns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.measure.guest_samples import GuestSamples, VcpuSamples, WorkloadSamples

LEAST_BEFORE = 10
"""Samples before the window from which a usual rate is taken; with fewer, from the window too."""
OPERATIONS_A_DIP = 20
"""A dip is judged over intervals that usually have so many: fewer vary by themselves."""
LONGEST_DIP_NS = 1_000_000_000


def judge(samples: GuestSamples, from_ns: int, until_ns: int) -> GuestFelt:
    """What the guest felt within a window; what was sampled before it is taken for usual.

    The window's ends are the samples nearest outside it.

    Raises:
        ValueError: fewer than two samples, or an empty window.
    """
    if len(samples) < 2 or from_ns >= until_ns:
        raise ValueError(f"{len(samples)} samples from {from_ns} until {until_ns} ns tell nothing")
    at = samples.at_ns
    last = min(int(np.searchsorted(at, until_ns, "left")), len(at) - 1)
    first = min(max(int(np.searchsorted(at, from_ns, "right")) - 1, 0), last - 1)
    return GuestFelt(
        interval_ns=samples.interval_ns,
        samples=len(samples),
        longest_interval_ns=int(np.diff(at).max()),
        from_ns=int(at[first]),
        until_ns=int(at[last]),
        workloads=tuple(_workload(samples, one, first, last) for one in samples.workloads),
        vcpus=_vcpus(samples, first, last),
    )


def _workload(samples: GuestSamples, one: WorkloadSamples, first: int, last: int) -> WorkloadFelt:
    at, done = samples.at_ns, counted(one.operations)
    before = first >= LEAST_BEFORE
    usual = _usual(at, done, samples.interval_ns, 0, first if before else last)
    lowest = _lowest(samples, done, usual, first, last)
    halt = usual_halt = None
    if one.steady:
        halt = _longest_halt(samples, one, first, last)
        usual_halt = _longest_halt(samples, one, 0, first) if before else None
    histogram = counted(one.latency)
    timed = int(histogram[last].sum() - histogram[first].sum())
    spent = counted(one.latency_sum_ns)
    return WorkloadFelt(
        name=one.name,
        operation=one.operation,
        operations=int(done[last] - done[first]),
        bytes=int(np.diff(counted(one.bytes)[[first, last]])[0]),
        usual_per_s=usual,
        before=before,
        lowest_per_s=lowest[0] if lowest else None,
        lowest_over_ns=lowest[1] if lowest else None,
        lowest_at_ns=lowest[2] if lowest else None,
        halt_ns=halt[0] if halt else None,
        halt_at_ns=halt[1] if halt else None,
        usual_halt_ns=usual_halt[0] if usual_halt else None,
        latency_mean_ns=float((spent[last] - spent[first]) / timed) if timed else None,
        latency_p99_ns=_p99(histogram[last] - histogram[first]),
        usual_latency_p99_ns=_p99(histogram[first] - histogram[0]) if before else None,
    )


def _least_span_ns(usual_per_s: float, interval_ns: int) -> int:
    """Over which time a rate is judged: whole intervals, less what samples are out of time."""
    wanted_ns = min(OPERATIONS_A_DIP * 1e9 / usual_per_s, LONGEST_DIP_NS)
    return max(1, round(wanted_ns / interval_ns)) * interval_ns - interval_ns // 10


def _rates(
    at: NDArray[np.int64], done: NDArray[np.int64], least_ns: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The rate, per second, from each sample to the first that is so much later, and that sample.

    Next to a late sample are short intervals: a rate over one would say little.
    """
    ends = np.searchsorted(at, at + least_ns)
    ends = ends[ends < len(at)]
    begins = np.arange(len(ends))
    return (done[ends] - done[begins]) * 1e9 / (at[ends] - at[begins]), ends


def _usual(
    at: NDArray[np.int64], done: NDArray[np.int64], interval_ns: int, first: int, last: int
) -> float | None:
    mean = float(done[last] - done[first]) * 1e9 / float(at[last] - at[first])
    if mean <= 0:
        return None
    rates, _ = _rates(
        at[first : last + 1], done[first : last + 1], _least_span_ns(mean, interval_ns)
    )
    return float(np.median(rates)) if len(rates) else mean


def _lowest(
    samples: GuestSamples, done: NDArray[np.int64], usual: float | None, first: int, last: int
) -> tuple[float, int, int] | None:
    """The lowest rate in the window, over which time, and from when on."""
    if not usual:
        return None
    at = samples.at_ns[first : last + 1]
    rates, ends = _rates(at, done[first : last + 1], _least_span_ns(usual, samples.interval_ns))
    if not len(rates):
        return None
    least = int(np.argmin(rates))
    return float(rates[least]), int(at[ends[least]] - at[least]), int(at[least])


def _longest_halt(
    samples: GuestSamples, one: WorkloadSamples, first: int, last: int
) -> tuple[int, int] | None:
    """The longest time without an operation that the samples prove, and its begin.

    At each sample there was none since the last; and none before the vCPUs were resumed, if they
    all were since the sample before.
    """
    at, since = samples.at_ns[first : last + 1], one.last_at_ns[first : last + 1]
    begun = one.operations[first : last + 1] > 0
    resumed_at = samples.vcpus.resumed_at_ns[first : last + 1]
    resumed = (np.diff(resumed_at, axis=0) != 0).all(axis=1) & begun[:-1]
    ends = np.concatenate([at[begun], resumed_at[1:].min(axis=1)[resumed]])
    begins = np.concatenate([since[begun], since[:-1][resumed]])
    if not len(ends):
        return None
    longest = int(np.argmax(ends - begins))
    return max(0, int(ends[longest] - begins[longest])), int(begins[longest])


def _p99(histogram: NDArray[np.int64]) -> float | None:
    return float(quantile_ns(histogram, 0.99)) if histogram.sum() > 0 else None


def _vcpus(samples: GuestSamples, first: int, last: int) -> tuple[VcpuFelt, ...]:
    vcpus = samples.vcpus
    spent = {
        name: np.diff(counted(getattr(vcpus, name))[[first, last]], axis=0)[0]
        for name in ("run_ns", "idle_ns", "throttled_ns", "stopped_ns")
    }
    found = []
    for vcpu in range(vcpus.beat_ns.shape[1]):
        gap_ns, at_ns = _longest_gap(samples.at_ns, vcpus, vcpu, first, last)
        times = {name: int(values[vcpu]) for name, values in spent.items()}
        found.append(VcpuFelt(vcpu, **times, longest_gap_ns=gap_ns, longest_gap_at_ns=at_ns))
    return tuple(found)


def _longest_gap(
    at: NDArray[np.int64], vcpus: VcpuSamples, vcpu: int, first: int, last: int
) -> tuple[int, int]:
    """The longest time between two heartbeats that ended in the window, and its end.

    The vCPU notes its longest since it was resumed, and the one over that stop; where an earlier
    one was longer, what the samples saw of those in between counts.
    """
    inside = slice(first, last + 1)
    begin_ns, end_ns = int(at[first]), int(at[last])
    pairs = [
        (vcpus.longest_gap_ns[inside, vcpu], vcpus.longest_gap_at_ns[inside, vcpu]),
        (vcpus.resume_gap_ns[inside, vcpu], vcpus.resumed_at_ns[inside, vcpu]),
        (at[inside] - vcpus.beat_ns[inside, vcpu], at[inside]),
    ]
    gaps = np.concatenate([gap for gap, _ in pairs])
    ends = np.concatenate([end for _, end in pairs])
    gaps = np.where((ends >= begin_ns) & (ends <= end_ns), gaps, 0)
    longest = int(np.argmax(gaps))
    return int(gaps[longest]), int(ends[longest])
