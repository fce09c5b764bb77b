"""Disk I/O of a guest: real requests into and out of guest memory, and what a bad disk does."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import InputError, KernelError
from testbed.guest.aio import READ, WRITE, AioFile
from testbed.guest.iometer_file import iometer_path, prepare_file
from testbed.guest.layout import first_data_page
from testbed.guest.machine import Guest
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.guest.tasks.build import build, regions
from testbed.guest.tasks.iometer import BLOCK_WORD, REQUEST_WORD
from testbed.guest.workloads import Iometer, Oltp

pytestmark = pytest.mark.root

MIB = 1 << 20
FILE_BYTES = 8 * MIB
STATE = first_data_page(2)
BACKENDS = [
    pytest.param("pagemap", marks=pytest.mark.needs_feature("pagemap_scan")),
    "bytemap",
]


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def doing(directory, *others, vcpus=2, **changes):
    workload = Iometer(**{"file_bytes": FILE_BYTES, **changes})
    return GuestSpec("vm", 8 * MIB, vcpus, (workload, *others), 7, directory=str(directory))


def operations(guest):
    return guest.task_counters()["operations"][0]


def progressed(guest, by=200):
    before = operations(guest)
    wait_until(lambda: (operations(guest) > before + by).all() or guest.failed_tasks())
    assert guest.failed_tasks() == ()


def pages_of(directory):
    return np.fromfile(iometer_path(str(directory), "vm"), np.uint64).reshape(-1, 512)


def write_all(directory):
    """Every block as if it had been written, with content of its own."""
    words = np.random.default_rng(1).integers(1, 2**63, (FILE_BYTES // 4096, 512), np.uint64)
    words[:, BLOCK_WORD] = np.arange(len(words))
    words.tofile(iometer_path(str(directory), "vm"))
    return words


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of this type; the tests' mount namespace is their own."""
    made = []

    def mount(kind, options="rw"):
        place = tmp_path / f"{kind}{len(made)}"
        place.mkdir()
        subprocess.run(["mount", "-t", kind, "-o", options, "none", str(place)], check=True)
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_disk_writes_into_guest_memory_is_found_dirty(tmp_path, backend):
    """A shadow kept up to date with what is collected, while disk reads come in, is exact."""
    prepare_file(str(tmp_path), "vm", FILE_BYTES)
    disk = write_all(tmp_path)
    spec = doing(tmp_path, read_percent=100)
    with Guest.power_on(spec, tracking=backend) as guest:
        tracker = guest.tracker()
        tracker.install()
        shadow = guest.memory.words.copy()
        for _ in range(30):
            for _ in range(5):
                pages = tracker.collect()
                shadow[pages] = guest.memory.words[pages]
            guest.suspend()  # with the last requests begun before the last collection
            pages = tracker.collect()
            shadow[pages] = guest.memory.words[pages]
            assert (shadow[STATE:] == guest.memory.words[STATE:]).all()
            guest.resume()
        progressed(guest)
        guest.suspend()
        tracker.collect()
        buffers = np.array(regions(spec)[0])
        assert len(buffers) == 16
        read = guest.memory.words[buffers]
        assert (read[:, 2:500] == disk[read[:, BLOCK_WORD], 2:500]).all()

        guest.resume()
        tracker.collect()
        progressed(guest)
        guest.suspend()
        assert set(buffers) <= set(tracker.collect().tolist())
        tracker.remove()


