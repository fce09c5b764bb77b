"""Guests run, stop, go on and end; and no write of theirs escapes the tracking."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import InputError, MigrationError
from testbed.guest import layout, tracking
from testbed.guest.machine import Guest
from testbed.guest.memory import GuestMemory
from testbed.guest.run_block import GO, RUNNING, STOP, STOPPED, RunBlock
from testbed.guest.specification import GuestSpec
from testbed.guest.tasks.build import build, fill_key, filled
from testbed.guest.workloads import Allocate, Iometer, Oltp, Writer

pytestmark = pytest.mark.root

MIB = 1 << 20
BACKENDS = [
    pytest.param("pagemap", marks=pytest.mark.needs_feature("pagemap_scan")),
    "bytemap",
]


def busy(kind="uniform", rate=800 * 10**6, working_set_bytes=16 * MIB, **changes):
    fields = {
        "name": "vm",
        "memory_bytes": 32 * MIB,
        "vcpus": 3,
        "workloads": (Writer(kind, rate, working_set_bytes),),
        "seed": 5,
    }
    return GuestSpec(**{**fields, **changes})


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def progressed(guest, vcpus=slice(None)):
    steps = guest.counters()["steps"]

    def all_further():
        return (guest.counters()["steps"] > steps)[vcpus].all()

    wait_until(all_further)


def all_tasks_did(guest, what):
    def enough():
        return (guest.task_counters()[what] > 3).all()

    wait_until(enough)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["uniform", "sequential", "zipf"])
def test_no_write_is_missed_and_none_made_up(backend, kind):
    """A shadow kept up to date with what is collected, while several vCPUs write, is exact."""
    with Guest.power_on(busy(kind), tracking=backend) as guest:
        tracker = guest.tracker()
        tracker.install()
        shadow = guest.memory.words.copy()
        for _ in range(60):
            pages = tracker.collect()
            assert (np.diff(pages) > 0).all()
            shadow[pages] = guest.memory.words[pages]
        progressed(guest)
        guest.suspend()
        last = np.union1d(tracker.collect(), guest.state_pages())
        assert len(last) > len(guest.state_pages())
        shadow[last] = guest.memory.words[last]
        assert (shadow == guest.memory.words).all()
        assert not len(tracker.collect())  # each write is told once

        guest.resume()
        progressed(guest)
        guest.suspend()
        found = tracker.collect()
        changed = np.flatnonzero((shadow != guest.memory.words).any(axis=1))
        data = [np.setdiff1d(pages, guest.state_pages()).tolist() for pages in (found, changed)]
        assert data[0] == data[1] != []
        tracker.remove()
        guest.resume()
        progressed(guest)  # unprotected memory is written as before


MANY = (
    Writer("uniform", 300 * 10**6, 2 * MIB),
    Writer("sequential", 300 * 10**6, 2 * MIB),
    Writer("zipf", 300 * 10**6, 2 * MIB),
    Allocate(4 * MIB, 40 * 10**6),
)


def test_memory_follows_from_the_counters_alone():
    """What a guest wrote can be worked out from the seed and how many batches each task did."""
    spec = busy(memory_bytes=16 * MIB, workloads=MANY, in_use_bytes=12 * MIB)
    with Guest.power_on(spec) as guest, GuestMemory("again", spec.memory_bytes) as again:
        for _ in range(3):
            progressed(guest)
            guest.suspend()
            guest.resume()
        all_tasks_did(guest, "batches")
        guest.suspend()
        records = guest.task_counters()
        again.fill(filled(spec).start, len(filled(spec)), fill_key(spec))
        for vcpu in range(spec.vcpus):
            for given, task in build(spec, vcpu, again):
                record = records[given.number, vcpu]
                written = sum(len(task.write(again, k)) for k in range(record["batches"]))
                assert record["pages_written"] == written > 0
                del given, task
        data = slice(layout.first_data_page(spec.vcpus), None)
        assert (again.words[data] == guest.memory.words[data]).all()
        assert not again.words[filled(spec).stop :].any()


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
    with Guest.power_on(busy(workloads=())) as guest:
        first = guest.counters()["beat_ns"].copy()
        data = guest.memory.words[len(guest.state_pages()) :].copy()
        wait_until(lambda: guest.counters()["beat_ns"].min() > first.max() + 200_000_000)
        assert (guest.counters()["steps"] == 0).all()
        assert (guest.memory.words[len(guest.state_pages()) :] == data).all()


def test_the_rate_asked_for_is_kept_and_a_stop_is_not_made_up():
    with Guest.power_on(busy(vcpus=2, rate=40 * 10**6)) as guest:
        progressed(guest)

        def written():
            return int(guest.task_counters()["pages_written"].sum()) * 4096, time.monotonic()

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
        with pytest.raises(MigrationError, match="no header"):
            target.resume()
        target.memory.words[:] = source.memory.words
        time.sleep(0.02)
        assert (target.memory.words == source.memory.words).all()
        target.resume()
        progressed(target)
        assert (target.counters()["steps"] > counters["steps"]).all()
        assert (target.counters()["resume_gap_ns"] > 20_000_000).all()
        assert (source.counters() == counters).all()


def test_vcpus_run_the_setup_before_anything_else():
    with Guest.power_on(busy(), vcpu_setup=lambda: os.chdir("/proc")) as guest:
        assert {Path(f"/proc/{pid}/cwd").readlink() for pid in guest.pids} == {Path("/proc")}


def test_vcpus_hold_no_descriptor_of_their_vmx():
    with Path("/etc/hostname").open(), Guest.power_on(busy()) as guest:
        for pid in guest.pids:
            targets = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
            assert "/etc/hostname" not in targets
            assert sum("userfaultfd" in target for target in targets) <= 1  # its own
            own = {str(Path(f"/proc/self/fd/{n}").readlink()) for n in (0, 1, 2)}
            assert {t for t in targets if "memfd" in t or "socket" in t} <= own


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


def test_one_vcpu_is_claimed_while_the_others_run():
    with Guest.power_on(busy()) as guest:
        progressed(guest)
        for vcpu in (1, 1, 0):
            before = guest.counters()
            guest.claim(vcpu)
            assert not guest.running
            still = guest.counters()[vcpu]
            progressed(guest, np.arange(3) != vcpu)
            assert guest.counters()[vcpu] == still
            guest.release(vcpu)
            assert guest.running
            progressed(guest)
            after = guest.counters()[vcpu]
            assert after["stopped_ns"] > before[vcpu]["stopped_ns"]
            assert after["resumes"] == 1  # the guest was not suspended
        guest.claim(2)
        guest.suspend()  # which a vCPU that is claimed already takes part in
        guest.resume()
        progressed(guest)


def test_all_of_a_vcpus_time_is_accounted_for():
    with Guest.power_on(busy(rate=100 * 10**6)) as guest:
        first = guest.counters()["resumed_at_ns"].copy()
        guest.throttle(500_000)
        progressed(guest)
        time.sleep(0.1)
        guest.suspend()
        time.sleep(0.1)
        guest.resume()
        progressed(guest)
        guest.claim(0)
        guest.release(0)
        guest.suspend()
        seen = guest.counters()
        parts = [seen[part] for part in ("run_ns", "idle_ns", "throttled_ns", "stopped_ns")]
        assert (sum(parts) == seen["beat_ns"] - first).all()
        assert all((part > 0).all() for part in parts)
        assert (seen["stopped_ns"] > 90_000_000).all()


def test_workloads_are_switched_on_a_running_guest():
    with Guest.power_on(busy()) as guest:
        progressed(guest)
        guest.switch_workloads(MANY)
        assert guest.running
        assert guest.program.workloads == MANY
        all_tasks_did(guest, "batches")
        assert guest.task_counters().shape == (4, 3)
        guest.switch_workloads(())
        guest.suspend()
        still = guest.memory.words[len(guest.state_pages()) :].copy()
        guest.switch_workloads((Oltp(1000, 4 * MIB),))  # it stays suspended
        assert not guest.running
        assert not guest.task_counters()["batches"].any()
        assert (guest.memory.words[len(guest.state_pages()) :] == still).all()
        guest.resume()
        all_tasks_did(guest, "operations")


def test_a_guest_that_was_switched_is_made_again_from_its_program():
    with Guest.power_on(busy()) as source:
        source.switch_workloads((Writer("zipf", 10**8, MIB),))
        progressed(source)
        source.suspend()
        with Guest.create_masked(source.program) as target:
            target.memory.words[:] = source.memory.words
            done = source.task_counters()["batches"]
            target.resume()
            progressed(target)
            assert (target.task_counters()["batches"] >= done).all()
            changed = (target.memory.words != source.memory.words).any(axis=1).nonzero()[0]
            first = layout.first_data_page(3)
            assert set(changed) <= {*source.state_pages(), *range(first, first + 256)}


@pytest.mark.parametrize(
    "workloads",
    [
        (Writer("uniform", 10**6, 64 * MIB),),
        (Oltp(10, 3 * 4096),),
        (Iometer(MIB, block_bytes=100),),
        (Writer("uniform", 10**6, MIB),) * 9,
    ],
)
def test_workloads_that_do_not_fit_are_refused_and_the_old_ones_run_on(workloads):
    with Guest.power_on(busy()) as guest:
        progressed(guest)
        before = guest.task_counters()["batches"]
        with pytest.raises((InputError, ValueError)):
            guest.switch_workloads(workloads)
        assert guest.program == guest.spec
        progressed(guest)
        assert (guest.task_counters()["batches"] > before).all()
        assert guest.counters()["resumes"].tolist() == [1, 1, 1]


def test_a_task_that_fails_says_why_and_the_others_go_on():
    """An I/O workload whose datastore is not there."""
    work = (Iometer(MIB), Writer("uniform", 10**8, MIB))
    with Guest.power_on(busy(workloads=work, directory="/nonexistent")) as guest:
        wait_until(lambda: len(guest.failed_tasks()) == 3)
        assert guest.failed_tasks() == tuple((0, vcpu, errno.ENOENT) for vcpu in range(3))
        guest.suspend()
        guest.resume()
        progressed(guest)
        assert (guest.task_counters()["batches"][1] > 0).all()


def test_vcpus_run_where_they_are_pinned():
    cpus = sorted(os.sched_getaffinity(0))
    with Guest.power_on(busy(affinity=tuple(cpus[:2]))) as guest:
        pinned = [os.sched_getaffinity(pid) for pid in guest.pids]
        assert pinned == [{cpus[:2][n % len(cpus[:2])]} for n in range(3)]
    with Guest.power_on(busy(vcpus=1, affinity=tuple(cpus))) as guest:
        assert os.sched_getaffinity(guest.pids[0]) == set(cpus)
    with pytest.raises(InputError, match="can't run on CPU 8191"):
        Guest.power_on(busy(affinity=(cpus[0], 8191)))
    assert os.sched_getaffinity(0) == set(cpus)


def test_an_attached_nic_stops_and_goes_on_with_the_vcpus():
    """Another process has the NIC's line of the run block; here this one."""
    with Guest.power_on(busy()) as guest:
        fds = guest.nic_line()
        block = RunBlock(3, os.dup(fds["block"]))
        nic = threading.Thread(target=_follow, args=(block, fds["kick"], fds["answer"]))
        nic.start()
        try:
            before = len(guest.state_pages())
            guest.attach_nic()
            wait_until(lambda: block.state[3] == RUNNING)
            assert len(guest.state_pages()) == before + layout.NIC_PAGES
            guest.suspend()
            assert block.state[3] == STOPPED
            guest.resume()
            assert block.state[3] == RUNNING
            progressed(guest)
            guest.detach_nic()
            wait_until(lambda: block.state[3] == STOPPED)
            guest.suspend()
            guest.resume()
            assert block.state[3] == STOPPED
            nic_ended(nic, block, fds["kick"])
            guest.attach_nic()
            block.state[3] = RUNNING  # so it said when it died
            with pytest.raises(MigrationError, match="NIC process of vm did not stop"):
                guest.suspend(deadline_ns=50_000_000)
            progressed(guest)
        finally:
            nic_ended(nic, block, fds["kick"])
            block.close()


def _follow(block, kick_fd, answer_fd):
    while (command := block.run[3]) in {STOP, GO}:
        block.state[3] = RUNNING if command == GO else STOPPED
        os.eventfd_write(answer_fd, 1)
        select.select([kick_fd], [], [], 1)


def nic_ended(nic, block, kick_fd):
    block.run[3] = 7
    os.eventfd_write(kick_fd, 1)
    nic.join(10)


def test_a_workload_that_takes_all_it_gets_starves_no_other():
    work = (Writer("uniform", 10**12, 8 * MIB), Oltp(200, 4 * MIB), Allocate(2 * MIB))
    with Guest.power_on(busy(vcpus=1, workloads=work)) as guest:
        wait_until(lambda: guest.task_counters()["bytes"][2, 0] == 2 * MIB)
        before = guest.task_counters()
        began = time.monotonic()
        time.sleep(0.5)
        done = guest.task_counters()["operations"][1, 0] - before["operations"][1, 0]
        assert done > 20 * (time.monotonic() - began)  # a tenth of what is asked for
