"""Guests run, stop, go on and end; and no write of theirs escapes the tracking."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import MigrationError
from testbed.guest import tracking
from testbed.guest.layout import control_pages
from testbed.guest.machine import Guest
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.guest.workload import fill, vcpu_workload

pytestmark = pytest.mark.root

MIB = 1 << 20
BACKENDS = [
    pytest.param("pagemap", marks=pytest.mark.needs_feature("pagemap_scan")),
    "bytemap",
]


def busy(**changes):
    fields = {
        "name": "vm",
        "memory_bytes": 32 * MIB,
        "vcpus": 3,
        "workload": "uniform",
        "dirty_rate_bytes_per_s": 800 * 10**6,
        "working_set_bytes": 16 * MIB,
        "seed": 5,
    }
    return GuestSpec(**{**fields, **changes})


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def progressed(guest):
    batches = guest.counters()["batches"]

    def all_further():
        return (guest.counters()["batches"] > batches).all()

    wait_until(all_further)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["uniform", "sequential"])
def test_no_write_is_missed_and_none_made_up(backend, kind):
    """A shadow kept up to date with what is collected, while several vCPUs write, is exact."""
    with Guest.power_on(busy(workload=kind), tracking=backend) as guest:
        tracker = guest.tracker()
        tracker.install()
        shadow = guest.memory.words.copy()
        for _ in range(60):
            pages = tracker.collect()
            assert (np.diff(pages) > 0).all()
            shadow[pages] = guest.memory.words[pages]
        progressed(guest)
        guest.suspend()
        last = np.union1d(tracker.collect(), np.arange(guest.control_pages()))
        assert len(last) > guest.control_pages()
        shadow[last] = guest.memory.words[last]
        assert (shadow == guest.memory.words).all()
        assert not len(tracker.collect())  # each write is told once

        guest.resume()
        progressed(guest)
        guest.suspend()
        found = tracker.collect()
        changed = np.flatnonzero((shadow != guest.memory.words).any(axis=1))
        data = [pages[pages >= guest.control_pages()].tolist() for pages in (found, changed)]
        assert data[0] == data[1] != []
        tracker.remove()
        guest.resume()
        progressed(guest)  # unprotected memory is written as before


@pytest.mark.parametrize("kind", ["uniform", "sequential"])
def test_memory_follows_from_the_counters_alone(kind):
    """What a guest wrote can be worked out from the seed and how many batches it did."""
    spec = busy(workload=kind, memory_bytes=8 * MIB, working_set_bytes=4 * MIB)
    with Guest.power_on(spec) as guest, GuestMemory("again", spec.memory_bytes) as again:
        for _ in range(3):
            progressed(guest)
            guest.suspend()
            guest.resume()
        guest.suspend()
        fill(again, spec)
        for vcpu, record in enumerate(guest.counters()):
            work = vcpu_workload(spec, vcpu)
            assert record["pages_written"] == record["batches"] * work.pages_per_batch
            for batch in range(record["batches"]):
                work.write(again, batch)
        data = slice(control_pages(spec.vcpus), None)
        assert (again.words[data] == guest.memory.words[data]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_suspended_memory_stands_still(backend):
    with Guest.power_on(busy(), tracking=backend) as guest:
        progressed(guest)
        guest.suspend()
        assert not guest.running
        still = guest.memory.words.copy()
        time.sleep(0.05)
        assert (guest.memory.words == still).all()
        guest.resume()
        assert guest.running
        gap_ns = guest.resume_gap_ns()
        assert 50_000_000 < gap_ns < 2_000_000_000
        progressed(guest)


def test_an_idle_guest_beats_and_writes_nothing_else():
    with Guest.power_on(busy(workload="idle")) as guest:
        first = guest.counters()["beat_ns"].copy()
        data = guest.memory.words[guest.control_pages() :].copy()
        time.sleep(0.2)
        assert (guest.counters()["beat_ns"] > first + 50_000_000).all()
        assert (guest.counters()["batches"] == 0).all()
        assert (guest.memory.words[guest.control_pages() :] == data).all()


def test_the_rate_asked_for_is_kept_and_a_stop_is_not_made_up():
    with Guest.power_on(busy(vcpus=2, dirty_rate_bytes_per_s=40 * 10**6)) as guest:
        progressed(guest)

        def written():
            return int(guest.counters()["pages_written"].sum()) * 4096, time.monotonic()

        shares = []
        for _ in range(5):  # another program may have the CPU, or part the two readings
            before, began = written()
            time.sleep(0.3)
            middle, ended = written()
            shares.append((middle - before) / (ended - began) / 40e6)
        assert any(0.9 <= share <= 1.05 for share in shares), shares
        guest.suspend()
        middle, _ = written()
        time.sleep(0.3)
        resumed = time.monotonic()
        guest.resume()
        progressed(guest)
        after, now = written()
        assert 0 < after - middle < 50e6 * (now - resumed) + 2e6  # 12e6 were due meanwhile


def test_a_masked_guest_writes_nothing_and_starts_from_memory():
    spec = busy()
    with Guest.power_on(spec) as source, Guest.create_masked(spec) as target:
        assert not set(source.pids) & set(target.pids)
        progressed(source)
        source.suspend()
        counters = source.counters()
        with pytest.raises(MigrationError, match="control page"):
            target.resume()
        target.memory.words[:] = source.memory.words
        time.sleep(0.02)
        assert (target.memory.words == source.memory.words).all()
        target.resume()
        progressed(target)
        assert (target.counters()["batches"] > counters["batches"]).all()
        assert (target.counters()["resume_gap_ns"] > 20_000_000).all()
        assert (source.counters() == counters).all()


def test_vcpus_run_the_setup_before_anything_else():
    with Guest.power_on(busy(), vcpu_setup=lambda: os.chdir("/proc")) as guest:
        assert {Path(f"/proc/{pid}/cwd").readlink() for pid in guest.pids} == {Path("/proc")}


def test_vcpus_hold_no_descriptor_of_their_vmx():
    with Path("/etc/hostname").open(), Guest.power_on(busy()) as guest:
        for pid in guest.pids:
            targets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
            assert "/etc/hostname" not in targets
            assert {t for t in targets if "memfd" in t or "socket" in t or "userfault" in t} <= {
                str(Path(f"/proc/self/fd/{n}").readlink()) for n in (0, 1, 2)
            }


def test_a_dead_vcpu_is_noticed():
    with Guest.power_on(busy()) as guest:
        assert guest.dead_vcpus() == ()
        os.kill(guest.pids[1], signal.SIGKILL)
        wait_until(lambda: guest.dead_vcpus() == (1,))
        with pytest.raises(MigrationError, match="died"):
            guest.suspend()


def test_a_vcpu_that_does_not_stop_is_an_error_and_the_guest_goes_on():
    with Guest.power_on(busy()) as guest:
        progressed(guest)
        os.kill(guest.pids[2], signal.SIGSTOP)
        with pytest.raises(MigrationError, match=r"\[2\] of vm did not stop"):
            guest.suspend(deadline_ns=100_000_000)
        os.kill(guest.pids[2], signal.SIGCONT)
        progressed(guest)


def test_a_vcpu_that_cannot_start_is_an_error_that_leaves_nothing(capfd):
    def fail():
        raise RuntimeError("no such namespace")

    with pytest.raises(Exception, match="died"):
        Guest.power_on(busy(), vcpu_setup=fail)
    assert "no such namespace" in capfd.readouterr().err


def test_power_off_leaves_no_process():
    with Guest.power_on(busy()) as guest:
        pids = guest.pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    guest.power_off()  # twice is once


def test_vcpus_die_with_their_vmx():
    read, write = os.pipe()
    vmx = os.fork()
    if not vmx:
        guest = Guest.power_on(busy())
        os.write(write, " ".join(map(str, guest.pids)).encode())
        signal.pause()
    try:
        pids = os.read(read, 100).decode().split()
    finally:
        os.kill(vmx, signal.SIGKILL)
        os.waitpid(vmx, 0)
        os.close(read)
        os.close(write)
    assert len(pids) == 3

    def gone(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(lambda: all(map(gone, pids)))


def test_the_probe_chooses_what_works():
    lacks = tracking.available()
    name, reason = tracking.probe()
    assert lacks[name] is None
    assert reason
