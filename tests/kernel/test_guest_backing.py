"""Guests whose memory is large pages, versions, or partly in a swap file."""

from __future__ import annotations

import mmap
import os
import secrets
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import KernelError
from testbed.guest import large_pages, layout
from testbed.guest.machine import Guest
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import LARGE_PAGE_BYTES, GuestSpec
from testbed.guest.swap import OvercommittedMemory
from testbed.guest.tasks.build import build, fill_key, filled
from testbed.guest.trace import TraceMode
from testbed.guest.workloads import Writer
from testbed.lab.compare import compare
from testbed.migration.destination import Destination, DestinationHooks
from testbed.migration.source import migrate
from testbed.migration.specification import MigrationSpec
from tests.kernel.namespaced import in_a_namespace

pytestmark = pytest.mark.root

MIB = 1 << 20


def busy(**changes):
    fields = {
        "name": "vm",
        "memory_bytes": 32 * MIB,
        "vcpus": 2,
        "workloads": (Writer("uniform", 100 * 10**6, 16 * MIB),),
        "seed": 3,
    }
    return GuestSpec(**{**fields, **changes})


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def goes_on(guest):
    steps = guest.counters()["steps"]

    def all_further():
        return (guest.counters()["steps"] > steps).all()

    wait_until(all_further)


# ---------------------------------------------------------------- large pages


@pytest.fixture
def huge_pages():
    """Let the machine give as many huge pages as a test takes, and no more afterwards."""
    path = Path("/proc/sys/vm/nr_overcommit_hugepages")
    before = path.read_text()
    path.write_text(str(int(before) + 16))
    yield
    path.write_text(before)


@pytest.mark.needs_feature("pagemap_scan")
@pytest.mark.parametrize("stop", ["stop-based", "loose"])
def test_huge_pages_are_traced_by_2_mib(huge_pages, stop):
    with Guest.power_on(busy(page_bytes=LARGE_PAGE_BYTES)) as guest:
        assert guest.memory.trace_bytes == LARGE_PAGE_BYTES
        tracker = guest.tracker(TraceMode(stop, "2MiB"))
        tracker.install()
        goes_on(guest)
        pages = tracker.collect()
        assert len(pages) == 512 * len(np.unique(pages // 512)) > 0
        report = tracker.report()
        assert report.operations == {"2MiB": 2 * 16}
        assert len(pages) // 512 <= report.page_fires <= 2 * 16
        with pytest.raises(KernelError, match="traced by 2MiB"):
            guest.tracker(TraceMode(stop, "4KiB"))
        tracker.remove()


@pytest.mark.needs_feature("pagemap_scan")
def test_collapsed_pages_are_mapped_large_and_traced_small():
    with Guest.power_on(busy(page_bytes=LARGE_PAGE_BYTES)) as guest:
        assert large_pages.mapped_large_bytes(guest.memory.address) == 32 * MIB
        tracker = guest.tracker(TraceMode("loose", "4KiB"))
        tracker.install()
        assert tracker.report().operations == {"4KiB": 2 * 8192}
        tracker.remove()


def test_a_machine_without_large_pages_is_told_what_to_do(monkeypatch):
    def refused(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(large_pages, "_collapse", refused)
    with pytest.raises(KernelError, match="MADV_COLLAPSE: Invalid argument") as error:
        GuestMemory("vm", 32 * MIB, LARGE_PAGE_BYTES)
    assert "sysctl vm.nr_overcommit_hugepages=16" in error.value.remedy


# ---------------------------------------------------------------- synthetic memory


def moved(spec):
    """Migrate a guest over loopback; the report, and how its memories compared at rest."""
    migration = MigrationSpec(
        migration_id=1,
        secret=secrets.token_bytes(32),
        guest=spec,
        source_address="127.0.0.1",
        destination_address="127.0.0.1",
        switchover_goal_ns=50_000_000,
        timeout_ns=10_000_000_000,
        verify=True,
    )
    seen = []
    with Destination(migration) as there, Guest.power_on(spec) as guest:

        def hold():
            with ExitStack() as undo:
                maps = [mmap.mmap(one.memory.fd, 0) for one in (guest, there.guest)]
                for memory in maps:
                    undo.enter_context(memory)
                seen.append(compare(*maps))

        arrivals = []
        thread = threading.Thread(
            target=lambda: arrivals.append(there.receive(DestinationHooks(hold=hold)))
        )
        thread.start()
        report = migrate(guest, migration)
        thread.join()
        here = arrivals[0].guest
        goes_on(here)
        with here:
            return report, seen[0]


def test_a_vm_larger_than_it_looks_moves_and_every_version_arrives():
    spec = busy(memory_bytes=512 * MIB, backing="synthetic")
    report, found = in_a_namespace(lambda: moved(spec))
    assert (found.pages, found.different, found.by) == (512 * 256, [], "version")
    first, *_ = report.iterations
    assert first.wire_bytes > spec.memory_bytes  # every byte of every page
    assert sum(it.dirty_pages for it in report.iterations) > 0
    assert "not claimed" in report.tracking


def test_a_vm_on_large_pages_moves_to_large_pages(huge_pages):
    spec = busy(page_bytes=LARGE_PAGE_BYTES)  # huge ones here, collapsed ones there, or both
    report, found = in_a_namespace(lambda: moved(spec))
    assert (found.pages, found.different, found.by) == (32 * 256, [], "content")
    assert report.tracking in {"pagemap", "bytemap"}


# ---------------------------------------------------------------- overcommitted memory


def test_an_overcommitted_guest_writes_what_it_would_have_written(tmp_path):
    """Its memory follows from its counters as any guest's, though a third of it is swapped."""
    spec = busy(resident_bytes=10 * MIB, directory=str(tmp_path))
    with Guest.power_on(spec) as guest, GuestMemory("again", spec.memory_bytes) as again:
        wait_until(lambda: guest.memory.swap_counters().swap_ins > 2000)
        guest.suspend()
        assert os.fstat(guest.memory.fd).st_blocks * 512 <= 12 * MIB
        records = guest.task_counters()
        again.fill(filled(spec).start, len(filled(spec)), fill_key(spec))
        for vcpu in range(spec.vcpus):
            for given, task in build(spec, vcpu, again):
                for batch in range(records[given.number, vcpu]["batches"]):
                    task.write(again, batch)
                del given, task
        words = guest.memory.words.copy()
        bits = np.frombuffer(guest.memory.swap_bitmap(), np.uint8)
        swapped = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        for page in swapped:  # this process's own now: the vCPUs stand still
            guest.memory.swap_in(np.array([page]))
            words[page] = guest.memory.words[page]
        first = layout.first_data_page(spec.vcpus)
        assert (again.words[first:] == words[first:]).all()
    assert not list(tmp_path.iterdir())


def test_a_full_datastore_is_an_error_before_the_vm_runs(tmp_path):
    mounted = tmp_path / "full"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", mounted], check=True)
    try:
        with pytest.raises(KernelError, match="No space left") as refused:
            Guest.power_on(busy(resident_bytes=24 * MIB, directory=str(mounted)))
        assert "free room on the datastore" in refused.value.remedy
        assert not list(mounted.iterdir())
        with OvercommittedMemory("vm", 2 * MIB, 3 * MIB // 2, str(mounted)) as memory:
            assert memory.swap_counters().swapped_pages == 128
    finally:
        subprocess.run(["umount", mounted], check=True)
