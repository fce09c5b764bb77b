"""Overcommitted guests move with their swap file where it is, and no word is lost."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from testbed.errors import MigrationError
from testbed.guest import layout
from testbed.guest.machine import Guest
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.guest.tasks.build import build, fill_key, filled
from testbed.guest.workloads import Oltp, Writer
from testbed.migration import swap_bitmap
from testbed.migration.destination import Destination, DestinationHooks
from testbed.migration.phase import MigrationFailed, MigrationUncertain, Phase
from testbed.migration.sdps import SdpsSpec
from testbed.migration.source import SourceHooks, migrate, take_back
from testbed.migration.specification import MigrationSpec, StreamSpec
from tests.kernel.namespaced import in_a_namespace

pytestmark = pytest.mark.root

MIB = 1 << 20
TRACKINGS = [
    pytest.param("pagemap", marks=pytest.mark.needs_feature("pagemap_scan")),
    "bytemap",
]


def guest_spec(directory, **changes):
    """Two vCPUs, each of which writes over all of its memory, a third of which is swapped."""
    fields = {
        "name": "vm",
        "memory_bytes": 24 * MIB,
        "vcpus": 2,
        "workloads": (
            Writer("uniform", 20 * MIB, 12 * MIB),
            Oltp(commits_per_s=300, pages_per_commit=6, working_set_bytes=11 * MIB, exponent=0.5),
        ),
        "seed": 3,
        "resident_bytes": 16 * MIB,
        "directory": str(directory),
    }
    return GuestSpec(**{**fields, **changes})


def specification(guest, **changes):
    fields = {
        "migration_id": time.time_ns() // 1000,
        "secret": secrets.token_bytes(32),
        "guest": guest,
        "source_address": "127.0.0.1",
        "destination_address": "127.0.0.1",
        "timeout_ns": 10_000_000_000,
        "switchover_goal_ns": 3_000_000,
        "sdps": SdpsSpec(),
    }
    return MigrationSpec(**{**fields, **changes})


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def swaps(guest, count):
    """Wait until so many more pages have come in."""
    before = guest.memory.swap_counters().swap_ins
    wait_until(lambda: guest.memory.swap_counters().swap_ins >= before + count)


def wrong_pages(guest):
    """How many data pages of a guest are not what follows from its counters, wherever they are."""
    spec = guest.spec
    guest.suspend()
    records, memory = guest.task_counters(), guest.memory
    with GuestMemory("again", spec.memory_bytes) as again:
        again.fill(filled(spec).start, len(filled(spec)), fill_key(spec))
        for vcpu in range(spec.vcpus):
            for given, task in build(spec, vcpu, again):
                do = task.transact if isinstance(spec.workloads[given.number], Oltp) else task.write
                for batch in range(records[given.number, vcpu]["batches"]):
                    do(again, batch)
                del given, task, do
        slots = memory.table()
        words = np.fromfile(f"/proc/self/fd/{memory.fd}", np.uint64).reshape(-1, 512)
        out = np.flatnonzero(slots)
        words[out] = memory._file[slots[out] - 1]
        first = layout.first_data_page(spec.vcpus)
        return int((again.words[first:] != words[first:]).any(axis=1).sum())


def moved(guest, migration, tracking):
    """Migrate it and power it off here; the guest there, which is its own, and the report."""
    with Destination(migration, tracking=tracking) as there:
        arrivals, receive = [], there.receive
        thread = threading.Thread(target=lambda: arrivals.append(receive()))
        thread.start()
        report = migrate(guest, migration)
        thread.join()
        guest.power_off()
        here = arrivals[0].guest
        swap_bitmap.settle(here.memory)
        return here, report


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_an_overcommitted_guest_moves_there_and_back(tmp_path, tracking):
    spec = guest_spec(tmp_path)
    kinds = [
        {"bitmap": "compacted", "zero_pages": True},
        {"bitmap": "full", "streams": (StreamSpec("127.0.0.1", "127.0.0.1"),) * 3},
        {"encrypted": True},
    ]

    def work():
        told = []
        guest = Guest.power_on(spec, tracking=tracking)
        for changes in kinds:
            swaps(guest, 300)
            guest, report = moved(guest, specification(spec, **changes), tracking)
            told.append((report, guest.memory.swap_counters()))
        swaps(guest, 300)
        wait_until(lambda: guest.memory.swap_counters().swapped_pages > 1900)  # they go out again
        assert (tmp_path / "vm.vswp").stat().st_size == 8 * MIB
        with guest:
            return told, wrong_pages(guest), guest.memory.swap_counters()

    told, wrong, counters = in_a_namespace(work)
    assert wrong == 0
    last = 0
    for report, after in told:
        switchover = report.switchover
        assert 0 < switchover.swapped_pages <= 2048
        least = 4 * switchover.swapped_pages + 2 * 16
        assert least < switchover.swap_bitmap_bytes <= least + 6144 // 8
        assert after.swap_ins >= last + 300  # it counts on
        last = after.swap_ins
        assert report.iterations[0].pages < 6144 - 1000  # swapped pages were not sent
    full = told[1][0].switchover
    assert full.swap_bitmap_bytes == 4 * full.swapped_pages + 2 * 16 + 6144 // 8
    assert counters.swap_ins > last
    assert not list(tmp_path.iterdir())


@contextmanager
def destination_elsewhere(migration, at_open=None, at_hold=None):
    """A destination in a process of its own, which does that when the guest runs there."""
    mine, its = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            with Destination(migration) as there:
                its.send(b"r")
                hooks = DestinationHooks(at_hold, lambda: at_open(there.guest))
                there.receive(hooks)
        finally:
            os._exit(0)
    assert mine.recv(1) == b"r"
    yield
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    mine.close()
    its.close()


def test_it_goes_on_at_its_source_if_the_destination_dies_after_it_ran_there(tmp_path):
    """It wrote all over its memory there, but not to the slots that the source's table tells of."""
    spec = guest_spec(tmp_path)
    migration = specification(spec)

    def run_and_die(guest):
        swaps(guest, 700)
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        with Guest.power_on(spec) as guest:
            swaps(guest, 500)
            with destination_elsewhere(migration, run_and_die), pytest.raises(MigrationUncertain):
                migrate(guest, migration)
            assert not guest.running
            take_back(guest)
            swaps(guest, 500)
            assert (tmp_path / "vm.vswp").exists()
            return wrong_pages(guest)

    assert in_a_namespace(work) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("phase", ["before the swap bitmap is told", "after it"])
def test_a_migration_that_fails_in_the_stun_changes_nothing(tmp_path, phase):
    spec = guest_spec(tmp_path)
    migration = specification(spec, verify=True)

    def fail():
        raise MigrationError("its port can't be closed")

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        with Guest.power_on(spec) as guest:
            swaps(guest, 500)
            hooks = SourceHooks(cut=fail) if phase.startswith("before") else SourceHooks()
            elsewhere = destination_elsewhere(migration, at_hold=die)
            with elsewhere, pytest.raises(MigrationFailed) as failed:
                migrate(guest, migration, hooks)
            assert failed.value.phase is Phase.SWITCHOVER
            swaps(guest, 500)
            assert (tmp_path / "vm.vswp").exists()
            return wrong_pages(guest)

    assert in_a_namespace(work) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"quick_resume": True}, {"remaining_pages": "after resume"}])
def test_it_is_not_resumed_without_pages(tmp_path, changes):
    spec = guest_spec(tmp_path)
    nobody = specification(spec, source_address="192.0.2.1", **changes)
    with Guest.power_on(spec) as guest:
        with pytest.raises(MigrationFailed, match="pages of it are in its swap file"):
            migrate(guest, nobody)
        assert guest.running
