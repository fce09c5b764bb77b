"""No write escapes the tracking, whatever holds the memory and however it is tracked."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from testbed.guest.bytemap import BytemapTracker, make_bytemap
from testbed.guest.memory import GuestMemory
from testbed.guest.pagemap import PagemapTracker
from testbed.guest.specification import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES
from testbed.guest.swap import OvercommittedMemory
from testbed.guest.synthetic import SyntheticMemory
from testbed.guest.userfaultfd import open_userfaultfd

pytestmark = pytest.mark.root

MIB = 1 << 20
VCPUS, SIZE_BYTES, ROUNDS = 3, 16 * MIB, 40
PAGES = SIZE_BYTES // SMALL_PAGE_BYTES
NEEDS_SCAN = pytest.mark.needs_feature("pagemap_scan")
BACKENDS = [
    pytest.param("small pages", marks=NEEDS_SCAN),
    pytest.param("hugetlb", marks=NEEDS_SCAN),
    pytest.param("collapsed", marks=NEEDS_SCAN),
    pytest.param("swapped", marks=NEEDS_SCAN),
    "byte map",
    "synthetic",
]


class Writers:
    """Processes that write random pages while `words[0]` is set, each counting them by page.

    A write is counted before it is done: one that is counted after the tracking was installed
    was also done after it.
    """

    def __init__(self, memory, written, seed):
        self._undo = ExitStack()
        self.words = self._shared(1 + VCPUS)
        self.counts = self._shared(PAGES * VCPUS).reshape(VCPUS, PAGES)
        self.vcpus = []
        for number in range(VCPUS):
            mine, its = socket.socketpair()
            pid = os.fork()
            if not pid:
                try:
                    its.sendmsg([b"u"], [(1, 1, open_userfaultfd().to_bytes(4, "little"))])
                    memory.populate()
                    its.send(b"r")
                    self._write(memory, written, number, np.random.default_rng([seed, number]))
                finally:
                    os._exit(1)
            self._undo.callback(os.waitpid, pid, 0)
            self._undo.callback(os.kill, pid, signal.SIGKILL)
            _, fds, _, _ = socket.recv_fds(mine, 1, 1)
            self._undo.callback(os.close, fds[0])
            assert mine.recv(1) == b"r"
            mine.close()
            its.close()
            self.vcpus.append((pid, fds[0]))

    def _shared(self, count):
        return np.frombuffer(mmap.mmap(-1, 8 * count), np.int64)

    def _write(self, memory, written, number, random):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        step = 0
        while True:
            while not self.words[0]:
                self.words[1 + number] = 1
                time.sleep(0.0002)
            self.words[1 + number] = 0
            step += 1
            # every vCPU writes all pages, in words of its own, if these may be written by several
            pages = np.unique(random.integers(PAGES, size=random.integers(1, 200)))
            if isinstance(memory, SyntheticMemory | OvercommittedMemory):
                pages = pages[pages % VCPUS == number]
            self.counts[number, pages] += 1
            memory.write(pages, number, np.full(len(pages), step, np.uint64))
            if written is not None:
                written[pages] = 1
            time.sleep(random.random() * 0.0005)

    def close(self):
        self._undo.close()


@pytest.fixture
def huge_pages():
    """Let the machine give as many huge pages as the test takes, and no more afterwards."""
    path = Path("/proc/sys/vm/nr_overcommit_hugepages")
    before = path.read_text()
    path.write_text(str(int(before) + SIZE_BYTES // LARGE_PAGE_BYTES))
    yield
    path.write_text(before)


@pytest.fixture
def memory(backend, request, tmp_path):
    if backend == "hugetlb":
        request.getfixturevalue("huge_pages")
    if backend == "synthetic":
        made = SyntheticMemory("vm", SIZE_BYTES, 200)
    elif backend == "swapped":
        made = OvercommittedMemory("vm", SIZE_BYTES, SIZE_BYTES * 3 // 4, str(tmp_path))
    else:
        large = backend in {"hugetlb", "collapsed"}
        made = GuestMemory("vm", SIZE_BYTES, LARGE_PAGE_BYTES if large else SMALL_PAGE_BYTES)
        assert made.trace_bytes == (LARGE_PAGE_BYTES if backend == "hugetlb" else SMALL_PAGE_BYTES)
    with made:
        yield made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_union_of_what_is_found_is_what_was_written(memory, backend, seed):
    with ExitStack() as undo:
        written = None
        if backend in {"byte map", "synthetic"}:
            fd, written = make_bytemap(PAGES)
            undo.callback(os.close, fd)
        writers = Writers(memory, written, seed)
        undo.callback(writers.close)
        tracker = (
            PagemapTracker(writers.vcpus, memory.address, SIZE_BYTES)
            if written is None
            else BytemapTracker(written)
        )
        writers.words[0] = 1
        wait_until(lambda: writers.counts.any(axis=1).all())
        tracker.install()
        undo.callback(tracker.remove)
        before = writers.counts.sum(axis=0)
        random = np.random.default_rng(seed)
        found = np.zeros(PAGES, bool)
        copied = content(memory, np.arange(PAGES))
        for _ in range(ROUNDS):
            pages = tracker.collect()
            assert (np.diff(pages) > 0).all()
            if backend == "hugetlb":
                assert len(np.unique(pages // 512)) * 512 == len(pages)
            found[pages] = True
            copied[pages] = content(memory, pages)
            time.sleep(random.random() * 0.003)
        writers.words[0] = 0
        wait_until(writers.words[1:].all)
        pages = tracker.collect()
        found[pages] = True
        copied[pages] = content(memory, pages)
        after = writers.counts.sum(axis=0)
        truth = after > before
        assert truth.sum() > PAGES // 4
        assert not (truth & ~found).any()
        assert (copied == content(memory, np.arange(PAGES))).all()
        if backend == "swapped":
            assert memory.swap_counters().swap_ins > 100
        assert not len(tracker.collect())


def content(memory, pages):
    """What a migration would send of each page, of the words that the writers write."""
    if isinstance(memory, SyntheticMemory):
        return np.stack([memory.versions[pages], memory.read(pages, 0)], axis=1).astype(np.uint64)
    if isinstance(memory, OvercommittedMemory):
        return pages  # may be in the swap file, which only a page's own vCPU reads
    return memory.words[pages][:, :VCPUS]


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.needs_feature("pagemap_scan")
@pytest.mark.parametrize("backend", ["hugetlb"])
def test_a_write_dirties_the_whole_large_page(memory, backend):
    with ExitStack() as undo:
        fd = open_userfaultfd()
        undo.callback(os.close, fd)
        tracker = PagemapTracker([(os.getpid(), fd)], memory.address, SIZE_BYTES)
        tracker.install()
        undo.callback(tracker.remove)
        memory.write(np.array([1030]), 5, np.array([1], np.uint64))
        assert tracker.collect().tolist() == list(range(1024, 1536))
