"""Kernel AIO (io_submit): requests to a file that the calling thread does not wait for.

Structures and numbers are those of linux/aio_abi.h and the kernel's system call tables.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

READ, WRITE = 0, 1  # IOCB_CMD_PREAD, IOCB_CMD_PWRITE
_FLAG_RESFD = 1
_REQUEST = np.dtype(  # struct iocb, little-endian
    [
        ("number", "<u8"),
        ("key", "<u4"),
        ("rw_flags", "<i4"),
        ("opcode", "<u2"),
        ("priority", "<i2"),
        ("fd", "<u4"),
        ("address", "<u8"),
        ("size", "<u8"),
        ("offset", "<i8"),
        ("reserved", "<u8"),
        ("flags", "<u4"),
        ("eventfd", "<u4"),
    ]
)
_EVENT = np.dtype([("number", "<i8"), ("request", "<u8"), ("result", "<i8"), ("result2", "<i8")])
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = range(4)
_SYSCALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}


class AioFile:
    """A file that is read and written by AIO; request n goes to or from the n-th of its buffers.

    `direct` tells whether it is opened with O_DIRECT, past the kernel's cache; if its file system
    knows none, it is opened without. Ended by `close`, or with the object.
    """

    def __init__(
        self, path: str, addresses: NDArray[np.int64], size: int, *, eventfd: int = -1
    ) -> None:
        """Open it.

        Args:
            path: the file, which is there.
            addresses: of the buffers; there may be as many requests under way.
            size: of a buffer and of a request, in bytes.
            eventfd: 1 is added to it whenever a request has ended; -1: none.

        Raises:
            OSError: it can't be opened; the kernel has no AIO (ENOSYS), or fs.aio-max-nr is used
                up (EAGAIN).
        """
        self._fd, self._context = -1, ctypes.c_ulong()
        numbers = _SYSCALLS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, f"AIO on {platform.machine()}")
        self._numbers = tuple(map(ctypes.c_long, numbers))
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._fd, self.direct = open_direct(path)
        depth = len(addresses)
        self._requests = np.zeros(depth, _REQUEST)
        self._requests["number"] = np.arange(depth)
        self._requests["fd"], self._requests["size"] = self._fd, size
        self._requests["address"] = addresses
        if eventfd >= 0:
            self._requests["flags"], self._requests["eventfd"] = _FLAG_RESFD, eventfd
        self._pointers = np.zeros(depth, np.uint64)
        self._events = np.zeros(depth, _EVENT)
        self.under_way = 0
        self._call(_SETUP, ctypes.c_uint(depth), ctypes.byref(self._context))
        self._ring = (ctypes.c_uint * 4).from_address(self._context.value)

    def submit(
        self, numbers: NDArray[np.int64], opcodes: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> int:
        """Begin requests with these numbers, none of which is under way.

        Returns:
            How many of them, from the first on, the kernel took.

        Raises:
            OSError: it took none; EAGAIN: it has no room now.
        """
        self._requests["opcode"][numbers] = opcodes
        self._requests["offset"][numbers] = offsets
        count = len(numbers)
        self._pointers[:count] = numbers * _REQUEST.itemsize + self._requests.ctypes.data
        pointers = ctypes.c_void_p(self._pointers.ctypes.data)
        taken = self._call(_SUBMIT, self._context, ctypes.c_long(count), pointers)
        self.under_way += taken
        return taken

    @property
    def ready(self) -> bool:
        """Whether a request has ended that `done` has not told yet; asks no kernel."""
        # struct aio_ring, which the kernel maps at the context's address: id, nr, head, tail
        return self.under_way > 0 and self._ring[2] != self._ring[3]

    def done(
        self, least: int = 0, timeout_ns: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers and results (bytes, or a negative errno) of the requests that have ended.

        Waits until there are `least` of them, or the time is over.

        Raises:
            OSError: EINTR, a signal came.
        """
        limit = (ctypes.c_long * 2)(*divmod(timeout_ns, 10**9))
        found = self._call(
            _GETEVENTS,
            self._context,
            ctypes.c_long(least),
            ctypes.c_long(len(self._events)),
            ctypes.c_void_p(self._events.ctypes.data),
            limit,
        )
        self.under_way -= found
        return self._events["number"][:found].copy(), self._events["result"][:found].copy()

    def close(self) -> None:
        """Wait for what is under way, and end (some 10 ms: the kernel waits for its own)."""
        if self._context.value:
            self._call(_DESTROY, self._context)
            self._context.value = 0
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _call(self, which: int, *arguments: object) -> int:
        result: int = self._syscall(self._numbers[which], *arguments)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def open_direct(path: str) -> tuple[int, bool]:
    """A descriptor to read and write the file, and whether it has O_DIRECT.

    Raises:
        OSError: it can't be opened.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system has none
            raise
        return os.open(path, flags), False
