"""Dirty tracking by the kernel: PAGEMAP_SCAN over asynchronous write protection (Linux 6.7)."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import KernelError
from testbed.guest.memory import PAGE_BYTES
from testbed.guest.userfaultfd import protect, register, unregister

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_PAGEMAP_SCAN = 0xC0606610
_WP_MATCHING, _CHECK_WPASYNC, _WRITTEN = 1, 2, 2
_REGIONS = 65536
_ARGUMENT = struct.Struct("12Q")


class PagemapScanner:
    """One process's page map: which pages it wrote since the last time."""

    def __init__(self, pid: int, address: int, size_bytes: int) -> None:
        self._start, self._end = address, address + size_bytes
        self._regions = np.zeros((_REGIONS, 3), np.uint64)  # start, end, categories
        self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the page map."""
        os.close(self._fd)

    def collect(self, found: Callable[[NDArray[np.intp]], None]) -> None:
        """Find what was written since the last call, and protect it again, as one.

        `found` is told rows of (first page, page after the last), ascending, in parts.
        """
        start = self._start
        while start < self._end:
            argument = bytearray(
                _ARGUMENT.pack(
                    _ARGUMENT.size, _WP_MATCHING | _CHECK_WPASYNC, start, self._end, 0,
                    self._regions.ctypes.data, _REGIONS, 0, 0, _WRITTEN, 0, _WRITTEN,
                )
            )  # fmt: skip
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
            ranges = (self._regions[:count, :2] - np.uint64(self._start)) // PAGE_BYTES
            found(ranges.astype(np.intp))
            start = _ARGUMENT.unpack(argument)[4]


def mark(into: NDArray[np.bool_], ranges: NDArray[np.intp]) -> None:
    """Set every page of the (start, end) rows."""
    starts, ends = ranges[:, 0], ranges[:, 1]
    into[starts] = True  # most regions are one page
    long = np.flatnonzero(ends - starts > 1)
    if len(long):
        starts, lengths = starts[long], (ends - starts)[long]
        offsets = np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        into[offsets + np.arange(len(offsets))] = True


class PagemapTracker:
    """Dirty tracking of a guest whose vCPUs are these processes."""

    name = "pagemap"

    def __init__(self, vcpus: Sequence[tuple[int, int]], address: int, size_bytes: int) -> None:
        """Take (process id, userfaultfd) pairs; the memory is at the same address in each."""
        self._vcpus, self._address, self._size_bytes = vcpus, address, size_bytes
        self.found: Callable[[int, NDArray[np.intp]], None] = _nothing
        """Told what `collect` finds in each vCPU's page tables: its number, and (first, end)s."""
        self._dirty = np.zeros(size_bytes // PAGE_BYTES, np.bool_)
        self._scanners: list[PagemapScanner] = []
        self._installed = ExitStack()

    def install(self) -> None:
        """Begin: every later write is found. The vCPUs run on (about 10 ms per GB and vCPU)."""
        self.open()
        try:
            for vcpu in range(len(self._vcpus)):
                self.protect(vcpu, 0, self._size_bytes)
        except BaseException:
            self.remove()
            raise

    def open(self) -> None:
        """Make all ready for `protect`, which begins for a part of a vCPU's page tables."""
        with ExitStack() as undo:
            for pid, fd in self._vcpus:
                try:
                    scanner = PagemapScanner(pid, self._address, self._size_bytes)
                    undo.callback(scanner.close)
                    register(fd, self._address, self._size_bytes)
                except OSError as error:
                    raise _not_tracked(pid, error) from error
                undo.callback(self._unregister, fd)
                self._scanners.append(scanner)
            self._installed = undo.pop_all()

    def protect(self, vcpu: int, offset: int, size_bytes: int) -> None:
        """Begin for a part of the memory: what this vCPU writes there later is found.

        Raises:
            KernelError: the kernel refuses.
        """
        pid, fd = self._vcpus[vcpu]
        try:
            protect(fd, self._address + offset, size_bytes)
        except OSError as error:
            raise _not_tracked(pid, error) from error

    def _unregister(self, fd: int) -> None:
        with suppress(OSError):  # a process that has died has no memory to give back
            unregister(fd, self._address, self._size_bytes)

    def collect(self) -> NDArray[np.int64]:
        """The pages written by any vCPU since `install` or the last call, ascending.

        A vCPU that has died is not noticed here: its pages are lost (see `Guest.dead_vcpus`).

        Raises:
            KernelError: the kernel refuses.
        """
        for vcpu, (scanner, (pid, _)) in enumerate(zip(self._scanners, self._vcpus, strict=True)):

            def found(ranges: NDArray[np.intp], vcpu: int = vcpu) -> None:
                mark(self._dirty, ranges)
                self.found(vcpu, ranges)

            try:
                scanner.collect(found)
            except OSError as error:
                raise _not_tracked(pid, error) from error
        pages = np.flatnonzero(self._dirty)
        self._dirty[pages] = False
        return pages

    def remove(self) -> None:
        """End, and give the vCPUs their memory back unprotected."""
        self._scanners.clear()
        self._installed.close()


def _nothing(_: int, __: NDArray[np.intp]) -> None:
    pass


def _not_tracked(pid: int, error: OSError) -> KernelError:
    return KernelError("track the writes of", f"process {pid}", str(error.strerror), "is it alive?")