@pytest.mark.parametrize("block_bytes", [512, 4096, 65536])
def test_what_is_written_proves_itself_and_nothing_is_under_way_when_stopped(tmp_path, block_bytes):
    assert prepare_file(str(tmp_path), "vm", FILE_BYTES) in {True, False}
    spec = doing(tmp_path, block_bytes=block_bytes, outstanding=5)
    with Guest.power_on(spec) as guest:
        progressed(guest)
        guest.suspend()
        record = guest.task_counters()[0]
        assert (record["batches"] == record["operations"]).all()
        assert (record["bytes"] == record["operations"] * block_bytes).all()
        assert (record["latency"].sum(axis=1) == record["operations"]).all()
        assert (record["latency_max_ns"] * record["operations"] >= record["latency_sum_ns"]).all()
        memory, disk = guest.memory.words.copy(), pages_of(tmp_path)
        time.sleep(0.05)
        assert (guest.memory.words == memory).all()
        assert (pages_of(tmp_path) == disk).all()

        disk = disk.reshape(-1, min(block_bytes, 4096) // 8)
        each = -(-block_bytes // 4096)
        blocks, requests = disk[:, BLOCK_WORD], disk[:, REQUEST_WORD].astype(np.int64)
        written = np.flatnonzero(requests)
        assert (blocks[written] == written // each).all()
        for vcpu in range(2):
            ((_, task),) = build(spec, vcpu, guest.memory)
            asked, reads = task.requests(0, record["operations"][vcpu])
            mine = written[np.isin(written // each, task.blocks)]
            assert set(mine // each) == set(asked[~reads])
            assert (asked[requests[mine] - 1] == mine // each).all()
            assert not reads[requests[mine] - 1].any()
            assert reads.mean() == pytest.approx(0.67, abs=0.15)


def test_it_goes_on_in_another_memory_as_after_a_move(tmp_path):
    prepare_file(str(tmp_path), "vm", FILE_BYTES)
    spec = doing(tmp_path)
    with Guest.power_on(spec) as source, Guest.create_masked(spec) as target:
        progressed(source)
        source.suspend()
        before = source.task_counters()[0]
        target.memory.words[:] = source.memory.words
        time.sleep(0.1)
        target.resume()
        progressed(target)
        after = target.task_counters()[0]
        assert (after["batches"] > before["batches"]).all()
        assert (after["longest_gap_ns"] > 100_000_000).all()
        assert (source.task_counters()[0] == before).all()


def test_requests_are_paced_and_so_many_are_outstanding(tmp_path):
    prepare_file(str(tmp_path), "vm", FILE_BYTES)
    with Guest.power_on(doing(tmp_path, iops=400)) as guest:
        progressed(guest, by=5)
        rates = []
        for _ in range(5):  # another program may have the CPU, or part the two readings
            began, before = time.monotonic(), operations(guest).sum()
            time.sleep(0.3)
            rates.append((operations(guest).sum() - before) / (time.monotonic() - began))
        assert any(300 < rate < 440 for rate in rates), rates
        assert all(rate < 800 for rate in rates), rates
    with GuestMemory("vm", 8 * MIB) as memory:
        for outstanding, depths in ((16, [5, 5, 6]), (1, [1, 1, 1])):
            spec = doing(tmp_path, vcpus=3, outstanding=outstanding)
            assert [build(spec, vcpu, memory)[0][1].depth for vcpu in range(3)] == depths


def test_synthetic_memory_is_read_into_too(tmp_path):
    prepare_file(str(tmp_path), "vm", FILE_BYTES)
    spec = replace(doing(tmp_path, read_percent=100), backing="synthetic")
    with Guest.power_on(spec) as guest:
        tracker = guest.tracker()
        tracker.install()
        progressed(guest)
        guest.suspend()
        assert set(regions(spec)[0]) <= set(tracker.collect().tolist())
        tracker.remove()


@pytest.mark.parametrize("trouble", ["full", "missing", "other content", "short"])
def test_a_bad_disk_ends_the_workload_and_the_vcpu_lives_on(tmp_path, mounted, trouble):
    place = mounted("tmpfs", "size=1m")
    spec = doing(place, Oltp(500, MIB), read_percent=0 if trouble == "full" else 100)
    path = iometer_path(str(place), "vm")
    if trouble == "full":  # blocks that nothing was allocated for
        path.touch()
        os.truncate(path, FILE_BYTES)
    elif trouble == "other content":
        path.symlink_to(tmp_path / "elsewhere")
        np.ones(FILE_BYTES // 8, np.uint64).tofile(tmp_path / "elsewhere")
    elif trouble == "short":
        path.touch()
    expected = {
        "full": errno.ENOSPC,
        "missing": errno.ENOENT,
        "other content": errno.EBADMSG,
        "short": errno.EIO,
    }[trouble]
    with Guest.power_on(spec) as guest:
        wait_until(lambda: len(guest.failed_tasks()) == 2)
        assert guest.failed_tasks() == ((0, 0, expected), (0, 1, expected))
        commits = guest.task_counters()["operations"][1]
        wait_until(lambda: guest.task_counters()["operations"][1].sum() > commits.sum())
        guest.suspend()
        guest.resume()
        assert guest.dead_vcpus() == ()
        assert guest.failed_tasks() == ((0, 0, expected), (0, 1, expected))


def test_a_full_disk_is_told_when_the_file_is_made_and_nothing_is_left(mounted):
    place = str(mounted("tmpfs", "size=2m"))
    prepare_file(place, "vm", MIB)
    with pytest.raises(KernelError, match=r"8 MiB for .*vm\.iometer.*No space.*2 MiB are free"):
        prepare_file(place, "vm", FILE_BYTES)
    assert not list(Path(place).iterdir())
    prepare_file(place, "vm", MIB)  # a failure took no room
    assert iometer_path(place, "vm").stat().st_blocks * 512 == MIB
    with pytest.raises(KernelError, match="No such file"):
        prepare_file(f"{place}/none", "vm", MIB)


def test_a_file_system_without_o_direct_serves_through_the_cache(mounted):
    place = mounted("ramfs")
    assert prepare_file(str(place), "vm", MIB) is False
    with Guest.power_on(doing(place, file_bytes=MIB)) as guest:
        progressed(guest)
        assert not guest.task_counters()["spare"].any()


@pytest.mark.parametrize(
    "changes",
    [
        {"block_bytes": 1000},
        {"block_bytes": 0},
        {"outstanding": 0},
        {"iops": -1},
        {"read_percent": 101},
        {"file_bytes": 4096},
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, changes):
    with GuestMemory("vm", 8 * MIB) as memory:
        with pytest.raises(InputError, match="iometer"):
            build(doing(tmp_path, **changes), 0, memory)
        with pytest.raises(InputError, match="given twice"):
            build(doing(tmp_path, Iometer(FILE_BYTES)), 0, memory)


def test_aio_tells_what_has_ended(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    with GuestMemory("buffers", 8192) as memory:
        file = AioFile(str(path), memory.address + np.array([0, 4096]), 4096)
        memory.words[0] = 7
        assert not file.ready
        assert file.submit(np.array([0]), np.array([WRITE]), np.array([4096])) == 1
        wait_until(lambda: file.ready)
        assert [found.tolist() for found in file.done()] == [[0], [4096]]
        assert not file.ready
        file.submit(np.array([1, 0]), np.array([READ, READ]), np.array([4096, 8192]))
        numbers, results = file.done(2, 10**10)
        assert dict(zip(numbers.tolist(), results.tolist(), strict=True)) == {1: 4096, 0: 0}
        assert file.under_way == 0
        assert (memory.words[1] == 7).all()
        file.close()
        file.close()  # twice is once
