"""Tracing is laid over a running guest; nothing escapes it, and it says what it cost."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict

import numpy as np
import pytest

from testbed.errors import KernelError, MigrationError
from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.guest.trace import TraceMode
from testbed.guest.tracing import CHUNK_BYTES
from testbed.guest.workloads import Writer

pytestmark = [pytest.mark.root, pytest.mark.needs_feature("pagemap_scan")]

MIB = 1 << 20
STOPS = ["stop-based", "loose"]


def busy(**changes):
    fields = {
        "name": "vm",
        "memory_bytes": 80 * MIB,
        "vcpus": 2,
        "workloads": (Writer("uniform", 200 * 10**6, 40 * MIB),),
        "seed": 3,
    }
    return GuestSpec(**{**fields, **changes})


def goes_on(guest, what="steps"):
    before, deadline = guest.counters()[what], time.monotonic() + 10
    while not (guest.counters()[what] > before).all():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("granularity", ["4KiB", "1GiB"])
def test_no_write_after_the_install_is_missed(stop, granularity):
    with Guest.power_on(busy()) as guest:
        tracker = guest.tracker(TraceMode(stop, granularity))
        tracker.install()
        shadow = guest.memory.words.copy()
        for _ in range(20):
            pages = tracker.collect()
            shadow[pages] = guest.memory.words[pages]
        goes_on(guest)
        guest.suspend()
        last = np.union1d(tracker.collect(), guest.state_pages())
        shadow[last] = guest.memory.words[last]
        assert (shadow == guest.memory.words).all()
        tracker.remove()
        guest.resume()
        goes_on(guest)


@pytest.mark.parametrize("stop", STOPS)
def test_the_report_tells_what_was_done_and_who_stood_still(stop):
    with Guest.power_on(busy()) as guest:
        resumes = guest.counters()["resumes"].copy()
        stopped = guest.counters()["stopped_ns"].copy()
        began = time.monotonic_ns()
        tracker = guest.tracker(TraceMode(stop, "4KiB"))
        tracker.install()
        took_ns = time.monotonic_ns() - began
        report = tracker.report()
        assert report.operations == {"4KiB": 2 * 80 * 256}
        assert not report.modelled
        assert 0 < report.protect_ns < report.install_ns == report.measured_install_ns <= took_ns
        assert report.page_fires == 0
        # every vCPU stood still, as it says itself too; a claim does not suspend the guest
        itself = guest.counters()["stopped_ns"] - stopped
        assert len(report.stopped_ns) == 2
        assert (itself > 0).all()
        once = stop == "stop-based"
        assert (guest.counters()["resumes"] - resumes).tolist() == [int(once)] * 2
        if once:
            assert report.longest_stop_ns == max(report.stopped_ns) >= report.protect_ns
        else:
            chunks = -(-80 * MIB // CHUNK_BYTES)
            assert report.longest_stop_ns >= max(report.stopped_ns) / chunks
            assert sum(report.stopped_ns) >= report.protect_ns
        goes_on(guest)
        assert len(tracker.collect()) <= tracker.report().page_fires
        tracker.remove()


def test_what_1_gib_would_do_is_counted_from_the_pages_found_and_labelled():
    with Guest.power_on(busy(workloads=())) as guest:
        tracker = guest.tracker(TraceMode("loose", "1GiB"))
        tracker.install()
        report = tracker.report()
        assert report.modelled
        assert report.operations == {"1GiB": 2}  # one for each vCPU's page tables
        assert report.install_ns == round(2 * report.cost_ns) < report.measured_install_ns
        goes_on(guest, "beat_ns")
        tracker.collect()
        report = tracker.report()  # idle vCPUs write their records, all in the first 2 MiB
        assert report.broken_down == {"2MiB": 2, "4KiB": 2}
        assert report.break_down_ns == round(4 * 512 * report.cost_ns)
        assert report.page_fires >= 2
        assert asdict(report)["mode"] == {"stop": "loose", "granularity": "1GiB"}
        tracker.remove()


def test_a_grain_that_the_kernel_does_not_trace_is_refused():
    with (
        Guest.power_on(busy(workloads=())) as guest,
        pytest.raises(KernelError, match="traced by 4KiB") as refused,
    ):
        guest.tracker(TraceMode("loose", "2MiB"))
    assert "huge pages" in refused.value.remedy


def test_the_byte_map_protects_nothing():
    with Guest.power_on(busy(), tracking="bytemap") as guest:
        tracker = guest.tracker(TraceMode("stop-based", "4KiB"))
        tracker.install()
        goes_on(guest)
        assert len(tracker.collect())
        report = tracker.report()
        assert (report.mechanism, report.operations, report.page_fires) == ("bytemap", {}, 0)
        assert report.stopped_ns == (0, 0)
        tracker.remove()


@pytest.mark.parametrize("stop", STOPS)
def test_a_vcpu_that_dies_meanwhile_is_an_error_and_the_others_run_on(stop):
    with Guest.power_on(busy()) as guest:
        os.kill(guest.pids[1], signal.SIGKILL)
        tracker = guest.tracker(TraceMode(stop, "4KiB"))
        with pytest.raises((KernelError, MigrationError)):
            tracker.install()
        before, deadline = guest.counters()["steps"][0], time.monotonic() + 10
        while guest.counters()["steps"][0] <= before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
