"""From the VMX to a process that is a vCPU: forked, pinned, with nothing of the VMX's left open."""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from testbed import prctl
from testbed.errors import KernelError
from testbed.guest.swap import OvercommittedMemory
from testbed.guest.userfaultfd import open_userfaultfd
from testbed.guest.vcpu import Vcpu

if TYPE_CHECKING:
    from testbed.guest.vcpu import VcpuStart


def fork_vcpu(start: VcpuStart) -> int:
    """Fork a vCPU process, which maps the memory and waits to be run.

    Returns:
        Its process id.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        _become_vcpu(start, parent)
    except BaseException:  # whatever it is, this process must not return into its parent's code
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _become_vcpu(start: VcpuStart, parent: int) -> NoReturn:
    prctl.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the kernel could be told
    prctl.wake_exactly()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    gc.disable()
    if start.cpus:
        _pin(start.number, start.cpus)
    if start.setup is not None:
        start.setup()
    kept = [start.wake_fd, start.answer_fd, start.kick_fd]
    # Kept open here, it outlives the VMX: a vCPU that waits for a page then dies waiting.
    kept += _hand_over(start)
    # Whatever else the VMX has open (sockets above all) must not live on in this process.
    close_all_but(*kept)
    # select() takes low numbers only, and it alone sleeps for less than a millisecond.
    wake_fd = fcntl.fcntl(start.wake_fd, fcntl.F_DUPFD_CLOEXEC, 3)
    if isinstance(start.memory, OvercommittedMemory):
        start.memory.written = start.written
    start.memory.populate()
    Vcpu(start, wake_fd).live()


def _hand_over(start: VcpuStart) -> list[int]:
    """Give the VMX this process's userfaultfd, if it has one; it must where that tracks writes."""
    try:
        fd = open_userfaultfd(tracks=start.written is None)
    except KernelError:
        if start.written is None:
            raise
        start.handover.send(b"n")
        return []
    start.handover.sendmsg([b"u"], [(1, 1, fd.to_bytes(4, sys.byteorder))])
    return [fd]


def _pin(number: int, cpus: frozenset[int]) -> None:
    os.sched_setaffinity(0, cpus)
    if os.sched_getaffinity(0) != cpus:
        cause = f"the kernel lets it run on {sorted(os.sched_getaffinity(0))}"
        raise KernelError("pin", f"vCPU {number} to CPUs {sorted(cpus)}", cause)


def close_all_but(*keep: int) -> None:
    """Close every descriptor of this process but standard input, output, error and these."""
    bounds = sorted({2, *keep, os.sysconf("SC_OPEN_MAX")})
    for low, high in itertools.pairwise(bounds):
        os.closerange(low + 1, high)
