"""userfaultfd: faults and write protection of a process's memory, from outside it.

Numbers are those of x86-64 and arm64's shared ABI (linux/userfaultfd.h), checked on 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from testbed.errors import KernelError

_SYSCALLS = {"x86_64": 323, "aarch64": 282}
_API, _API_VERSION = 0xC018AA3F, 0xAA
_REGISTER, _UNREGISTER, _WRITEPROTECT = 0xC020AA00, 0x8010AA01, 0xC018AA06
_WAKE, _COPY = 0x8010AA02, 0xC028AA03
_FEATURE_WP_UNPOPULATED, _FEATURE_WP_ASYNC = 1 << 13, 1 << 15
_MODE_MISSING, _MODE_WP = 1, 2
_COPY_ARGUMENT = struct.Struct("QQQQq")
_EVENT = struct.Struct("B7xQQ8x")  # struct uffd_msg of a fault: event, flags, address
_EVENT_FAULT = 0x12
_EVENTS = 64


def open_userfaultfd(*, tracks: bool = True) -> int:
    """Open one for the calling process's memory; if it `tracks`, with asynchronous protection.

    Raises:
        KernelError: the kernel has none, denies it, or is older than 6.7 and it is to track.
    """
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise KernelError("open", "userfaultfd", f"unknown machine {platform.machine()}")
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise KernelError("open", "userfaultfd", os.strerror(ctypes.get_errno()))
    features = _FEATURE_WP_ASYNC | _FEATURE_WP_UNPOPULATED if tracks else 0
    try:
        fcntl.ioctl(fd, _API, struct.pack("QQQ", _API_VERSION, features, 0))
    except OSError as error:
        os.close(fd)
        if not tracks:
            raise KernelError("open", "userfaultfd", str(error.strerror)) from error
        cause = f"no asynchronous write protection ({error.strerror})"
        raise KernelError("open", "userfaultfd", cause, "it came with Linux 6.7") from error
    return fd


def register(fd: int, address: int, size_bytes: int) -> None:
    """Make a range of that process's memory one that can be protected."""
    fcntl.ioctl(fd, _REGISTER, struct.pack("QQQQ", address, size_bytes, _MODE_WP, 0))


def protect(fd: int, address: int, size_bytes: int) -> None:
    """Write-protect a part of a registered range; first writes are noted, not stopped."""
    fcntl.ioctl(fd, _WRITEPROTECT, struct.pack("QQQ", address, size_bytes, 1))


def register_missing(fd: int, address: int, size_bytes: int) -> None:
    """Have that process wait, until woken, where it touches a page of this range that isn't there.

    Its write protection ends.
    """
    fcntl.ioctl(fd, _REGISTER, struct.pack("QQQQ", address, size_bytes, _MODE_MISSING, 0))


def read_faults(fd: int) -> list[int]:
    """The addresses of the pages that the process has come to wait for since the last call."""
    try:
        told = os.read(fd, _EVENTS * _EVENT.size)
    except BlockingIOError:
        return []
    return [address for event, _, address in _EVENT.iter_unpack(told) if event == _EVENT_FAULT]


def copy_in(fd: int, address: int, source: int, size_bytes: int) -> None:
    """Fill a hole of that process's memory with what lies at `source` in this one's.

    A page is there with its content or not at all; the process is woken if it waits for it.

    Raises:
        OSError: a page was there already (EEXIST), or the process is gone (ESRCH).
    """
    done = 0
    while done < size_bytes:
        left = size_bytes - done
        argument = bytearray(_COPY_ARGUMENT.pack(address + done, source + done, left, 0, 0))
        try:
            fcntl.ioctl(fd, _COPY, argument)
        except OSError as error:
            if error.errno != errno.EAGAIN:  # which says that a part was copied
                raise
        done += max(_COPY_ARGUMENT.unpack(argument)[4], 0)


def wake(fd: int, address: int, size_bytes: int) -> None:
    """Let the process go on if it waits for a page of this range, which is there now."""
    fcntl.ioctl(fd, _WAKE, struct.pack("QQ", address, size_bytes))


def unregister(fd: int, address: int, size_bytes: int) -> None:
    """Undo `register` or `register_missing`; whoever waits goes on."""
    fcntl.ioctl(fd, _UNREGISTER, struct.pack("QQ", address, size_bytes))
