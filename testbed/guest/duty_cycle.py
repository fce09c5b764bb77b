"""Throttles processes that don't cooperate: stops and continues them in turn (SIGSTOP, SIGCONT).

A process of its own does it, so that its pace does not depend on what its parent has to do.
Processes are never left stopped: when the parent ends it or dies, it continues them first; had
it been killed, the parent does (`close`).
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NoReturn

from testbed import prctl
from testbed.errors import InputError
from testbed.guest.vcpu_fork import close_all_but

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORTEST_PERIOD_NS = 2_000_000
"""A stop takes 0.05 ms to come into effect; exact from this period on (kernel notes)."""
_CPU_TIME = 2  # CPUCLOCK_SCHED, linux/posix-timers.h: to the nanosecond
_END = signal.SIGTERM
_MOST_CARRIED_NS = 1_000_000_000


class DutyCycle:
    """Lets processes use a share of a CPU each, all stopped at once, until closed."""

    def __init__(
        self, pids: Sequence[int], share: float, period_ns: int = 5 * SHORTEST_PERIOD_NS
    ) -> None:
        """Begin.

        Args:
            pids: the processes; one that ends is left out.
            share: above 0, up to 1.
            period_ns: of one run and one stop, at least `SHORTEST_PERIOD_NS`.

        Raises:
            InputError: share or period are out of range.
            ProcessLookupError: there is no such process.
        """
        if period_ns < SHORTEST_PERIOD_NS:
            raise InputError(
                f"a duty cycle of {period_ns / 1e6:g} ms; give {SHORTEST_PERIOD_NS / 1e6:g} ms "
                f"or more"
            )
        self._share = memoryview(mmap.mmap(-1, mmap.PAGESIZE))[:8].cast("d")
        self.share = share
        with ExitStack() as undo:
            targets = {}
            for pid in pids:
                fd = os.pidfd_open(pid)
                undo.callback(os.close, fd)
                targets[fd] = _cpu_clock(pid)
            self._targets = targets
            parent = os.getpid()
            sys.stdout.flush()
            sys.stderr.flush()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {_END})
            try:
                self.pid = os.fork()
                if not self.pid:
                    self._become_cycle(parent, period_ns)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.pidfd = os.pidfd_open(self.pid)
            undo.callback(os.close, self.pidfd)
            undo.callback(self._end)
            self._undo = undo.pop_all()

    @property
    def share(self) -> float:
        """The share of their time in which they run; may be set meanwhile."""
        return self._share[0]

    @share.setter
    def share(self, share: float) -> None:
        """Set it: above 0, up to 1.

        Raises:
            InputError: it is out of range.
        """
        if not 0 < share <= 1:
            raise InputError(f"a share of {share}; give more than 0 and at most 1")
        self._share[0] = share

    def close(self) -> None:
        """End it, and have the processes run."""
        self._undo.close()

    def __enter__(self) -> DutyCycle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        _send(dict(self._targets), signal.SIGCONT)

    # -- the process ------------------------------------------------------------------------

    def _become_cycle(self, parent: int, period_ns: int) -> NoReturn:
        targets = dict(self._targets)
        try:
            prctl.die_with_parent(_END)
            prctl.wake_exactly()
            with suppress(PermissionError):  # or it waits until a target's slice of the CPU ends
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            close_all_but(*targets)
            if os.getppid() == parent:
                _cycle(targets, self._share, period_ns)
        except BaseException:  # this process must not return into its parent's code
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            _send(targets, signal.SIGCONT)
            os._exit(0)


def _cycle(targets: dict[int, int], share: memoryview[float], period_ns: int) -> None:
    """Run and stop them in turn; what one stop was too long the next ones are shorter.

    A stop is as long as the CPU time that was used before it asks for: signals take effect late.
    """
    owed_ns = 0.0  # of standing still
    used_ns = _used_ns(targets)
    while targets:
        part = share[0]
        if _ended(part * period_ns):
            return
        if part == 1:
            owed_ns, used_ns = 0.0, _used_ns(targets)
            continue
        _send(targets, signal.SIGSTOP)
        stopped_ns, before = time.monotonic_ns(), used_ns
        used_ns = _used_ns(targets)
        ran_ns = max((used_ns[fd] - before[fd] for fd in used_ns), default=0)
        owed_ns += ran_ns * (1 - part) / part
        owed_ns = min(max(owed_ns, -_MOST_CARRIED_NS), _MOST_CARRIED_NS)
        if owed_ns > 0 and _ended(owed_ns):
            return
        _send(targets, signal.SIGCONT)
        owed_ns -= time.monotonic_ns() - stopped_ns


def _cpu_clock(pid: int) -> int:
    """The clock of the CPU time that a process uses (clock_getcpuclockid(3))."""
    return ~pid << 3 | _CPU_TIME


def _used_ns(targets: dict[int, int]) -> dict[int, int]:
    """The CPU time that each of them has used."""
    used = {}
    for fd, clock in tuple(targets.items()):
        try:
            used[fd] = time.clock_gettime_ns(clock)
        except OSError:
            del targets[fd]
    return used


def _ended(wait_ns: float) -> bool:
    """Wait; whether the end was asked for meanwhile."""
    return signal.sigtimedwait({_END}, wait_ns / 1e9) is not None


def _send(targets: dict[int, int], number: signal.Signals) -> None:
    for target in tuple(targets):
        try:
            signal.pidfd_send_signal(target, number)
        except ProcessLookupError:
            del targets[target]
