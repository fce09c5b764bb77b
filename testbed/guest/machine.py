"""A guest as its VMX sees it: memory, vCPU processes, suspend and resume."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from testbed.errors import LabError, MigrationError
from testbed.guest import layout, vcpu
from testbed.guest.bytemap import BytemapTracker, make_bytemap
from testbed.guest.memory import GuestMemory
from testbed.guest.pagemap import PagemapTracker
from testbed.guest.tracking import probe
from testbed.guest.workload import fill, vcpu_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from testbed.guest.specification import GuestSpec
    from testbed.guest.tracking import DirtyTracker, TrackingName

_STOP_NS = 1_000_000_000  # a batch takes 0.2 ms; a machine may be busy
_START_NS = 60_000_000_000


class Guest:
    """A VM on this host; the process that makes it is its VMX and parent of its vCPUs.

    Made by `power_on` or `create_masked`; ended by `power_off`, or as a context manager.
    """

    def __init__(
        self,
        spec: GuestSpec,
        vcpu_setup: Callable[[], None] | None = None,
        tracking: TrackingName | None = None,
    ) -> None:
        """Make the memory, zeroed, and the vCPU processes, which wait; see `create_masked`."""
        self.spec = spec
        self.tracking: TrackingName = tracking or probe()[0]
        self.pids: tuple[int, ...] = ()
        self.pidfds: tuple[int, ...] = ()
        self._userfaultfds: tuple[int, ...] = ()
        self._wake_fds: tuple[int, ...] = ()
        self._poll = select.poll()
        with ExitStack() as undo:
            self.memory = undo.enter_context(GuestMemory(spec.name, spec.memory_bytes))
            self._written = (
                make_bytemap(self.memory.page_count) if self.tracking == "bytemap" else None
            )
            self._block = vcpu.RunBlock(spec.vcpus)
            self._answer_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._answer_fd)
            self._poll.register(self._answer_fd, select.POLLIN)
            for number in range(spec.vcpus):
                self._start_vcpu(number, vcpu_setup, undo)
            self._await(vcpu.STOPPED, _START_NS, "start")
            self._undo = undo.pop_all()

    def _start_vcpu(self, number: int, setup: Callable[[], None] | None, undo: ExitStack) -> None:
        wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        undo.callback(os.close, wake_fd)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = vcpu.fork_vcpu(
                vcpu.VcpuStart(
                    number,
                    vcpu_workload(self.spec, number),
                    self.memory,
                    self._block,
                    wake_fd,
                    self._answer_fd,
                    theirs if self.tracking == "pagemap" else None,
                    self._written,
                    setup,
                )
            )
            pidfd = os.pidfd_open(pid)
            undo.callback(_end, pidfd)
            theirs.close()
            self._poll.register(pidfd, select.POLLIN)
            self._wake_fds += (wake_fd,)
            self.pids += (pid,)
            self.pidfds += (pidfd,)
            if self.tracking == "pagemap":
                _, fds, _, _ = socket.recv_fds(ours, 1, 1)
                if not fds:
                    raise LabError(f"vCPU {number} of {self.spec.name} died while it started")
                undo.callback(os.close, fds[0])
                self._userfaultfds += (fds[0],)

    @classmethod
    def power_on(
        cls,
        spec: GuestSpec,
        vcpu_setup: Callable[[], None] | None = None,
        tracking: TrackingName | None = None,
    ) -> Guest:
        """Start a VM with fresh memory.

        Args:
            spec: the VM.
            vcpu_setup: run in each vCPU's process right after its fork (to enter a namespace).
            tracking: the dirty tracking that it will be migrated with; None probes.

        Raises:
            ValueError: the specification contradicts itself.
            KernelError: not enough memory.
            LabError: a vCPU process died.
        """
        guest = cls(spec, vcpu_setup, tracking)
        try:
            fill(guest.memory, spec)
            layout.initialise(guest.memory, spec.vcpus)
            guest.resume()
        except BaseException:
            guest.power_off()
            raise
        return guest

    @classmethod
    def create_masked(
        cls,
        spec: GuestSpec,
        vcpu_setup: Callable[[], None] | None = None,
        tracking: TrackingName | None = None,
    ) -> Guest:
        """Make a VM that only waits: memory populated, vCPU processes forked and mapped.

        Nothing writes its memory before `resume`. Arguments and errors as for `power_on`.
        """
        return cls(spec, vcpu_setup, tracking)

    def suspend(self, deadline_ns: int = _STOP_NS) -> None:
        """Stop every vCPU between two batches; if one does not, all run on.

        Raises:
            MigrationError: a vCPU did not stop in time, or has died.
        """
        self._command(0)
        try:
            self._await(vcpu.STOPPED, deadline_ns, "stop")
        except MigrationError:
            self._command(1)
            raise

    def resume(self, deadline_ns: int = _STOP_NS) -> None:
        """Run every vCPU, from the state that guest memory holds; returns when all run.

        Raises:
            MigrationError: the memory is no guest's, or a vCPU does not answer or has died.
        """
        layout.check(self.memory, self.spec.vcpus)
        self._command(1)
        self._await(vcpu.RUNNING, deadline_ns, "run")

    @property
    def running(self) -> bool:
        """Whether the vCPUs have been told to run and do."""
        return bool((self._block.state == vcpu.RUNNING).all())

    def counters(self) -> NDArray[np.void]:
        """A copy of the vCPUs' state, rows of `layout.VCPU`."""
        return layout.counters(self.memory, self.spec.vcpus)

    def resume_gap_ns(self) -> int:
        """The longest time that any vCPU stood still in the last suspend and resume."""
        return int(self.counters()["resume_gap_ns"].max())

    def control_pages(self) -> int:
        """How many pages at the start of memory hold the vCPUs' state."""
        return layout.control_pages(self.spec.vcpus)

    def dead_vcpus(self) -> tuple[int, ...]:
        """The numbers of vCPUs whose process has died."""
        poll = select.poll()
        for fd in self.pidfds:
            poll.register(fd, select.POLLIN)
        ended = {fd for fd, _ in poll.poll(0)}
        return tuple(number for number, fd in enumerate(self.pidfds) if fd in ended)

    def tracker(self) -> DirtyTracker:
        """Dirty tracking of this guest, not yet installed."""
        if self._written is not None:
            return BytemapTracker(self._written)
        vcpus = tuple(zip(self.pids, self._userfaultfds, strict=True))
        return PagemapTracker(vcpus, self.memory.address, self.memory.size_bytes)

    def power_off(self) -> None:
        """End the vCPUs, prove that they are gone, and free the memory."""
        self._undo.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_off()

    def _command(self, run: int) -> None:
        self._block.run[:] = run
        for fd in self._wake_fds:
            os.eventfd_write(fd, 1)

    def _await(self, state: int, timeout_ns: int, verb: str) -> None:
        deadline = time.monotonic_ns() + timeout_ns
        while not (self._block.state == state).all():
            left_ms = (deadline - time.monotonic_ns()) / 1e6
            ready = self._poll.poll(max(left_ms, 0))
            if any(fd != self._answer_fd for fd, _ in ready):
                raise MigrationError(f"vCPU {self.dead_vcpus()} of {self.spec.name} has died")
            if not ready:
                late = (self._block.state != state).nonzero()[0].tolist()
                raise MigrationError(
                    f"vCPU {late} of {self.spec.name} did not {verb} within {timeout_ns / 1e6:g} ms"
                )
            os.eventfd_read(self._answer_fd)


def _end(pidfd: int) -> None:
    """Kill a child and wait until the kernel has no process of it."""
    with suppress(ProcessLookupError):  # it died before
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
