"""Reads and writes blocks of a file on the datastore, so many requests outstanding at a time.

Each vCPU has its own part of the file and its own buffers, in guest memory: what is read comes
there by the kernel's hand, as a disk's DMA does. Request k of a vCPU follows from (key, k)
alone. Each page of a block that is written carries the block's number and that of the request,
from 1 on (`BLOCK_WORD`, `REQUEST_WORD`), and each block that is read is checked.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import InputError
from testbed.guest import draws
from testbed.guest.aio import READ, WRITE, AioFile
from testbed.guest.iometer_file import iometer_path
from testbed.guest.layout import BATCHES, BYTES, FAILED, PAGES_WRITTEN, SPARE
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.task import NEVER_NS
from testbed.guest.tasks.operations import count_operation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.guest.specification import GuestSpec
    from testbed.guest.task import TaskContext
    from testbed.guest.workloads import Iometer

BLOCK_WORD, REQUEST_WORD = 0, 1
DIRECT = SPARE
"""The word of the record that is 1 if the file is opened with O_DIRECT."""
_WORDS = SMALL_PAGE_BYTES // 8
_TOUCHED_WORD = _WORDS - 1
_SECTOR_BYTES = 512
_POLL_NS = 100_000  # where requests that end can't wake the vCPU
_DRAIN_NS = 800_000_000
_MADE_UP_NS = 5_000_000


class IometerTask:
    """One vCPU's requests."""

    def __init__(self, context: TaskContext, workload: Iometer) -> None:
        """Make it; the file is opened when it is started.

        Raises:
            InputError: the workload contradicts itself.
        """
        spec, vcpu = context.spec, context.vcpu
        _check(workload, spec)
        self._context, self._workload = context, workload
        blocks = workload.file_bytes // workload.block_bytes
        self.blocks = range(blocks * vcpu // spec.vcpus, blocks * (vcpu + 1) // spec.vcpus)
        self.depth = max(
            1,
            workload.outstanding * (vcpu + 1) // spec.vcpus
            - workload.outstanding * vcpu // spec.vcpus,
        )
        self._each = -(-workload.block_bytes // SMALL_PAGE_BYTES)  # pages of a buffer
        if self.depth * self._each > context.page_count:
            raise InputError(
                f"VM {spec.name}: workload iometer: there is no memory for its buffers; give the "
                f"VM more, or fewer outstanding requests"
            )
        self._buffers = _buffers(context.memory, context.first_page, self.depth * self._each)
        self._submitted_ns = [0] * self.depth
        self._block = np.zeros(self.depth, np.int64)
        self._reads = np.zeros(self.depth, np.bool_)
        self._free = list(range(self.depth))
        self._file: AioFile | None = None
        self._interval_ns = 1e9 * spec.vcpus / workload.iops if workload.iops else 0.0
        self._due = 0.0

    def requests(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The blocks of so many requests, and which of them read."""
        drawn = draws.words(np.arange(count, dtype=np.uint64), self._context.key, first)
        read = (drawn & np.uint64(0xFFFFFFFF)) * np.uint64(100) >> np.uint64(32)
        reads = read < np.uint64(self._workload.read_percent)
        return draws.uniform(drawn, len(self.blocks)) + self.blocks.start, reads

    def start(self, now_ns: int) -> float:
        """Submit anew; nothing is under way.

        Raises:
            OSError: the file can't be opened.
        """
        if self._file is None:
            spec, step_bytes = self._context.spec, self._each * SMALL_PAGE_BYTES
            self._context.memory.pin(self._rows(np.arange(self.depth)) + self._context.first_page)
            self._file = AioFile(
                str(iometer_path(spec.directory, spec.name)),
                np.arange(self.depth, dtype=np.int64) * step_bytes + self._buffers.ctypes.data,
                self._workload.block_bytes,
                eventfd=self._context.wake_fd,
            )
            self._context.record[DIRECT] = self._file.direct
        self._due = now_ns
        return now_ns

    def pending(self) -> bool:
        """Whether a request has ended."""
        return self._file is not None and self._file.ready

    def step(self, now_ns: int) -> float:
        """Take what has ended, and submit as much again.

        Raises:
            OSError: the kernel does not take requests.
        """
        assert self._file is not None, "a task is started first"
        self._take(self._file)
        if self._context.record[FAILED]:
            return NEVER_NS
        try:
            self._submit(self._file, now_ns)
        except BlockingIOError:  # no room for requests now
            return now_ns + _POLL_NS
        due = self._due if self._free else NEVER_NS
        return due if self._context.wake_fd >= 0 else min(due, now_ns + _POLL_NS)

    def drain(self) -> None:
        """Wait for all that is under way.

        Raises:
            OSError: the disk does not answer (ETIMEDOUT).
        """
        deadline_ns = time.monotonic_ns() + _DRAIN_NS
        while self._file is not None and self._file.under_way:
            left_ns = deadline_ns - time.monotonic_ns()
            if left_ns <= 0:
                raise OSError(errno.ETIMEDOUT, f"{self._file.under_way} requests are under way")
            with suppress(InterruptedError):
                self._take(self._file, self._file.under_way, left_ns)

    def _submit(self, file: AioFile, now_ns: int) -> None:
        count = len(self._free)
        if self._interval_ns:
            due = int((now_ns - self._due) // self._interval_ns) + 1
            count = min(count, max(due, 0))
        if not count:
            return
        record, slots = self._context.record, np.array(self._free[:count])
        first = record[BATCHES]
        blocks, reads = self.requests(first, count)
        self._fill(slots[~reads], blocks[~reads], np.arange(first + 1, first + 1 + count)[~reads])
        self._block[slots], self._reads[slots] = blocks, reads
        begun_ns = time.monotonic_ns()
        taken = file.submit(
            slots, np.where(reads, READ, WRITE), blocks * self._workload.block_bytes
        )
        for slot in self._free[:taken]:
            self._submitted_ns[slot] = begun_ns
        del self._free[:taken]
        record[BATCHES] = first + taken
        self._due = max(self._due + taken * self._interval_ns, now_ns - _MADE_UP_NS)

    def _rows(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pages of these buffers, among those of all."""
        return (slots[:, None] * self._each + np.arange(self._each)).ravel()

    def _fill(
        self, slots: NDArray[np.int64], blocks: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> None:
        """Write to the buffers what is to be written to the file."""
        rows = self._rows(slots)
        self._buffers[rows, BLOCK_WORD] = np.repeat(blocks, self._each)
        self._buffers[rows, REQUEST_WORD] = np.repeat(numbers, self._each)
        self._touch(rows)

    def _touch(self, rows: NDArray[np.int64]) -> None:
        """Have tracking find these pages.

        The kernel notes a page that a disk is to write when the request begins; if the page is
        then collected and the data comes later, only the vCPU's own write tells of it.
        """
        if len(rows):
            context = self._context
            pages = rows + context.first_page
            stamp = np.full(len(rows), context.record[BATCHES], np.uint64)
            context.memory.write(pages, _TOUCHED_WORD, stamp)
            context.mark(pages)
            context.record[PAGES_WRITTEN] += len(rows)

    def _take(self, file: AioFile, least: int = 0, timeout_ns: int = 0) -> None:
        if not file.under_way:
            return
        slots, results = file.done(least, timeout_ns)
        if not len(slots):
            return
        now_ns = time.monotonic_ns()
        size, record = self._workload.block_bytes, self._context.record
        self._free += slots.tolist()
        self._arrived(slots[self._reads[slots] & (results == size)])
        for slot, result in zip(slots.tolist(), results.tolist(), strict=True):
            if result != size:
                record[FAILED] = -result if result < 0 else errno.EIO
                continue
            record[BYTES] += size
            count_operation(record, now_ns - self._submitted_ns[slot], now_ns)

    def _arrived(self, slots: NDArray[np.int64]) -> None:
        """Prove that what was read is the block that was asked for, or one never written."""
        if not len(slots):
            return
        rows = self._rows(slots)
        self._touch(rows)
        found = self._buffers[rows, BLOCK_WORD]
        written = self._buffers[rows, REQUEST_WORD] != 0
        if (written & (found != np.repeat(self._block[slots], self._each))).any():
            self._context.record[FAILED] = errno.EBADMSG


def _check(workload: Iometer, spec: GuestSpec) -> None:
    """Refuse what can't be carried out."""
    name, size = f"VM {spec.name}: workload iometer", workload.block_bytes
    if sum(one.kind == workload.kind for one in spec.workloads) > 1:
        raise InputError(f"{name} is given twice, and a VM has one file for it; leave one out")
    if size <= 0 or size % _SECTOR_BYTES:
        raise InputError(f"{name}: blocks of {size} bytes; give a multiple of {_SECTOR_BYTES}")
    if workload.file_bytes // size < spec.vcpus:
        raise InputError(
            f"{name}: a file of {workload.file_bytes} bytes is less than a block for each of "
            f"{spec.vcpus} vCPUs; make it larger"
        )
    if workload.outstanding < 1 or workload.iops < 0 or not 0 <= workload.read_percent <= 100:
        raise InputError(
            f"{name}: {workload.outstanding} outstanding, {workload.iops:g} IOPS, "
            f"{workload.read_percent} % reads; give at least 1, 0, and 0 to 100"
        )


def _buffers(memory: Memory, first_page: int, pages: int) -> NDArray[np.uint64]:
    """So many pages for the kernel to read and write: the guest's, or if it has none, others."""
    size_bytes = pages * SMALL_PAGE_BYTES
    if memory.address:
        start = memory.address + first_page * SMALL_PAGE_BYTES
        found = memoryview((ctypes.c_char * size_bytes).from_address(start))
    else:
        found = memoryview(mmap.mmap(-1, size_bytes))
    return np.frombuffer(found, np.uint64).reshape(-1, _WORDS)
