"""What a guest writes is recorded, and a replay of it dirties the same pages at the same pace."""

from __future__ import annotations

import time

import numpy as np
import pytest

from testbed.guest.layout import first_data_page
from testbed.guest.machine import Guest
from testbed.guest.recording import record
from testbed.guest.specification import GuestSpec
from testbed.guest.trace_file import parse, render
from testbed.guest.workloads import Replay, TraceRange, Writer

pytestmark = pytest.mark.root

MIB = 1 << 20
MS = 1_000_000
BACKENDS = [
    pytest.param("pagemap", marks=pytest.mark.needs_feature("pagemap_scan")),
    "bytemap",
]


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def doing(*workloads, vcpus=2):
    return GuestSpec("vm", 64 * MIB, vcpus, workloads, 7)


def written(guest):
    return int(guest.task_counters()["pages_written"].sum())


def pages_of(trace):
    """The data pages that the ranges of a trace cover."""
    covered = [np.arange(one.first_page, one.first_page + one.pages) for one in trace.ranges]
    return set(np.concatenate(covered).tolist())


def due(trace):
    """How many page writes a trace asks for."""
    return sum(
        int((one.until_ns - one.at_ns) * one.rate_bytes_per_s / 4096e9 + 1e-6)
        for one in trace.ranges
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_replay_dirties_the_pages_that_were_recorded(backend):
    writer = Writer("sequential", 20 * 10**6, 48 * MIB)
    with Guest.power_on(doing(writer), tracking=backend) as guest:
        wait_until(lambda: written(guest) > 0)
        before = written(guest)
        trace = record(guest, 400 * MS, 100 * MS)
        after = written(guest)
        wait_until(lambda: written(guest) > after)  # it runs on
    assert {one.at_ns // (50 * MS) for one in trace.ranges} > {0}
    # No page is written twice in so short a time, so what is dirty is what was written.
    assert 0.5 * (after - before) < due(trace) <= after - before
    assert len(pages_of(trace)) == due(trace)

    again = Replay(parse(render(trace.ranges), "recorded.csv"))
    with Guest.power_on(doing(again), tracking=backend) as guest:
        wait_until(lambda: written(guest) >= due(trace))
        time.sleep(0.05)
        assert written(guest) == due(trace)
        first = first_data_page(2)
        changed = guest.memory.words[:, 1] < 1 << 50  # numbers of writes, among random words
        assert set((np.flatnonzero(changed) - first).tolist()) >= pages_of(trace)
        assert guest.failed_tasks() == ()


def test_a_recorded_replay_has_as_many_dirty_pages_in_each_interval():
    """Random writes, so many that ranges have to be bridged, come out in the same number."""
    writer = Writer("uniform", 100 * 10**6, 48 * MIB)
    with Guest.power_on(doing(writer)) as guest:
        before = written(guest)
        trace = record(guest, 500 * MS, 10 * MS)
        after = written(guest)
    assert len(trace.ranges) <= 8000
    assert due(trace) <= after - before
    with Guest.power_on(doing(trace)) as guest:
        tracker = guest.tracker()
        tracker.install()
        collected = 0
        while written(guest) < due(trace):
            pages = tracker.collect()
            collected += int((pages >= first_data_page(2)).sum())
            time.sleep(0.01)
        guest.suspend()
        collected += int((tracker.collect() >= first_data_page(2)).sum())
        tracker.remove()
        assert collected == pytest.approx(due(trace), rel=0.3)


def test_a_trace_goes_on_where_it_was_after_a_move():
    spec = doing(Replay((TraceRange(0, 1500 * MS, 0, 10**4, 4096 * 2000),)))
    with Guest.create_masked(spec) as target, Guest.power_on(spec) as source:
        wait_until(lambda: written(source) > 100)
        source.suspend()
        here = written(source)
        assert here < 3000
        target.memory.words[:] = source.memory.words
        time.sleep(0.5)
        resumed = time.monotonic()
        target.resume()
        wait_until(lambda: written(target) > here)
        further = written(target) - here
        assert further < 2000 * (time.monotonic() - resumed) + 500  # 1000 were due meanwhile
        wait_until(lambda: written(target) >= 3000)
        time.sleep(0.02)
        target.suspend()
        assert written(target) == 3000
        first = first_data_page(2)
        words = target.memory.words[first : first + 3001, 1]
        assert (words[:3000] == np.arange(1, 3001)).all()
        assert words[3000] != 3001
        assert written(source) == here


def test_a_recording_that_does_not_fit_its_interval_is_refused():
    with Guest.power_on(doing()) as guest:
        for duration_ns, interval_ns in ((MS, 2 * MS), (MS, 0), (8001 * MS, MS)):
            with pytest.raises(ValueError, match="samples every"):
                record(guest, duration_ns, interval_ns)
        assert record(guest, 20 * MS, 10 * MS).ranges == ()
