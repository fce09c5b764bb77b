"""The pure parts of a delay line: when frames are due, the lead, how lateness is counted."""

from __future__ import annotations

import json
import random
import statistics
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.kernel.delay import nfqueue
from testbed.kernel.delay.lateness import (
    DirectionStatistics,
    Lateness,
    bounds_ns,
    bucket_of,
    verdict,
)
from testbed.kernel.delay.rules import rules
from testbed.kernel.delay.schedule import Lead, Schedule
from testbed.plan.policies import Delay

NS = st.integers(0, 10**10)
MS = 10**6


@given(st.lists(NS, max_size=50), st.integers(0, 10**9), st.integers(0, 10**9), st.integers())
def test_frames_are_due_in_order_and_never_before_the_least_delay(arrivals, delay, jitter, seed):
    schedule = Schedule(Delay(delay, jitter), seed)
    arrivals = sorted(arrivals)
    dues = [schedule.add(arrived, number) for number, arrived in enumerate(arrivals, 1)]
    assert dues == sorted(dues)
    latest = 0
    for arrived, due in zip(arrivals, dues, strict=True):
        assert due >= arrived + schedule.least_delay_ns
        latest = max(latest, arrived)
        assert due <= latest + delay + jitter


@given(st.lists(NS, max_size=50), st.integers(0, 10**9))
def test_without_jitter_each_frame_takes_the_delay(arrivals, delay):
    schedule = Schedule(Delay(delay), 1)
    for number, arrived in enumerate(sorted(arrivals)):
        assert schedule.add(arrived, number) == arrived + delay


