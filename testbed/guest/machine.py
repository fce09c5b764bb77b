"""A guest as its VMX sees it: memory, vCPU processes, suspend and resume."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, overload

import numpy as np

from testbed.errors import MigrationError
from testbed.guest import layout
from testbed.guest.backing import open_memory, tracking_for
from testbed.guest.bytemap import BytemapTracker, make_bytemap
from testbed.guest.pagemap import PagemapTracker
from testbed.guest.program import encode
from testbed.guest.run_block import CLAIM, GO, RUNNING, STOP, STOPPED, RunBlock
from testbed.guest.tasks.build import check_tasks, fill_key, filled, regions
from testbed.guest.tracing import TracedTracker
from testbed.guest.vcpu_processes import VcpuProcesses, check_affinity

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from testbed.guest.bytemap import Bytemap
    from testbed.guest.specification import GuestSpec
    from testbed.guest.trace import TraceMode
    from testbed.guest.tracking import DirtyTracker, TrackingName
    from testbed.guest.workloads import Workload

_STOP_NS = 1_000_000_000  # a step takes 0.2 ms; a machine may be busy


class Guest:
    """A VM on this host; the process that makes it is its VMX and parent of its vCPUs.

    Made by `power_on` or `create_masked`; ended by `power_off`, or as a context manager.
    """

    def __init__(
        self,
        spec: GuestSpec,
        vcpu_setup: Callable[[], None] | None = None,
        tracking: TrackingName | None = None,
        *,
        arriving: bool = False,
    ) -> None:
        """Make the memory, zeroed, and the vCPU processes, which wait; see `create_masked`."""
        regions(spec)
        check_affinity(spec)
        self.spec = spec
        self.program = spec
        """What it does now: `spec` with the workloads that it was switched to."""
        self.tracking: TrackingName = tracking_for(spec, tracking)
        with ExitStack() as undo:
            self.memory = open_memory(spec, arriving=arriving)
            undo.callback(self.memory.close)
            self._written: Bytemap | None = None
            self._written_fd: int | None = None
            if self.tracking == "bytemap":
                self._written_fd, self._written = make_bytemap(self.memory.page_count)
                undo.callback(os.close, self._written_fd)
            check_tasks(spec, self.memory)
            self._block = RunBlock(spec.vcpus)
            undo.callback(self._block.close)
            self._block.write_program(encode(spec))
            self._vcpus = undo.enter_context(
                VcpuProcesses(spec, self.memory, self._block, self._written, vcpu_setup)
            )
            self.pids, self.pidfds = self._vcpus.pids, self._vcpus.pidfds
            self.userfaultfds = self._vcpus.userfaultfds
            self.missing_pages = 0  # not there yet, see missing.py
            self._undo = undo.pop_all()

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

        Before `resume` nothing writes its memory, and a swap file is its source's; see `power_on`.
        """
        return cls(spec, vcpu_setup, tracking, arriving=True)

    # -- run and stop ---------------------------------------------------------------------

    def suspend(self, deadline_ns: int = _STOP_NS) -> None:
        """Stop every vCPU between two steps, and the NIC if attached; else all run on.

        Raises:
            MigrationError: one did not stop in time, or a vCPU has died.
        """
        self._stop(self._vcpus.lines, STOP, deadline_ns)

    def resume(self, deadline_ns: int = _STOP_NS) -> None:
        """Run every vCPU, from the state that guest memory holds; returns when all run.

        Raises:
            MigrationError: the memory is no guest's, or a vCPU does not answer or has died.
        """
        layout.check(self.memory, self.spec.vcpus)
        self._vcpus.command(self._vcpus.lines, GO)
        self._vcpus.wait(self._vcpus.lines, RUNNING, deadline_ns, "run")

    def claim(self, vcpu: int, deadline_ns: int = _STOP_NS) -> None:
        """Stop one vCPU, while the others run on, until `release`; if it does not stop, it runs on.

        Raises:
            MigrationError: as for `suspend`.
        """
        self._stop(range(vcpu, vcpu + 1), CLAIM, deadline_ns)

    def release(self, vcpu: int, deadline_ns: int = _STOP_NS) -> None:
        """Let a vCPU that was claimed go on.

        Raises:
            MigrationError: as for `resume`.
        """
        self._vcpus.command((vcpu,), GO)
        self._vcpus.wait((vcpu,), RUNNING, deadline_ns, "run")

    @property
    def running(self) -> bool:
        """Whether the vCPUs have been told to run and do."""
        return bool((self._block.state[: self.spec.vcpus] == RUNNING).all())

    def throttle(self, sleep_ns_per_ms: int | None, vcpu: int | None = None) -> None:
        """Have a vCPU (None: all) sleep so long for each millisecond it has run, until told anew.

        So a busy one gets 1e6 / (1e6 + sleep) of its time; None or 0: it does not sleep.
        """
        lines = slice(self.spec.vcpus) if vcpu is None else vcpu
        self._block.sleep[lines] = sleep_ns_per_ms or 0

    def throttles(self) -> list[int]:
        """How long each vCPU sleeps for a millisecond that it has run."""
        return [int(sleep_ns) for sleep_ns in self._block.sleep[: self.spec.vcpus]]

    def switch_workloads(self, workloads: tuple[Workload, ...]) -> None:
        """Have the guest do something else, from the beginning; its memory stays as it is.

        A running guest is stopped for it, a suspended one stays so.

        Raises:
            InputError, ValueError: the workloads do not fit the VM, which goes on as it was.
            MigrationError: a vCPU did not stop or run.
        """
        program = replace(self.program, workloads=workloads)
        check_tasks(program, self.memory)
        text = encode(program)
        self._block.check_program(text)
        suspended = bool((self._block.state[: self.spec.vcpus] == STOPPED).all())
        if not suspended:
            self.suspend()
        layout.forget_tasks(self.memory, self.spec.vcpus)
        self._block.write_program(text)
        self.program = program
        if not suspended:
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
            "wake": self._vcpus.wake_fds[0],
            "kick": self._vcpus.kick_fd,
            "answer": self._vcpus.answer_fd,
            "written": self._written_fd,
        }

    def attach_nic(self, pid: int | None = None) -> None:
        """Have the NIC process, which has this guest's `nic_line`, run and stop with the vCPUs.

        It goes on as soon as the guest runs. Given its `pid`, nobody waits for it once it ended.
        """
        self._vcpus.attach_nic(pid)
        if self.running:
            self._vcpus.command((self.spec.vcpus,), GO)

    def detach_nic(self) -> None:
        """Stop the NIC process at this guest, and wait for it no more."""
        self._vcpus.detach_nic()
        self._vcpus.command((self.spec.vcpus,), STOP)

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
        return tuple((int(n), int(vcpu), int(failed[n, vcpu])) for n, vcpu in np.argwhere(failed))

    def resume_gap_ns(self) -> int:
        """The longest time that any vCPU stood still in the last suspend and resume."""
        return int(self.counters()["resume_gap_ns"].max())

    def state_pages(self) -> NDArray[np.int64]:
        """The pages to be sent in the stun whether or not the tracking found them.

        vCPUs write their state without marking it, and the NIC its rings, as a device does.
        """
        count = layout.first_data_page if self._vcpus.nic_attached else layout.state_pages
        return np.arange(count(self.spec.vcpus))

    def dead_vcpus(self) -> tuple[int, ...]:
        """The numbers of vCPUs whose process has died."""
        return self._vcpus.dead()

    @overload
    def tracker(self, mode: TraceMode) -> TracedTracker: ...
    @overload
    def tracker(self, mode: TraceMode | None = None) -> DirtyTracker: ...
    def tracker(self, mode: TraceMode | None = None) -> DirtyTracker:
        """Dirty tracking of this guest, not yet installed; in a mode it reports what it costs.

        Raises:
            KernelError, MigrationError: the memory isn't traced so, or not now: pages are missing.
        """
        tracker: BytemapTracker | PagemapTracker
        if self.missing_pages:  # tracking would take their place
            raise MigrationError(f"pages of {self.spec.name} are missing still")
        if self._written is not None:
            tracker = BytemapTracker(self._written)
        else:
            vcpus = tuple(zip(self.pids, self.userfaultfds, strict=True))
            tracker = PagemapTracker(vcpus, self.memory.address, self.memory.size_bytes)
        return tracker if mode is None else TracedTracker(self, tracker, mode)

    def power_off(self) -> None:
        """End the vCPUs, prove that they are gone, and free the memory."""
        self._undo.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_off()

    def _stop(self, lines: range, command: int, deadline_ns: int) -> None:
        self._vcpus.command(lines, command)
        try:
            self._vcpus.wait(lines, STOPPED, deadline_ns, "stop")
        except MigrationError:
            self._vcpus.command(lines, GO)
            raise
