"""The few system calls that Python 3.11 has no function for."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import signal

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SHARED = 1 << 20
MS_SLAVE = 1 << 19
MNT_DETACH = 2
_CLONE_PARENT = 0x8000
_CLONE = {"x86_64": 56, "aarch64": 220}


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own.

    Raises:
        OSError: the kernel refuses.
    """
    _checked(_libc().unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, flags: int = CLONE_NEWNET) -> None:
    """Move the calling thread into the namespace that `fd` is open on.

    Raises:
        OSError: the kernel refuses.
    """
    _checked(_libc().setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns")


def mount(source: str, target: str, flags: int) -> None:
    """Bind-mount `source` on `target`, or change how mounts on it propagate.

    Raises:
        OSError: the kernel refuses.
    """
    result = _libc().mount(
        os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(flags), None
    )
    _checked(result, target)


def unmount(target: str) -> None:
    """Unmount `target` at once, whoever still uses it.

    Raises:
        OSError: the kernel refuses (EINVAL: nothing is mounted there).
    """
    _checked(_libc().umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), target)


def mount_own_sysfs() -> None:
    """Mount a sysfs of the calling thread's network namespace on /sys, for this thread alone.

    The thread must have a mount namespace of its own (`own_mounts`): it all goes with it.
    Closing 257 mounts one by one would wait for 257 grace periods.

    Raises:
        OSError: the kernel refuses.
    """
    _checked(_libc().mount(b"testbed", b"/sys", b"sysfs", ctypes.c_ulong(0), None), "/sys")


def own_mounts() -> None:
    """Give the calling thread a copy of all mounts; what it mounts is seen by nobody else.

    Raises:
        OSError: the kernel refuses.
    """
    unshare(CLONE_NEWNS)
    mount("", "/", MS_SLAVE | MS_REC)


def fork_sibling() -> int:
    """Fork a process whose parent is this one's parent; the caller has one thread.

    Returns:
        0 in the new process, its number in the caller.

    Raises:
        OSError: the kernel refuses.
    """
    number = _CLONE.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"clone's number is not known for {platform.machine()}")
    # What os.fork does around its own system call, which takes no flags; PyDLL keeps the GIL.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = ctypes.PyDLL(None, use_errno=True).syscall(
        number, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0
    )
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return _checked(pid, "clone")
