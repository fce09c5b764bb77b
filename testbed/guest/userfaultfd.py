"""userfaultfd: write protection of a process's memory, set from outside it.

Numbers are those of x86-64 and arm64's shared ABI (linux/userfaultfd.h), checked on 6.18.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct

from testbed.errors import KernelError

_SYSCALLS = {"x86_64": 323, "aarch64": 282}
_API, _API_VERSION = 0xC018AA3F, 0xAA
_REGISTER, _UNREGISTER, _WRITEPROTECT = 0xC020AA00, 0x8010AA01, 0xC018AA06
_FEATURE_WP_UNPOPULATED, _FEATURE_WP_ASYNC = 1 << 13, 1 << 15
_MODE_WP = 2


def open_userfaultfd() -> int:
    """Open one for the calling process's memory, with asynchronous write protection.

    Raises:
        KernelError: the kernel has none, is older than 6.7, or denies it.
    """
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise KernelError("open", "userfaultfd", f"unknown machine {platform.machine()}")
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise KernelError("open", "userfaultfd", os.strerror(ctypes.get_errno()))
    features = _FEATURE_WP_ASYNC | _FEATURE_WP_UNPOPULATED
    try:
        fcntl.ioctl(fd, _API, struct.pack("QQQ", _API_VERSION, features, 0))
    except OSError as error:
        os.close(fd)
        cause = f"no asynchronous write protection ({error.strerror})"
        raise KernelError("open", "userfaultfd", cause, "it came with Linux 6.7") from error
    return fd


def register(fd: int, address: int, size_bytes: int) -> None:
    """Make a range of that process's memory one that can be protected."""
    fcntl.ioctl(fd, _REGISTER, struct.pack("QQQQ", address, size_bytes, _MODE_WP, 0))


def protect(fd: int, address: int, size_bytes: int) -> None:
    """Write-protect a part of a registered range; first writes are noted, not stopped."""
    fcntl.ioctl(fd, _WRITEPROTECT, struct.pack("QQQ", address, size_bytes, 1))


def unregister(fd: int, address: int, size_bytes: int) -> None:
    """Undo `register`: the range is protected no more."""
    fcntl.ioctl(fd, _UNREGISTER, struct.pack("QQ", address, size_bytes))
