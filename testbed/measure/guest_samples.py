"""A guest's own counters, sampled: what a probe has read, and the series that they make.

The counters only grow, so samples may be left out without losing anything that was counted:
it is only told in wider intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from testbed.measure.series import Series

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class WorkloadSamples:
    """The counters of one workload, all vCPUs together; each array has one row a sample.

    `operation` is the plural of what it counts ("commits"). `steady`: it works of its own accord
    without rest, so that a time without an operation is a halt; a server waits to be asked.
    `last_at_ns` is when the last operation ended. `latency` counts operations by how long they
    took: bucket b those of 2^b to 2^(b+1) us, the first also quicker ones, the last slower ones.
    """

    name: str
    operation: str
    steady: bool
    operations: NDArray[np.int64]
    bytes: NDArray[np.int64]
    last_at_ns: NDArray[np.int64]
    latency_sum_ns: NDArray[np.int64]
    latency: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class VcpuSamples:
    """The records of the vCPUs: each array has one row a sample and one column a vCPU.

    Each names a word of a vCPU's record in guest memory (testbed/guest/layout.py).
    """

    beat_ns: NDArray[np.int64]
    longest_gap_ns: NDArray[np.int64]
    longest_gap_at_ns: NDArray[np.int64]
    resume_gap_ns: NDArray[np.int64]
    resumed_at_ns: NDArray[np.int64]
    run_ns: NDArray[np.int64]
    idle_ns: NDArray[np.int64]
    throttled_ns: NDArray[np.int64]
    stopped_ns: NDArray[np.int64]


Record = TypeVar("Record", WorkloadSamples, VcpuSamples)


@dataclass(frozen=True, slots=True)
class GuestSamples:
    """What a probe read at `at_ns`, asked to do so every `interval_ns`.

    All times count from the same instant; whoever makes the samples says from which.
    """

    interval_ns: int
    at_ns: NDArray[np.int64]
    vcpus: VcpuSamples
    workloads: tuple[WorkloadSamples, ...]

    def __len__(self) -> int:
        return len(self.at_ns)

    def every(self, step: int) -> GuestSamples:
        """Each `step`-th sample and the last one."""
        chosen = np.arange(0, len(self), step)
        if len(self) and chosen[-1] != len(self) - 1:
            chosen = np.append(chosen, len(self) - 1)
        return replace(
            self,
            interval_ns=self.interval_ns * step,
            at_ns=self.at_ns[chosen],
            vcpus=_rows(self.vcpus, chosen),
            workloads=tuple(_rows(one, chosen) for one in self.workloads),
        )


def _rows(samples: WorkloadSamples | VcpuSamples, chosen: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    arrays: dict[str, Any] = {
        field.name: value[chosen]
        for field in fields(samples)
        if isinstance(value := getattr(samples, field.name), np.ndarray)
    }
    return replace(samples, **arrays)


def increments(counter: NDArray[np.int64]) -> NDArray[np.int64]:
    """What was counted between each two samples; a counter that fell has begun anew from 0."""
    grown = np.diff(counter, axis=0)
    return np.where(grown < 0, counter[1:], grown)


def counted(counter: NDArray[np.int64]) -> NDArray[np.int64]:
    """What was counted since the first sample: as the counter, but never falling."""
    total = np.zeros_like(counter)
    np.cumsum(increments(counter), axis=0, out=total[1:])
    return total


def quantile_ns(histogram: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """The latency that this share of the operations does not exceed, for each row of buckets.

    Within a bucket they are taken to be spread evenly; rows without an operation are NaN.
    """
    upto = np.cumsum(histogram, axis=-1)
    total = upto[..., -1]
    wanted = share * total
    bucket = np.argmax(upto >= wanted[..., None], axis=-1)
    inside = np.take_along_axis(histogram, bucket[..., None], -1)[..., 0]
    before = np.take_along_axis(upto, bucket[..., None], -1)[..., 0] - inside
    part = np.divide(wanted - before, inside, out=np.zeros(total.shape), where=inside > 0)
    low = np.where(bucket == 0, 0.0, 2.0**bucket)
    found: NDArray[np.float64] = np.where(
        total > 0, 1000.0 * (low + part * (2.0 ** (bucket + 1) - low)), np.nan
    )
    return found


def series(samples: GuestSamples) -> tuple[Series, ...]:
    """The course of every workload and of the vCPUs' time.

    A rate stands from its sample until the next one, and the last is repeated where it ends, so
    rates x times add up to what was counted. Latencies are told where there was an operation.
    Shares of time are of all vCPUs together. A vCPU counts a time when it has ended: after a
    stop its whole length is in one interval, as a share above 1.
    """
    if len(samples) < 2:
        return ()
    at, found = samples.at_ns, list[Series]()
    for one in samples.workloads:
        done, sent = increments(one.operations), increments(one.bytes)
        found += [
            _rate(f"{one.name} {one.operation}", f"{one.operation}/s", at, done * 1_000_000_000),
            _rate(f"{one.name} bytes", "B/s", at, sent * 1_000_000_000),
            *_latencies(one, at),
        ]
    for name in ("run", "idle", "throttled", "stopped"):
        spent = np.mean(increments(getattr(samples.vcpus, f"{name}_ns")), axis=1)
        found.append(_rate(f"vCPUs {name}", "of the time", at, spent))
    return tuple(found)


def _rate(name: str, unit: str, at_ns: NDArray[np.int64], amounts: NDArray[Any]) -> Series:
    rates = amounts / np.diff(at_ns)
    rates = np.append(rates, rates[-1])
    return Series(name, unit, tuple(at_ns.tolist()), tuple(rates.tolist()))


def _latencies(one: WorkloadSamples, at_ns: NDArray[np.int64]) -> tuple[Series, Series]:
    done = increments(one.operations)
    histogram = increments(one.latency)
    # The words of a record are not read at one instant: an operation may be counted in one only.
    told = (done > 0) & (histogram.sum(axis=1) > 0)
    times = tuple(at_ns[:-1][told].tolist())
    mean = increments(one.latency_sum_ns)[told] / done[told]
    p99 = quantile_ns(histogram[told], 0.99)
    return (
        Series(f"{one.name} mean latency", "ns", times, tuple(mean.round().tolist())),
        Series(f"{one.name} p99 latency", "ns", times, tuple(p99.round().tolist())),
    )
