"""What is recorded of dirty pages, and replayed, dirties as many pages in each interval."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest.layout import task_words
from testbed.guest.memory import GuestMemory
from testbed.guest.recording import Sample, ranges_of
from testbed.guest.specification import GuestSpec
from testbed.guest.task import NEVER_NS
from testbed.guest.tasks.build import build
from testbed.guest.tasks.replay import POSITION, Trace
from testbed.guest.workloads import Replay, TraceRange

MIB = 1 << 20
MS = 1_000_000

page_sets = st.sets(st.integers(0, 400), max_size=120).map(lambda found: np.array(sorted(found)))
recordings = st.lists(st.tuples(st.integers(1000, 10**9), page_sets), min_size=1, max_size=6)


def sampled(recording):
    times = np.cumsum([length for length, _ in recording]).tolist()
    return [
        Sample(1000 + at, pages.astype(np.int64))
        for at, (_, pages) in zip(times, recording, strict=True)
    ]


def written(trace, from_ns, to_ns):
    """The pages that a trace writes from one time to another, in steps of uneven length."""
    found, position = [], from_ns
    while position < min(to_ns, trace.length_ns):
        until = min(position + 1 + (to_ns - from_ns) // 7, trace.until(position), to_ns)
        pages, _ = trace.writes(trace.active(position), position, until)
        found += pages.tolist()
        position = until
    return found


@given(recordings, st.integers(0, 50))
def test_each_interval_is_replayed_exactly(recording, first_page):
    samples = sampled(recording)
    ranges = ranges_of(samples, 1000, first_page, 1000)
    if not ranges:
        assert all((sample.pages < first_page).all() for sample in samples)
        return
    trace, before_ns = Trace(Replay(ranges)), 0
    for sample in samples:
        end_ns = sample.at_ns - 1000
        pages = sorted(written(trace, before_ns, end_ns))
        assert pages == [page - first_page for page in sample.pages if page >= first_page]
        before_ns = end_ns


@given(recordings, st.integers(1, 5))
def test_with_few_ranges_the_number_stays_and_the_pages_are_near(recording, most):
    samples = sampled(recording)
    ranges = ranges_of(samples, 1000, 0, most)
    if not ranges:
        return
    trace, before_ns = Trace(Replay(ranges)), 0
    for sample in samples:
        end_ns = sample.at_ns - 1000
        assert sum(one.at_ns == before_ns for one in ranges) <= most
        pages = written(trace, before_ns, end_ns)
        assert len(set(pages)) == len(pages) == len(sample.pages)
        if len(pages):
            assert sample.pages.min() == min(pages)
            assert max(pages) <= sample.pages.max()
        before_ns = end_ns


def test_the_widest_gaps_part_the_ranges():
    pages = np.array([0, 2, 3, 50, 52, 53, 54, 100], np.int64)
    ranges = ranges_of([Sample(10**9, pages)], 0, 0, 3)
    assert [(one.first_page, one.pages) for one in ranges] == [(0, 4), (50, 5), (100, 1)]
    assert [one.rate_bytes_per_s // 4096 for one in ranges] == [3, 4, 1]


SPEC = GuestSpec("vm", 4 * MIB, 2)


def replay(*ranges, repeat=False):
    return GuestSpec("vm", 4 * MIB, 2, (Replay(ranges, repeat),))


def run(task, record, begin_ns, length_ns):
    """A vCPU that is always in time, and when the task's next step would be due."""
    now, due = begin_ns, task.start(begin_ns)
    while due < begin_ns + length_ns:
        now = max(now, due)
        due = task.step(int(now))
    return due


def built(spec, memory, marked=None):
    mark = (lambda pages: marked.extend(pages.tolist())) if marked is not None else None
    ((given, task),) = build(spec, 0, memory, mark=mark)
    return given, task


def test_a_trace_goes_on_where_it_stopped_and_rests_at_its_end():
    spec = replay(
        TraceRange(0, 100 * MS, 10, 50, 4096 * 1000),
        TraceRange(40 * MS, 200 * MS, 100, 10, 4096 * 500),
    )
    with GuestMemory("vm", spec.memory_bytes) as memory:
        marked = []
        given, task = built(spec, memory, marked)
        run(task, given.record, 5 * MS, 60 * MS)
        here = given.record[POSITION]
        assert 58 * MS < here <= 60 * MS
        given, task = built(spec, memory, marked)  # as at another host, a second later
        assert run(task, given.record, 1000 * MS, 900 * MS) == NEVER_NS
        first = [given.first_page + 10 + n % 50 for n in range(100)]
        assert [page for page in marked if page < given.first_page + 100] == first
        second = [given.first_page + 100 + n % 10 for n in range(80)]
        assert [page for page in marked if page >= given.first_page + 100] == second
        assert given.record[1] == 180
        assert memory.words[given.first_page :].any(axis=1).sum() == 60


def test_a_trace_repeats_at_its_rate():
    spec = replay(TraceRange(10 * MS, 20 * MS, 0, 900, 4096 * 10000), repeat=True)
    with GuestMemory("vm", spec.memory_bytes) as memory:
        marked = []
        given, task = built(spec, memory, marked)
        run(task, given.record, 0, 100 * MS)
        assert 480 <= len(marked) <= 500  # a step is a millisecond
        assert marked[:100] == marked[100:200]


def test_a_stop_is_not_made_up():
    spec = replay(TraceRange(0, 1000 * MS, 0, 900, 4096 * 10000))
    with GuestMemory("vm", spec.memory_bytes) as memory:
        given, task = built(spec, memory)
        run(task, given.record, 0, 10 * MS)
        before = given.record[1]
        due = task.step(500 * MS)
        while due < 500 * MS:
            due = task.step(500 * MS)
        assert given.record[1] - before <= 510  # 50 ms' worth of 490


def test_other_vcpus_have_no_part_in_it():
    spec = replay(TraceRange(0, MS, 0, 1, 4096))
    with GuestMemory("vm", spec.memory_bytes) as memory:
        ((_, task),) = build(spec, 1, memory)
        assert task.start(0) == NEVER_NS
        assert not task_words(memory, 2, 0, 1)[POSITION]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 30 * MS), min_size=1, max_size=20), st.integers(1, 4 * 10**9))
def test_whatever_the_steps_the_same_writes_have_been_done_by_a_time(lengths, rate):
    trace = Trace(Replay((TraceRange(0, sum(lengths), 3, 70, rate),)))
    rows = trace.active(0)
    position, found, numbers = 0, [], []
    for length in lengths:
        pages, values = trace.writes(rows, position, position + length)
        position += length
        found += pages.tolist()
        numbers += values.tolist()
    assert len(found) == int(position * rate / 4096e9 + 1e-6)
    assert found == [3 + n % 70 for n in range(len(found))]
    assert numbers == [n + 1 for n in range(len(found))]
