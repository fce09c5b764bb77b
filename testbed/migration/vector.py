"""sendmsg and recvmsg of scattered pages, without a Python object per page.

Python's own take a list of buffers, which costs more than copying the pages; here numpy
writes the kernel's iovec array, and runs of neighbouring pages are one entry of it.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.memory import PAGE_BYTES, WORDS_PER_PAGE
from testbed.migration.wire import GATHER_PAGES, HEADER_BYTES, NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

COPIED_PAGES = 64  # at a time: 256 KiB stay in the cache


class _Msghdr(ctypes.Structure):
    """struct msghdr of 64-bit Linux."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class PageVector:
    """The iovec of one GATHER: its header and page numbers, then the pages.

    Made once; `fill` and then `send` or `receive` until `left` is 0.
    """

    def __init__(self, address: int) -> None:
        """Scatter and gather pages whose places count from this address."""
        self._address = np.uint64(address)
        self.header = bytearray(HEADER_BYTES)
        self.numbers: NDArray[np.uint32] = np.zeros(GATHER_PAGES, NUMBER)
        self._head = np.frombuffer(self.header, np.uint8)
        self._iov = np.zeros((2 + GATHER_PAGES, 2), np.uint64)  # address, length
        self._message = _Msghdr()
        libc = ctypes.CDLL(None, use_errno=True)
        self._sendmsg, self._recvmsg = libc.sendmsg, libc.recvmsg
        for call in (self._sendmsg, self._recvmsg):
            call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
            call.restype = ctypes.c_ssize_t
        self._reference = ctypes.byref(self._message)
        self._places: NDArray[np.uint32] = self.numbers[:0]
        self._copies: NDArray[np.uint64] = np.empty((0, WORDS_PER_PAGE), np.uint64)
        self._first = self._entries = self.left = 0

    def fill(self, places: NDArray[np.uint32], *, with_head: bool) -> None:
        """Point at the pages in these places, which ascend; the head are as many `numbers`."""
        count, self._places = len(places), places
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        runs = len(breaks) + 1
        starts = np.zeros(runs + 1, np.int64)
        starts[1:-1], starts[-1] = breaks, count
        rows = self._iov[2 : 2 + runs]
        rows[:, 0] = places[starts[:-1]]
        rows[:, 1] = np.diff(starts)
        rows *= np.uint64(PAGE_BYTES)
        rows[:, 0] += self._address
        self.left = count * PAGE_BYTES
        self._first, self._entries = 2, 2 + runs
        if with_head:
            self._first = 0
            self._iov[0] = self._head.ctypes.data, HEADER_BYTES
            self._iov[1] = self.numbers.ctypes.data, places.nbytes
            self.left += HEADER_BYTES + places.nbytes
        self._point()

    def _point(self) -> None:
        self._message.iov = self._iov.ctypes.data + 16 * self._first
        self._message.iov_count = self._entries - self._first

    def send(self, fd: int, flags: int) -> int:
        """Send what is left, or a part of it; returns its bytes.

        Raises:
            OSError: as the kernel says; BlockingIOError after the socket's timeout.
        """
        return self._done(self._sendmsg(fd, self._reference, flags))

    def receive(self, fd: int, flags: int) -> int:
        """Receive what is left, or a part of it; 0 if the peer has closed; errors as `send`."""
        return self._done(self._recvmsg(fd, self._reference, flags))

    def contents(self) -> Iterator[memoryview]:
        """What would be sent, a piece at a time, each until the next is asked for."""
        if not self._first:
            yield memoryview(self.header)
            yield self.numbers[: len(self._places)].data.cast("B")
        for rows, places, copies in self._pieces():
            if copies is None:
                yield rows.data.cast("B")
            else:
                rows.take(places, axis=0, out=copies, mode="clip")
                yield copies.data.cast("B")
        self.left = 0

    def rooms(self) -> Iterator[memoryview]:
        """Where what would be received is to be written, a piece before the next is asked for."""
        for rows, places, copies in self._pieces():
            if copies is None:
                yield rows.data.cast("B")
            else:
                yield copies.data.cast("B")
                rows[places] = copies
        self.left = 0

    def _pieces(
        self,
    ) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint64] | None]]:
        """Pages, 64 at a time: neighbours where they lie, or all rows, places, and room for each.

        Places ascend, so the last tells how many rows there are to be seen.
        """
        rows = _rows(int(self._address), int(self._places[-1]) + 1)
        if not len(self._copies):
            self._copies = np.empty((COPIED_PAGES, WORDS_PER_PAGE), np.uint64)
        for first in range(0, len(self._places), COPIED_PAGES):
            places = self._places[first : first + COPIED_PAGES]
            start, end = int(places[0]), int(places[-1]) + 1
            if end - start == len(places):
                yield rows[start:end], places, None
            else:
                yield rows, places, self._copies[: len(places)]

    def _done(self, done_bytes: int) -> int:
        if done_bytes < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.left -= done_bytes
        if self.left:
            self._skip(done_bytes)
        return done_bytes

    def _skip(self, done_bytes: int) -> None:
        """Begin where a partial transfer ended."""
        rows = self._iov[self._first : self._entries]
        ends = np.cumsum(rows[:, 1])
        whole = int(np.searchsorted(ends, done_bytes, side="right"))
        into = done_bytes - (int(ends[whole - 1]) if whole else 0)
        rows[whole, 0] += np.uint64(into)
        rows[whole, 1] -= np.uint64(into)
        self._first += whole
        self._point()


class _Rows:
    """Pages that lie in memory from an address on, for numpy to look at."""

    def __init__(self, address: int, count: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": (count, WORDS_PER_PAGE),
            "typestr": "<u8",
        }


def _rows(address: int, count: int) -> NDArray[np.uint64]:
    rows: NDArray[np.uint64] = np.asarray(_Rows(address, count))
    return rows
