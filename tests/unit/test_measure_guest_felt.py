"""What a guest felt, from samples whose story is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.measure.guest_judge import judge
from testbed.measure.guest_samples import (
    GuestSamples,
    VcpuSamples,
    WorkloadSamples,
    increments,
    quantile_ns,
    series,
)

MS = 10**6
BUCKETS = 22


def told(
    interval_ns: int,
    until_ns: int,
    done_ns: list[int],
    stops: tuple[tuple[int, int], ...] = (),
    *,
    from_ns: int = -1000 * MS,
    steady: bool = True,
    latency_ns: int = 1500,
) -> GuestSamples:
    """Samples of a guest of two vCPUs whose operations ended at these times.

    Its vCPUs run but for the stops (begin, end), which they count when they are over.
    """
    at = np.arange(from_ns, until_ns + 1, interval_ns)
    done = np.array(sorted(done_ns), np.int64)
    count = np.searchsorted(done, at, "right")
    last = np.where(count > 0, done[np.maximum(count - 1, 0)], 0)
    latency = np.zeros((len(at), BUCKETS), np.int64)
    latency[:, int(np.log2(latency_ns / 1000))] = count
    beat, stopped, gap = at.copy(), np.zeros_like(at), np.zeros_like(at)
    resumed, standing = np.full_like(at, -(10**15)), np.zeros_like(at)
    for begin, end in stops:
        over, within = at >= end, (at >= begin) & (at < end)
        stopped[over] += end - begin
        gap[over], resumed[over] = end - begin, end
        beat[within], standing[within] = begin, at[within] - begin
    two = {
        "beat_ns": beat,
        "longest_gap_ns": np.full_like(at, 5 * MS),
        "longest_gap_at_ns": np.full_like(at, -(10**15)),
        "resume_gap_ns": gap,
        "resumed_at_ns": resumed,
        "run_ns": at - from_ns - stopped - standing,
        "idle_ns": np.zeros_like(at),
        "throttled_ns": np.zeros_like(at),
        "stopped_ns": stopped,
    }
    vcpus = VcpuSamples(**{name: np.stack([row, row], axis=1) for name, row in two.items()})
    workload = WorkloadSamples(
        "oltp", "commits", steady, count, count * 100, last, count * latency_ns, latency
    )
    return GuestSamples(interval_ns, at, vcpus, (workload,))


def every(step_ns: int, begin_ns: int, end_ns: int) -> list[int]:
    return list(range(begin_ns, end_ns, step_ns))


def test_a_stop_is_a_halt_of_its_length_and_a_dip_to_nothing() -> None:
    # 2000 commits/s, but none while the guest stands still for 37 ms
    stop = (203 * MS + 300_000, 240 * MS + 400_000)
    done = every(MS // 2, -1000 * MS, stop[0]) + every(MS // 2, stop[1], 1000 * MS)
    felt = judge(told(10 * MS, 1000 * MS, done, (stop,)), 0, 1000 * MS)
    (oltp,) = felt.workloads
    assert oltp.usual_per_s == pytest.approx(2000, rel=0.01)
    assert oltp.before
    assert oltp.lowest_per_s == 0
    assert oltp.dip == 1
    assert oltp.lowest_over_ns == 10 * MS
    assert oltp.lowest_at_ns == 210 * MS
    # It is told by the resume, although samples are 10 ms apart.
    assert oltp.halt_ns == pytest.approx(stop[1] - stop[0], abs=MS // 2)
    assert oltp.halt_at_ns == pytest.approx(stop[0], abs=MS // 2)
    assert oltp.usual_halt_ns is not None
    assert oltp.usual_halt_ns < MS
    for vcpu in felt.vcpus:
        assert vcpu.stopped_ns == stop[1] - stop[0] == vcpu.longest_gap_ns
        assert vcpu.run_ns == 1000 * MS - vcpu.stopped_ns
        assert vcpu.longest_gap_at_ns == stop[1]


def test_slowing_down_is_a_dip_and_no_halt() -> None:
    done = every(MS, -1000 * MS, 0) + every(4 * MS, 0, 400 * MS) + every(MS, 400 * MS, 1000 * MS)
    (oltp,) = judge(told(10 * MS, 1000 * MS, done), 0, 1000 * MS).workloads
    assert oltp.usual_per_s == pytest.approx(1000, rel=0.01)
    assert oltp.dip == pytest.approx(0.75, abs=0.05)  # 20 ms hold 5 of 20
    assert oltp.halt_ns is not None
    assert oltp.halt_ns <= 4 * MS


def test_a_dip_is_judged_over_enough_operations() -> None:
    """Ten operations a second are none in most intervals of 10 ms: that is no dip."""
    done = every(100 * MS, -1000 * MS, 3000 * MS)
    (oltp,) = judge(told(10 * MS, 3000 * MS, done), 0, 3000 * MS).workloads
    assert oltp.lowest_over_ns == 1000 * MS
    assert oltp.dip == pytest.approx(0, abs=0.11)  # one of ten falls in or out
    assert oltp.halt_ns == pytest.approx(100 * MS, abs=11 * MS)


def test_a_short_interval_beside_a_late_sample_is_no_dip() -> None:
    samples = told(10 * MS, 500 * MS, every(MS, -1000 * MS, 500 * MS))
    late = samples.at_ns.copy()
    late[120] += 9_900_000  # the next one comes 0.1 ms after it, with nothing done meanwhile
    (one,) = samples.workloads
    done = np.searchsorted(np.array(every(MS, -1000 * MS, 500 * MS)), late, "right")
    moved = replace(samples, at_ns=late, workloads=(replace(one, operations=done),))
    (oltp,) = judge(moved, 0, 500 * MS).workloads
    assert oltp.dip == pytest.approx(0, abs=0.1)


def test_a_server_nobody_asks_has_neither_dip_nor_halt() -> None:
    (web,) = judge(told(10 * MS, 500 * MS, [0], steady=False), 1 * MS, 500 * MS).workloads
    assert web.operations == 0
    assert (web.dip, web.halt_ns, web.latency_mean_ns, web.latency_p99_ns) == (None,) * 4


def test_a_guest_that_was_not_watched_before_is_compared_with_itself() -> None:
    done = every(MS, 0, 500 * MS)
    samples = told(10 * MS, 500 * MS, done, from_ns=0)
    (oltp,) = judge(samples, 10 * MS, 500 * MS).workloads
    assert not oltp.before
    assert oltp.usual_per_s == pytest.approx(1000, rel=0.01)
    assert oltp.usual_latency_p99_ns is None


def test_no_samples_tell_nothing() -> None:
    samples = told(10 * MS, 500 * MS, [0])
    with pytest.raises(ValueError, match="tell nothing"):
        judge(samples, 5, 5)
    with pytest.raises(ValueError, match="1 samples"):
        judge(samples.every(10**6).every(10**6).every(1).__class__(
            samples.interval_ns, samples.at_ns[:1], samples.vcpus, ()), 0, 5)  # fmt: skip


def test_a_quantile_is_within_its_power_of_two() -> None:
    latencies_us = np.random.default_rng(4).lognormal(5, 1.5, 10000)
    histogram = np.bincount(np.log2(np.maximum(latencies_us, 1)).astype(int), minlength=BUCKETS)
    for share in (0.5, 0.9, 0.99):
        exact = np.quantile(latencies_us, share) * 1000
        assert exact / 2 <= quantile_ns(histogram, share) <= exact * 2
    assert np.isnan(quantile_ns(np.zeros((1, BUCKETS), np.int64), 0.99)[0])


def test_a_counter_that_begins_anew_loses_only_what_it_had() -> None:
    """Switching a VM's workload zeroes its records."""
    assert increments(np.array([5, 9, 2, 4])).tolist() == [4, 2, 2]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-900 * MS, 900 * MS), max_size=300),
    st.sampled_from([5 * MS, 17 * MS, 100 * MS]),
    st.integers(1, 50),
    st.tuples(st.integers(-800, 800), st.integers(1, 99)),
)
def test_sums_are_kept_however_coarsely_it_is_told(
    done: list[int], interval_ns: int, step: int, stop: tuple[int, int]
) -> None:
    stops = ((stop[0] * MS, sum(stop) * MS),)
    samples = told(interval_ns, 1000 * MS, done or [0], stops)
    wanted = {line.name: _area(line.at_ns, line.values) for line in series(samples)
              if "latency" not in line.name}  # fmt: skip
    operations = len(done or [0])
    assert wanted["oltp commits"] == pytest.approx(operations)
    assert wanted["oltp bytes"] == pytest.approx(100 * operations)
    for line in series(samples.every(step)):
        if line.name in wanted:
            assert _area(line.at_ns, line.values) == pytest.approx(wanted[line.name])
            assert min(line.values) >= 0
    for felt in (judge(samples, 0, 900 * MS), judge(samples.every(step), -900 * MS, 900 * MS)):
        (oltp,) = felt.workloads
        assert oltp.operations <= operations
        assert oltp.dip is None or 0 <= oltp.dip <= 1
        for vcpu in felt.vcpus:
            spent = vcpu.run_ns + vcpu.idle_ns + vcpu.throttled_ns + vcpu.stopped_ns
            # a stop is counted when it is over
            assert abs(spent - (felt.until_ns - felt.from_ns)) <= stop[1] * MS


def _area(at_ns: tuple[int, ...], values: tuple[float, ...]) -> float:
    spans = [later - earlier for earlier, later in pairwise(at_ns)]
    return sum(value * span for value, span in zip(values, spans, strict=False)) / 1e9