@given(st.lists(NS, min_size=1, max_size=50), NS, st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_is_due_is_let_go_and_nothing_else(arrivals, until, delay, jitter):
    schedule = Schedule(Delay(delay, jitter), 3)
    dues = [schedule.add(arrived, n) for n, arrived in enumerate(sorted(arrivals), 1)]
    last, released = schedule.release(until)
    assert released == [due for due in dues if due <= until]
    assert last == len(released)  # they are numbered from 1, so it names them all
    left = dues[len(released) :]
    assert len(schedule) == len(left)
    assert schedule.next_due_ns == (left[0] if left else None)


def test_a_shorter_delay_lets_no_frame_overtake():
    schedule = Schedule(Delay(50 * MS), 1)
    schedule.add(0, 1)
    schedule.delay = Delay(5 * MS)
    assert schedule.add(1 * MS, 2) == 50 * MS
    assert schedule.add(60 * MS, 3) == 65 * MS


def test_sparse_frames_are_spread_evenly_over_the_jitter():
    schedule = Schedule(Delay(10 * MS, 4 * MS), 7)
    delays = [schedule.add(n * 20 * MS, n) - n * 20 * MS for n in range(4000)]
    assert min(delays) >= 6 * MS
    assert max(delays) <= 14 * MS
    # Of a uniform distribution; the standard error of the mean is 0.04 ms.
    assert statistics.mean(delays) == pytest.approx(10 * MS, abs=0.2 * MS)
    assert statistics.stdev(delays) == pytest.approx(8 * MS / 12**0.5, rel=0.05)


def test_jitter_repeats_with_its_seed():
    runs = []
    for seed in (1, 1, 2):
        schedule = Schedule(Delay(10 * MS, 4 * MS), seed)
        runs.append([schedule.add(n * 20 * MS, n) for n in range(9)])
    assert runs[0] == runs[1] != runs[2]


@given(st.integers(0, 150_000), st.integers())
def test_the_lead_finds_the_median_of_what_waking_takes(typical_ns, seed):
    # One wake-up in ten is ruined by another process: the mean would be off by 0.5 ms.
    noise = random.Random(seed)
    lead = Lead()
    late = []
    for n in range(600):
        takes_ns = typical_ns + noise.randint(-5000, 5000)
        if noise.random() < 0.1:
            takes_ns += 5 * MS
        late.append(takes_ns - lead.lead_ns)
        lead.learn(late[-1])
        if n >= 300:
            assert 0 <= lead.lead_ns <= Lead.MOST_NS
    assert abs(statistics.median(late[300:])) < 8000


def test_the_lead_stays_small_however_late_it_is():
    lead = Lead()
    for _ in range(10_000):
        lead.learn(10**9)
    assert lead.lead_ns == Lead.MOST_NS
    for _ in range(10_000):
        lead.learn(-1)
    assert lead.lead_ns == 0


@given(st.integers(-(10**11), 10**11))
def test_a_bucket_holds_its_latenesses_to_a_sixteenth(late):
    first, last = bounds_ns(bucket_of(late))
    assert first <= late <= last
    assert last - first <= max(64, abs(late) / 16)


@given(st.lists(st.integers(-(10**12), 10**12), max_size=60))
def test_buckets_keep_the_order(latenesses):
    assert [bucket_of(late) for late in sorted(latenesses)] == sorted(map(bucket_of, latenesses))


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=200))
def test_quantiles_are_those_of_the_frames(latenesses):
    counted = Lateness()
    counted.add(latenesses)
    in_order = sorted(latenesses)
    for share in (0.5, 0.99, 1):
        exact = in_order[-(-round(share * 100) * len(in_order) // 100) - 1]
        assert exact <= counted.quantile_ns(share) <= exact + max(64, abs(exact) / 16)


def test_the_histogram_stays_small():
    counted = Lateness()
    counted.add(sign * 2**power * step // 97 for sign in (1, -1) for power in range(60)
                for step in range(97, 194))  # fmt: skip
    assert counted.frames == 2 * 60 * 97
    assert len(counted.counts) < 2000
    assert Lateness().quantile_ns(0.99) == 0


@given(st.lists(NS), st.lists(NS), st.integers(0, 9), st.integers(0, 9))
def test_a_later_reading_less_an_earlier_one_is_what_came_between(before, between, drops, more):
    counted = Lateness()
    counted.add(before)
    first = DirectionStatistics.from_json(
        json.loads(json.dumps(DirectionStatistics(drops, 0, counted).to_json()))
    )
    counted.add(between)
    window = DirectionStatistics(drops + more, 3, counted).since(first)
    only = Lateness()
    only.add(between)
    assert window == DirectionStatistics(more, 3, only)
    assert window.frames == len(between)


def statistics_of(latenesses, queue_drops=0, user_drops=0):
    counted = Lateness()
    counted.add(latenesses)
    return DirectionStatistics(queue_drops, user_drops, counted)


@pytest.mark.parametrize(
    ("latenesses", "drops", "delay_ms", "words"),
    [
        ([], (0, 0), 5, None),
        ([10_000] * 100, (0, 0), 5, None),
        ([10_000] * 99 + [50 * MS], (0, 0), 5, None),  # one in a hundred may stall
        ([10_000] * 97 + [2 * MS] * 3, (0, 0), 5, "1 ms is allowed"),
        ([10_000] * 97 + [2 * MS] * 3, (0, 0), 50, None),  # a tenth of it is 5 ms
        ([10_000] * 97 + [6 * MS] * 3, (0, 0), 50, "5 ms is allowed"),
        ([10_000], (1, 0), 5, "queue in the kernel was full: 1 frame"),
        ([10_000], (0, 7), 5, "read too slowly: 7 frames"),
    ],
)
def test_a_line_that_fell_behind_is_told_from_one_that_kept_up(latenesses, drops, delay_ms, words):
    found = verdict(statistics_of(latenesses, *drops), Delay(delay_ms * MS))
    assert (found is None) if words is None else (words in found)


def test_messages_to_a_queue_are_what_the_kernel_s_header_says():
    # linux/netfilter/nfnetlink_queue.h, read by hand: no code of ours is used to decode.
    data = nfqueue.verdict(1, 0x01020304)
    assert struct.unpack_from("=IHHII", data) == (len(data), 3 << 8 | 3, 1, 0, 0)
    assert data[16:] == bytes.fromhex("00 00 0001 0c00 0200 00000001 01020304")
    data = nfqueue.configuration(5, 131072)
    assert struct.unpack_from("=IHHII", data) == (len(data), 3 << 8 | 2, 1 | 4, 0, 0)
    assert data[16:] == bytes.fromhex(
        "00 00 0005"  # nfgenmsg: any family, version 0, queue 5
        "0800 0100 01 00 0000"  # CMD: bind
        "0900 0200 00000000 01 000000"  # PARAMS: no bytes of the packet, COPY_META
        "0800 0300 00020000"  # QUEUE_MAXLEN
        "0800 0400 00000004"  # MASK: of GSO
        "0800 0500 00000004"  # FLAGS: GSO, and so not FAIL_OPEN
    )


def test_a_queue_s_line_of_proc_is_read():
    text = "    0   4242     3 1     0     5     7       91  1\n"
    text += "    1   4242     0 1     0     0     0        0  1\n"
    found = nfqueue.parse_status(text)
    assert found[0] == nfqueue.QueueStatus(0, 3, 1, 5, 7)
    assert sorted(found) == [0, 1]


def test_each_port_has_a_queue_of_its_own_and_no_bypass():
    first, second = rules(("p0", "p1"))
    assert first.endswith("--physdev-in p0 -j NFQUEUE --queue-num 0")
    assert second.endswith("--physdev-in p1 -j NFQUEUE --queue-num 1")
