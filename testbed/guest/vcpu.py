"""A vCPU: a process that runs its workload in the guest's memory, and stops when told.

It stops between two batches only, so the memory then holds whole batches and their counters.
Words in the `RunBlock` carry command and answer; the two eventfds only wake whoever waits, so
a wake too many does no harm and none can be lost.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import itertools
import mmap
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from testbed.guest import layout
from testbed.guest.userfaultfd import open_userfaultfd
from testbed.guest.workload import BEAT_NS, IDLE_BEAT_NS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from testbed.guest.memory import GuestMemory
    from testbed.guest.workload import VcpuWorkload

STARTING, STOPPED, RUNNING = range(3)
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
# A batch this late is due at once; what a longer stop cost is not made up in a burst.
_MADE_UP_NS = 5_000_000


class RunBlock:
    """Words between the VMX and its vCPUs, outside guest memory: run or stop, and the answer.

    Anonymous shared memory, inherited over fork; one cache line per vCPU.
    """

    def __init__(self, vcpus: int) -> None:
        self._mapping = mmap.mmap(-1, max(mmap.PAGESIZE, 64 * vcpus))
        words = np.frombuffer(self._mapping, np.int64)[: 8 * vcpus].reshape(vcpus, 8)
        self.run = words[:, 0]
        self.state = words[:, 1]

    def words(self, vcpu: int) -> memoryview:
        """A vCPU's line: word 0 is run, word 1 its state."""
        return memoryview(self._mapping)[64 * vcpu : 64 * vcpu + 64].cast("q")


@dataclass(frozen=True, slots=True)
class VcpuStart:
    """What a vCPU process is given: its number, workload, memory, words and wakers.

    `handover` takes its userfaultfd to the VMX; None where the byte map tracks, which is
    `written`.
    """

    number: int
    workload: VcpuWorkload
    memory: GuestMemory
    block: RunBlock
    wake_fd: int
    answer_fd: int
    handover: socket.socket | None
    written: np.ndarray[tuple[int], np.dtype[np.uint8]] | None
    setup: Callable[[], None] | None


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
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before the kernel could be told
    libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    gc.disable()
    if start.setup is not None:
        start.setup()
    if start.handover is not None:
        with_fd = open_userfaultfd()
        start.handover.sendmsg([b"u"], [(1, 1, with_fd.to_bytes(4, sys.byteorder))])
    # Whatever else the VMX has open (sockets above all) must not live on in this process.
    _close_all_but(start.wake_fd, start.answer_fd)
    # select() takes low numbers only, and it alone sleeps for less than a millisecond.
    wake_fd = fcntl.fcntl(start.wake_fd, fcntl.F_DUPFD_CLOEXEC, 3)
    start.memory.populate()
    _Vcpu(start, wake_fd).live()


def _close_all_but(*keep: int) -> None:
    bounds = sorted({2, *keep, os.sysconf("SC_OPEN_MAX")})
    for low, high in itertools.pairwise(bounds):
        os.closerange(low + 1, high)


class _Vcpu:
    """The life of a vCPU process."""

    def __init__(self, start: VcpuStart, wake_fd: int) -> None:
        self._start, self._wake_fd = start, wake_fd
        self._command = start.block.words(start.number)
        self._state = layout.vcpu_words(start.memory, start.number)

    def live(self) -> NoReturn:
        """Stop and run in turn, until killed."""
        while True:
            self._answer(STOPPED)
            while not self._command[0]:
                os.read(self._wake_fd, 8)
            self._resume()
            self._answer(RUNNING)
            self._run()

    def _answer(self, state: int) -> None:
        self._command[1] = state
        os.eventfd_write(self._start.answer_fd, 1)

    def _resume(self) -> None:
        state, now = self._state, time.monotonic_ns()
        state[layout.RESUME_GAP] = now - state[layout.BEAT] if state[layout.BEAT] else 0
        state[layout.LONGEST_GAP] = state[layout.LONGEST_GAP_AT] = 0
        state[layout.RESUMED_AT] = state[layout.BEAT] = now
        state[layout.RESUMES] += 1

    def _beat(self) -> int:
        state, now = self._state, time.monotonic_ns()
        gap = now - state[layout.BEAT]
        if gap > state[layout.LONGEST_GAP]:
            state[layout.LONGEST_GAP], state[layout.LONGEST_GAP_AT] = gap, now
        state[layout.BEAT] = now
        return now

    def _run(self) -> None:
        command, state, workload = self._command, self._state, self._start.workload
        memory, written, interval_ns = self._start.memory, self._start.written, workload.interval_ns
        beat_ns = IDLE_BEAT_NS if interval_ns is None else BEAT_NS
        now = time.monotonic_ns()
        due = float(now)
        while command[0]:
            if interval_ns is None:
                due = now + beat_ns
            else:
                batch = state[layout.BATCHES]
                pages = workload.write(memory, batch)
                if written is not None:
                    written[pages] = 1  # after the write: see bytemap.py
                state[layout.BATCHES] = batch + 1
                state[layout.PAGES_WRITTEN] += workload.pages_per_batch
                due += interval_ns
                now = self._beat()
                due = max(due, now - _MADE_UP_NS)
            while now < due and command[0]:
                wait_ns = min(due - now, beat_ns)
                if select.select([self._wake_fd], [], [], wait_ns / 1e9)[0]:
                    os.read(self._wake_fd, 8)
                now = self._beat()
