"""sendmsg and recvmsg of scattered pages, without a Python object per page.

Python's own take a list of buffers, which costs more than copying the pages; here numpy
writes the kernel's iovec array, and runs of neighbouring pages are one entry of it.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.memory import PAGE_BYTES
from testbed.migration.wire import GATHER_PAGES, HEADER_BYTES, NUMBER

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
        self._first = self._entries = self.left = 0

    def fill(self, places: NDArray[np.uint32], *, with_head: bool) -> None:
        """Point at the pages in these places, which ascend; the head are as many `numbers`."""
        count = len(places)
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
