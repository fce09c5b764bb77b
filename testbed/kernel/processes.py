"""The processes inside network namespaces, and their end."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import netns

if TYPE_CHECKING:
    from collections.abc import Iterable

TERMINATE_GRACE_S = 2.0
KILL_DEADLINE_S = 5.0


def processes_in(names: Iterable[str]) -> tuple[int, ...]:
    """The processes whose network namespace is one of those named, except this process.

    Names of namespaces that are gone are passed over.

    Raises:
        KernelError: /proc cannot be read.
    """
    inodes = set()
    for name in names:
        with suppress(KernelError):
            inodes.add(netns.identity(name))
    if not inodes:
        return ()
    try:
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208
    except OSError as error:
        raise KernelError("list", "/proc", str(error.strerror)) from error
    return tuple(pid for pid in pids if pid != os.getpid() and _netns_of(pid) in inodes)


def _netns_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116
    except OSError:
        return None  # it has ended


def end(
    pids: Iterable[int],
    grace_s: float = TERMINATE_GRACE_S,
    deadline_s: float = KILL_DEADLINE_S,
) -> None:
    """End processes: SIGTERM, after the grace SIGKILL, and wait until all have ended.

    Signals go through pidfds, so that a number that is used anew meanwhile is not hit.

    Raises:
        KernelError: one is still there after the deadline, or may not be signalled.
    """
    with ExitStack() as closing:
        alive: dict[int, int] = {}
        for pid in pids:
            with suppress(ProcessLookupError):
                alive[os.pidfd_open(pid)] = pid
        for fd in alive:
            closing.callback(os.close, fd)
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, deadline_s)):
            for fd, pid in alive.items():
                _send(fd, pid, number)
            alive = _survivors(alive, wait_s)
        if alive:
            raise KernelError(
                "end", f"process {min(alive.values())}", "it outlives SIGKILL",
                "it hangs in the kernel: see /proc/PID/stack",
            )  # fmt: skip


def end_in(names: Iterable[str], grace_s: float = TERMINATE_GRACE_S) -> tuple[int, ...]:
    """End all processes in namespaces, also those that are started meanwhile; which ones.

    Raises:
        KernelError: one is still there after the deadline.
    """
    where = tuple(names)
    ended: list[int] = []
    while found := processes_in(where):
        end(found, 0 if ended else grace_s)
        ended += found
    return tuple(ended)


def _send(fd: int, pid: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass
    except OSError as error:
        raise KernelError("end", f"process {pid}", str(error.strerror), "run as root") from error


def _survivors(alive: dict[int, int], wait_s: float) -> dict[int, int]:
    """Those of the pidfds that are not readable, that is whose process has not ended, in time."""
    waiting = dict(alive)
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + wait_s
    while waiting and (left_s := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left_s * 1000):
            poll.unregister(fd)
            del waiting[fd]
    return waiting
