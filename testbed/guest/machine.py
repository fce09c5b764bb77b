"""A guest as its VMX sees it: memory, vCPU processes, suspend and resume."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, overload

import numpy as np

from testbed.errors import InputError, LabError, MigrationError
from testbed.guest import layout, vcpu
from testbed.guest.backing import open_memory, tracking_for
from testbed.guest.bytemap import BytemapTracker, make_bytemap
from testbed.guest.pagemap import PagemapTracker
from testbed.guest.program import encode
from testbed.guest.run_block import CLAIM, GO, RUNNING, STOP, STOPPED, RunBlock
from testbed.guest.tasks.build import build, fill_key, filled, regions
from testbed.guest.tracing import TracedTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from testbed.guest.bytemap import Bytemap
    from testbed.guest.specification import GuestSpec
    from testbed.guest.tracing import TraceMode
    from testbed.guest.tracking import DirtyTracker, TrackingName
    from testbed.guest.workloads import Workload

_STOP_NS = 1_000_000_000  # a step takes 0.2 ms; a machine may be busy
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
        regions(spec)
        _check_cpus(spec)
        self.spec = spec
        self.program = spec
        """What it does now: `spec` with the workloads that it was switched to."""
        self.tracking: TrackingName = tracking_for(spec, tracking)
        self.pids: tuple[int, ...] = ()
        self.pidfds: tuple[int, ...] = ()
        self._userfaultfds: tuple[int, ...] = ()
        self._wake_fds: tuple[int, ...] = ()
        self._nic_attached = False
        self._poll = select.poll()
        with ExitStack() as undo:
            self.memory = open_memory(spec)
            undo.callback(self.memory.close)
            self._written: Bytemap | None = None
            self._written_fd: int | None = None
            if self.tracking == "bytemap":
                self._written_fd, self._written = make_bytemap(self.memory.page_count)
                undo.callback(os.close, self._written_fd)
            self._check_tasks(spec)
            self._block = RunBlock(spec.vcpus)
            undo.callback(self._block.close)
            self._block.write_program(encode(spec))
            self._answer_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._answer_fd)
            self._kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._kick_fd)
            self._poll.register(self._answer_fd, select.POLLIN)
            for number in range(spec.vcpus):
                self._start_vcpu(number, vcpu_setup, undo)
            self._await(range(spec.vcpus), STOPPED, _START_NS, "start")
            self._undo = undo.pop_all()

    def _check_tasks(self, program: GuestSpec) -> None:
        """Build all tasks, as the vCPUs will: what can't be built is refused here and now."""
        for number in range(program.vcpus):
            build(program, number, self.memory)

    def _start_vcpu(self, number: int, setup: Callable[[], None] | None, undo: ExitStack) -> None:
        wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        undo.callback(os.close, wake_fd)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = vcpu.fork_vcpu(
                vcpu.VcpuStart(
                    number,
                    self.memory,
                    self._block,
                    wake_fd,
                    self._answer_fd,
                    self._kick_fd,
                    theirs if self.tracking == "pagemap" else None,
                    self._written,
                    setup,
                    _cpus(self.spec, number),
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
            InputError, ValueError: the specification contradicts itself, or the machine.
            KernelError: not enough memory.
            LabError: a vCPU process died.
        """
        guest = cls(spec, vcpu_setup, tracking)
        try:
            pages = filled(spec)
            guest.memory.fill(pages.start, len(pages), fill_key(spec))
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

    # -- run and stop ---------------------------------------------------------------------

    def suspend(self, deadline_ns: int = _STOP_NS) -> None:
        """Stop every vCPU between two steps, and the NIC if attached; else all run on.

        Raises:
            MigrationError: one did not stop in time, or a vCPU has died.
        """
        self._command(self._lines(), STOP)
        try:
            self._await(self._lines(), STOPPED, deadline_ns, "stop")
        except MigrationError:
            self._command(self._lines(), GO)
            raise

    def resume(self, deadline_ns: int = _STOP_NS) -> None:
        """Run every vCPU, from the state that guest memory holds; returns when all run.

        Raises:
            MigrationError: the memory is no guest's, or a vCPU does not answer or has died.
        """
        layout.check(self.memory, self.spec.vcpus)
        self._command(self._lines(), GO)
        self._await(self._lines(), RUNNING, deadline_ns, "run")

    def claim(self, vcpu: int, deadline_ns: int = _STOP_NS) -> None:
        """Stop one vCPU, while the others run on, until `release`; if it does not stop, it runs on.

        Raises:
            MigrationError: as for `suspend`.
        """
        self._command((vcpu,), CLAIM)
        try:
            self._await((vcpu,), STOPPED, deadline_ns, "stop")
        except MigrationError:
            self._command((vcpu,), GO)
            raise

    def release(self, vcpu: int, deadline_ns: int = _STOP_NS) -> None:
        """Let a vCPU that was claimed go on.

        Raises:
            MigrationError: as for `resume`.
        """
        self._command((vcpu,), GO)
        self._await((vcpu,), RUNNING, deadline_ns, "run")

    @property
    def running(self) -> bool:
        """Whether the vCPUs have been told to run and do."""
        return bool((self._block.state[: self.spec.vcpus] == RUNNING).all())

    def throttle(self, sleep_ns_per_ms: int | None, vcpu: int | None = None) -> None:
        """Have vCPUs sleep for so long for each millisecond that they have run, until told anew.

        So a busy one gets 1e6 / (1e6 + sleep) of its time.

        Args:
            sleep_ns_per_ms: how long; None or 0: not at all.
            vcpu: which; None: all.
        """
        lines = range(self.spec.vcpus) if vcpu is None else (vcpu,)
        for line in lines:
            self._block.sleep[line] = sleep_ns_per_ms or 0

    def switch_workloads(self, workloads: tuple[Workload, ...]) -> None:
        """Have the guest do something else, from the beginning; its memory stays as it is.

        A running guest is stopped for it, a suspended one stays so.

        Raises:
            InputError, ValueError: the workloads do not fit the VM, which goes on as it was.
            MigrationError: a vCPU did not stop or run.
        """
        program = replace(self.program, workloads=workloads)
        self._check_tasks(program)
        text = encode(program)
        self._block.check_program(text)
        running = self.running
        if running:
            self.suspend()
        layout.forget_tasks(self.memory, self.spec.vcpus)
        self._block.write_program(text)
        self.program = program
        if running:
            self.resume()

    # -- the NIC --------------------------------------------------------------------------

    def nic_line(self) -> dict[str, int | None]:
        """The numbers of this process's descriptors that a NIC process fetches.

        `wake` wakes vCPU 0, `kick` the NIC process, `answer` whoever waits for its line of the
        run block (`block`, line number `vcpus`); `written` is the byte map, if that tracks.
        """
        return {
            "memory": self.memory.fd,
            "block": self._block.fd,
            "wake": self._wake_fds[0],
            "kick": self._kick_fd,
            "answer": self._answer_fd,
            "written": self._written_fd,
        }

    def attach_nic(self) -> None:
        """Have the NIC process, which has this guest's `nic_line`, run and stop with the vCPUs.

        It goes on as soon as the guest runs.
        """
        self._nic_attached = True
        if self.running:
            self._command((self.spec.vcpus,), GO)

    def detach_nic(self) -> None:
        """Stop the NIC process at this guest, and wait for it no more."""
        self._nic_attached = False
        self._command((self.spec.vcpus,), STOP)

    # -- what it has done -----------------------------------------------------------------

    def counters(self) -> NDArray[np.void]:
        """A copy of the vCPUs' records, rows of `layout.VCPU`."""
        return layout.vcpu_records(self.memory.state, self.spec.vcpus)

    def task_counters(self) -> NDArray[np.void]:
        """A copy of the workloads' records, rows (workload, vCPU) of `layout.TASK`."""
        return layout.task_records(self.memory.state, self.spec.vcpus, len(self.program.workloads))

    def failed_tasks(self) -> tuple[tuple[int, int, int], ...]:
        """(Workload's number, vCPU, errno) of each task that an error has ended."""
        failed = self.task_counters()["failed"]
        return tuple(
            (int(task), int(number), int(failed[task, number]))
            for task, number in np.argwhere(failed)
        )

    def resume_gap_ns(self) -> int:
        """The longest time that any vCPU stood still in the last suspend and resume."""
        return int(self.counters()["resume_gap_ns"].max())

    def state_pages(self) -> NDArray[np.int64]:
        """The pages to be sent in the stun whether or not the tracking found them.

        vCPUs write their state without marking it, and the NIC its rings, as a device does.
        """
        vcpus = self.spec.vcpus
        count = layout.first_data_page if self._nic_attached else layout.state_pages
        return np.arange(count(vcpus))

    def dead_vcpus(self) -> tuple[int, ...]:
        """The numbers of vCPUs whose process has died."""
        poll = select.poll()
        for fd in self.pidfds:
            poll.register(fd, select.POLLIN)
        ended = {fd for fd, _ in poll.poll(0)}
        return tuple(number for number, fd in enumerate(self.pidfds) if fd in ended)

    @overload
    def tracker(self, mode: None = None) -> DirtyTracker: ...
    @overload
    def tracker(self, mode: TraceMode) -> TracedTracker: ...
    def tracker(self, mode: TraceMode | None = None) -> DirtyTracker:
        """Dirty tracking of this guest, not yet installed; in a mode it reports what it costs.

        Raises:
            KernelError: the kernel doesn't trace this memory so.
        """
        tracker: BytemapTracker | PagemapTracker
        if self._written is not None:
            tracker = BytemapTracker(self._written)
        else:
            vcpus = tuple(zip(self.pids, self._userfaultfds, strict=True))
            tracker = PagemapTracker(vcpus, self.memory.address, self.memory.size_bytes)
        return tracker if mode is None else TracedTracker(self, tracker, mode)

    def power_off(self) -> None:
        """End the vCPUs, prove that they are gone, and free the memory."""
        self._undo.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_off()

    def _lines(self) -> range:
        return range(self.spec.vcpus + self._nic_attached)

    def _command(self, lines: Iterable[int], command: int) -> None:
        for line in lines:
            self._block.run[line] = command
        for line in lines:
            os.eventfd_write((*self._wake_fds, self._kick_fd)[line], 1)

    def _await(self, lines: Iterable[int], state: int, timeout_ns: int, verb: str) -> None:
        """Wait until these lines say so."""
        deadline = time.monotonic_ns() + timeout_ns
        while late := [line for line in lines if self._block.state[line] != state]:
            left_ms = (deadline - time.monotonic_ns()) / 1e6
            ready = self._poll.poll(max(left_ms, 0))
            if any(fd != self._answer_fd for fd, _ in ready):
                raise MigrationError(f"vCPU {self.dead_vcpus()} of {self.spec.name} has died")
            if not ready:
                vcpus = [line for line in late if line < self.spec.vcpus]
                who = f"vCPU {vcpus}" if vcpus else "the NIC process"
                raise MigrationError(
                    f"{who} of {self.spec.name} did not {verb} within {timeout_ns / 1e6:g} ms"
                )
            with suppress(BlockingIOError):
                os.eventfd_read(self._answer_fd)


def _cpus(spec: GuestSpec, number: int) -> frozenset[int]:
    """Where a vCPU may run: on one of the CPUs if there are several of both."""
    if spec.vcpus > 1 and len(spec.affinity) > 1:
        return frozenset({spec.affinity[number % len(spec.affinity)]})
    return frozenset(spec.affinity)


def _check_cpus(spec: GuestSpec) -> None:
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
