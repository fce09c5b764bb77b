"""Transactions: functions of their number, a log that proves what was read, and true latencies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.guest import layout
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.guest.task import NEVER_NS
from testbed.guest.tasks import oltp
from testbed.guest.tasks.build import build
from testbed.guest.tasks.oltp import NUMBER_WORD, READ_WORD
from testbed.guest.tasks.operations import count_operation, latency_bucket
from testbed.guest.workloads import Oltp

MIB = 1 << 20
MS = 1_000_000
SPEC = GuestSpec("vm", 4 * MIB, 2, (Oltp(2000, 2 * MIB),), seed=3)


class Clock:
    """A clock that goes on by a microsecond a look."""

    def __init__(self, now_ns=10**12):
        self.now_ns = now_ns

    def monotonic_ns(self):
        self.now_ns += 1000
        return self.now_ns


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(oltp, "time", clock)
    return clock


def built(spec, memory, vcpu=0, marked=None):
    mark = (lambda pages: marked.update(pages.tolist())) if marked is not None else None
    ((given, task),) = build(spec, vcpu, memory, mark=mark)
    return given, task


def run(task, clock, length_ns):
    """A vCPU that is always in time, until then."""
    end_ns, due = clock.now_ns + length_ns, task.start(clock.now_ns)
    while due < end_ns:
        clock.now_ns = max(clock.now_ns, int(due) + 1)
        due = task.step(clock.now_ns)
    clock.now_ns = end_ns


@given(st.integers(0, 2**40), st.integers(0, 1), st.integers(1, 40))
def test_a_transaction_follows_from_its_number_and_stays_in_its_pages(number, vcpu, each):
    spec = replace(SPEC, workloads=(replace(SPEC.workloads[0], pages_per_commit=each),))
    with GuestMemory("vm", spec.memory_bytes) as memory:
        given_, task = built(spec, memory, vcpu)
        pages = task.pages(number)
        assert len(pages) == each + 1
        pool = pages[:-1] - given_.first_page
        assert 0 <= pool.min() <= pool.max() < task.pool_pages
        assert pages[-1] == given_.first_page + task.pool_pages + number % task.log_pages
        assert task.pool_pages + task.log_pages == given_.page_count
        task.pages(number + 64)
        again = built(spec, memory, vcpu)[1]
        np.testing.assert_array_equal(again.pages(number), task.pages(number))


def test_memory_follows_from_the_counters_alone(clock):
    """Moved to another memory half-way, as a migration does, pool and log are as if not moved."""
    with (
        GuestMemory("a", SPEC.memory_bytes) as first,
        GuestMemory("b", SPEC.memory_bytes) as second,
        GuestMemory("c", SPEC.memory_bytes) as again,
    ):
        for memory in (first, again):
            memory.words[:] = np.arange(512, dtype=np.uint64) * np.uint64(0x1234567)
            layout.initialise(memory, 2)
        marked = set()
        run(built(SPEC, first, 1, marked)[1], clock, 300 * MS)
        second.words[:] = first.words
        given_, task = built(SPEC, second, 1, marked)
        run(task, clock, 400 * MS)
        count = given_.record[layout.BATCHES]
        assert 690 <= count <= 701
        assert given_.record[layout.OPERATIONS] == count
        assert given_.record[layout.PAGES_WRITTEN] == count * 11
        changed = np.flatnonzero((again.words != second.words).any(axis=1))
        data = set(changed[changed >= given_.first_page].tolist())
        assert data == marked
        words = again.words  # what it has to be, from the counter, one page after another
        for number in range(count):
            *pool, log = task.pages(number).tolist()
            read = sum(int(words[page, NUMBER_WORD]) for page in pool) % 2**64
            words[[*pool, log], NUMBER_WORD] = number + 1
            words[log, READ_WORD] = read
        np.testing.assert_array_equal(words[given_.first_page :], second.words[given_.first_page :])


def test_hot_pages_are_written_more():
    with GuestMemory("vm", SPEC.memory_bytes) as memory:
        _, task = built(SPEC, memory)
        pages = np.concatenate([task.pages(number)[:-1] for number in range(2000)])
        counts = np.sort(np.unique(pages, return_counts=True)[1])[::-1]
        assert counts[0] > 20 * np.median(counts)


def test_commits_keep_their_pace(clock):
    with GuestMemory("vm", SPEC.memory_bytes) as memory:
        given_, task = built(SPEC, memory)
        run(task, clock, 1000 * MS)
        record = given_.record
        assert record[layout.OPERATIONS] == pytest.approx(1000, abs=2)  # its half of 2000
        assert record[layout.LATENCY_MAX] < 50_000
        assert record[layout.TASK_LONGEST_GAP] == pytest.approx(MS, rel=0.1)


def test_a_stop_shows_in_gap_and_latency_and_is_not_made_up(clock):
    with GuestMemory("vm", SPEC.memory_bytes) as memory:
        given_, task = built(SPEC, memory)
        run(task, clock, 100 * MS)
        before = given_.record[layout.OPERATIONS]
        clock.now_ns += 700 * MS
        _, task = built(SPEC, memory)  # at another host
        run(task, clock, 100 * MS)
        record = given_.record
        assert record[layout.OPERATIONS] - before == pytest.approx(105, abs=3)
        assert record[layout.TASK_LONGEST_GAP] == pytest.approx(700 * MS, abs=3 * MS)
        assert record[layout.LATENCY_MAX] == pytest.approx(700 * MS, abs=3 * MS)
        buckets = record[layout.LATENCY : layout.LATENCY + layout.LATENCY_BUCKETS].tolist()
        assert sum(buckets) == record[layout.OPERATIONS]
        assert buckets[19] == 1  # 524 to 1049 ms: the one that waited
        assert sum(buckets[13:19]) == 0


def test_a_rate_of_nothing_commits_nothing():
    spec = replace(SPEC, workloads=(Oltp(0, MIB),))
    with GuestMemory("vm", spec.memory_bytes) as memory:
        assert built(spec, memory)[1].start(5) == NEVER_NS


@pytest.mark.parametrize("workload", [Oltp(10, 2 * 4096), Oltp(-1, MIB), Oltp(1, MIB, 0)])
def test_what_cannot_be_done_is_refused(workload):
    spec = replace(SPEC, workloads=(workload,))
    with GuestMemory("vm", spec.memory_bytes) as memory, pytest.raises(InputError, match="oltp"):
        built(spec, memory)


@pytest.mark.parametrize(
    ("latency_ns", "bucket"),
    [(0, 0), (999, 0), (1999, 0), (2000, 1), (3999, 1), (4000, 2), (1 << 50, 21)],
)
def test_buckets_are_powers_of_two_in_microseconds(latency_ns, bucket):
    assert latency_bucket(latency_ns) == bucket


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 10**9)), min_size=1, max_size=20))
def test_operations_are_counted_one_by_one(operations):
    record, now, gaps = memoryview(bytearray(layout.RECORD_BYTES)).cast("q"), 10**6, [0]
    for number, (latency, gap) in enumerate(operations):
        now += gap
        gaps += [gap] if number else []
        count_operation(record, latency, now)
    assert record[layout.OPERATIONS] == sum(record[layout.LATENCY :]) == len(operations)
    assert record[layout.LATENCY_SUM] == sum(latency for latency, _ in operations)
    assert record[layout.LATENCY_MAX] == max(latency for latency, _ in operations)
    assert record[layout.TASK_LONGEST_GAP] == max(gaps)
    assert record[layout.LAST_AT] == now
