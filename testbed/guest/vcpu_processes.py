"""The processes of a guest's vCPUs, as their parent sees them: started, commanded, ended."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from testbed.errors import InputError, LabError, MigrationError
from testbed.guest.run_block import STOPPED
from testbed.guest.vcpu import VcpuStart
from testbed.guest.vcpu_fork import fork_vcpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from testbed.guest.bytemap import Bytemap
    from testbed.guest.memory import Memory
    from testbed.guest.run_block import RunBlock
    from testbed.guest.specification import GuestSpec

_START_NS = 60_000_000_000


class VcpuProcesses:
    """All of a guest's vCPUs, started and stopped. A context manager, which ends them.

    `wake_fds` wake them, `kick_fd` the VM's NIC process; all of them answer on `answer_fd`.
    """

    def __init__(
        self,
        spec: GuestSpec,
        memory: Memory,
        block: RunBlock,
        written: Bytemap | None,
        setup: Callable[[], None] | None,
    ) -> None:
        """Fork them, and wait until each has mapped the memory and built its tasks.

        Each hands over a userfaultfd of its own (`userfaultfds`, none if the kernel has none).
        `written` is the byte map, if that tracks. `setup`: see `Guest.power_on`.

        Raises:
            LabError, MigrationError: one died.
        """
        self._spec, self._memory, self._block, self._written = spec, memory, block, written
        self._setup = setup
        self.pids: tuple[int, ...] = ()
        self.pidfds: tuple[int, ...] = ()
        self.userfaultfds: tuple[int, ...] = ()
        self.wake_fds: tuple[int, ...] = ()
        self._poll = select.poll()
        self._nic = ExitStack()
        self._nic_attached, self._nic_pidfd = False, -1
        with ExitStack() as undo:
            undo.callback(self._nic.close)
            self.answer_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self.answer_fd)
            self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self.kick_fd)
            self._poll.register(self.answer_fd, select.POLLIN)
            for number in range(spec.vcpus):
                self._start(number, undo)
            self.wait(range(spec.vcpus), STOPPED, _START_NS, "start")
            self._undo = undo.pop_all()

    def __enter__(self) -> VcpuProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _start(self, number: int, undo: ExitStack) -> None:
        wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        undo.callback(os.close, wake_fd)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = fork_vcpu(
                VcpuStart(
                    number,
                    self._memory,
                    self._block,
                    wake_fd,
                    self.answer_fd,
                    self.kick_fd,
                    theirs,
                    self._written,
                    self._setup,
                    _cpus(self._spec, number),
                )
            )
            pidfd = os.pidfd_open(pid)
            undo.callback(_end, pidfd)
            theirs.close()
            self._poll.register(pidfd, select.POLLIN)
            self.wake_fds += (wake_fd,)
            self.pids += (pid,)
            self.pidfds += (pidfd,)
            told, fds, _, _ = socket.recv_fds(ours, 1, 1)
            if not told:
                raise LabError(f"vCPU {number} of {self._spec.name} died while it started")
            for fd in fds:
                undo.callback(os.close, fd)
            self.userfaultfds += tuple(fds)

    def attach_nic(self, pid: int | None) -> None:
        """Have the VM's NIC process stop and run with them, until it is detached or ends."""
        self.detach_nic()
        if pid is not None:
            self._nic_pidfd = os.pidfd_open(pid)
            self._nic.callback(os.close, self._nic_pidfd)
            self._poll.register(self._nic_pidfd, select.POLLIN)
            self._nic.callback(self._poll.unregister, self._nic_pidfd)
        self._nic_attached = True

    def detach_nic(self) -> None:
        """Wait for the NIC process no more."""
        self._nic_attached, self._nic_pidfd = False, -1
        self._nic.close()

    @property
    def nic_attached(self) -> bool:
        """Whether there is a NIC process to stop and run with them; one that has ended isn't."""
        if self._nic_pidfd >= 0 and select.select([self._nic_pidfd], [], [], 0)[0]:
            self.detach_nic()
        return self._nic_attached

    @property
    def lines(self) -> range:
        """Whose lines of the run block stop and run together."""
        return range(self._spec.vcpus + self.nic_attached)

    def command(self, lines: Iterable[int], command: int) -> None:
        """Tell vCPUs, and the NIC process (line number `vcpus`), to run or to stop."""
        for line in lines:
            self._block.run[line] = command
        for line in lines:
            os.eventfd_write((*self.wake_fds, self.kick_fd)[line], 1)

    def wait(self, lines: Iterable[int], state: int, timeout_ns: int, verb: str) -> None:
        """Wait until these lines of the run block say so.

        Raises:
            MigrationError: they don't in time, or a vCPU has died.
        """
        deadline = time.monotonic_ns() + timeout_ns
        while late := [line for line in lines if self._block.state[line] != state]:
            left_ms = (deadline - time.monotonic_ns()) / 1e6
            ready = {fd for fd, _ in self._poll.poll(max(left_ms, 0))}
            if self._nic_pidfd in ready:
                self.detach_nic()
                lines = [line for line in lines if line < self._spec.vcpus]
            elif ready - {self.answer_fd}:
                raise MigrationError(f"vCPU {self.dead()} of {self._spec.name} has died")
            elif not ready:
                vcpus = [line for line in late if line < self._spec.vcpus]
                who = f"vCPU {vcpus}" if vcpus else "the NIC process"
                raise MigrationError(
                    f"{who} of {self._spec.name} did not {verb} within {timeout_ns / 1e6:g} ms"
                )
            with suppress(BlockingIOError):
                os.eventfd_read(self.answer_fd)

    def dead(self) -> tuple[int, ...]:
        """The numbers of those whose process has died."""
        poll = select.poll()
        for fd in self.pidfds:
            poll.register(fd, select.POLLIN)
        ended = {fd for fd, _ in poll.poll(0)}
        return tuple(number for number, fd in enumerate(self.pidfds) if fd in ended)


def _cpus(spec: GuestSpec, number: int) -> frozenset[int]:
    """Where a vCPU may run: on one of the CPUs if there are several of both."""
    if spec.vcpus > 1 and len(spec.affinity) > 1:
        return frozenset({spec.affinity[number % len(spec.affinity)]})
    return frozenset(spec.affinity)


def check_affinity(spec: GuestSpec) -> None:
    """Try each CPU that a vCPU is to be pinned to.

    Raises:
        InputError: one isn't there, or not for this process.
    """
    now = os.sched_getaffinity(0)
    try:
        for cpu in spec.affinity:
            try:
                os.sched_setaffinity(0, {cpu})
            except (OSError, ValueError, OverflowError) as error:
                raise InputError(
                    f"VM {spec.name}: its vCPUs can't run on CPU {cpu} ({error}); "
                    f"`affinity` takes CPUs of this machine, as in {sorted(now)}"
                ) from error
    finally:
        if spec.affinity:
            os.sched_setaffinity(0, now)


def _end(pidfd: int) -> None:
    """Kill a child and wait until the kernel has no process of it."""
    with suppress(ProcessLookupError):  # it died before
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
