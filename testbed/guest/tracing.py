"""Page tracing: how write protection is laid over a running guest, and what that costs it.

`stop-based`, as ESX before 7.0: every vCPU stands still until all page tables are protected.
`loose`, as from 7.0 on: one vCPU is claimed at a time, for one part of the memory, and the
others run on. Facts rows 34-37; what stands for what: docs/decisions/0014-page-tracing.md.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from testbed.errors import KernelError
from testbed.guest.bytemap import BytemapTracker
from testbed.guest.memory import PAGE_BYTES
from testbed.guest.pagemap import mark
from testbed.guest.specification import LARGE_PAGE_BYTES
from testbed.guest.trace import TraceReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.guest.pagemap import PagemapTracker
    from testbed.guest.specification import GuestSpec
    from testbed.guest.trace import Granularity, TraceMode

CHUNK_BYTES = 32 << 20
"""What a vCPU is claimed for at a time: 0.3 ms of protecting, as long as one step of its own."""
_ENTRIES = 512  # of a page table
_GIB = 1 << 30


class Traced(Protocol):
    """What tracing asks of a guest."""

    spec: GuestSpec

    @property
    def memory(self) -> Memory:
        """Its memory."""

    @property
    def running(self) -> bool:
        """Whether its vCPUs run."""

    def suspend(self) -> None:
        """Stop all vCPUs."""

    def resume(self) -> None:
        """Run all vCPUs."""

    def claim(self, vcpu: int) -> None:
        """Stop one vCPU."""

    def release(self, vcpu: int) -> None:
        """Run it on."""

    def counters(self) -> NDArray[np.void]:
        """The vCPUs' records."""


class TracedTracker:
    """Dirty tracking that is installed in a mode, and reports what it did.

    The byte map protects nothing: it is installed at once, and the report counts no operations.
    """

    def __init__(
        self, guest: Traced, tracker: PagemapTracker | BytemapTracker, mode: TraceMode
    ) -> None:
        """Trace a guest by a tracker of it that is not installed yet.

        Raises:
            KernelError: the kernel doesn't trace this memory at this granularity.
        """
        check_granularity(guest.memory, mode.granularity)
        self._guest, self._tracker, self.mode = guest, tracker, mode
        self._vcpus, self._size_bytes = guest.spec.vcpus, guest.memory.size_bytes
        self._grain_pages = guest.memory.trace_bytes // PAGE_BYTES
        self._fired = np.zeros((self._vcpus, -(-self._size_bytes // LARGE_PAGE_BYTES)), np.bool_)
        self._stopped_ns = [0] * self._vcpus
        self._longest_stop_ns = self._install_ns = self._protect_ns = self._page_fires = 0

    @property
    def name(self) -> str:
        """The mechanism."""
        return self._tracker.name

    def install(self) -> None:
        """Begin, in this mode: every later write is found. A guest at rest is left so.

        Raises:
            KernelError: the kernel refuses.
            MigrationError: a vCPU did not stop or run.
        """
        started_ns = time.monotonic_ns()
        if isinstance(self._tracker, BytemapTracker):
            self._tracker.install()
        else:
            with ExitStack() as undo:
                self._tracker.open()
                undo.callback(self._tracker.remove)
                self._tracker.found = self._fire
                self._install(self._tracker)
                undo.pop_all()
        self._install_ns = time.monotonic_ns() - started_ns

    def _install(self, tracker: PagemapTracker) -> None:
        def protect(vcpu: int, start: int, size_bytes: int) -> None:
            started_ns = time.monotonic_ns()
            tracker.protect(vcpu, start, size_bytes)
            self._protect_ns += time.monotonic_ns() - started_ns

        def protect_all() -> None:
            for vcpu in range(self._vcpus):
                protect(vcpu, 0, self._size_bytes)

        if not self._guest.running:
            protect_all()
        elif self.mode.stop == "stop-based":
            self._all_stopped(protect_all)
        else:
            for start in range(0, self._size_bytes, CHUNK_BYTES):
                size_bytes = min(CHUNK_BYTES, self._size_bytes - start)
                for vcpu in range(self._vcpus):
                    self._one_claimed(vcpu, partial(protect, vcpu, start, size_bytes))

    def _all_stopped(self, protect_all: Callable[[], None]) -> None:
        told_ns = time.monotonic_ns()
        self._guest.suspend()
        try:
            protect_all()
        finally:
            self._guest.resume()
        for vcpu, resumed_ns in enumerate(self._guest.counters()["resumed_at_ns"].tolist()):
            self._stood_still(vcpu, resumed_ns - told_ns)

    def _one_claimed(self, vcpu: int, protect: Callable[[], None]) -> None:
        told_ns = time.monotonic_ns()
        self._guest.claim(vcpu)
        try:
            protect()
        finally:
            self._guest.release(vcpu)
        self._stood_still(vcpu, time.monotonic_ns() - told_ns)

    def _stood_still(self, vcpu: int, duration_ns: int) -> None:
        self._stopped_ns[vcpu] += duration_ns
        self._longest_stop_ns = max(self._longest_stop_ns, duration_ns)

    def _fire(self, vcpu: int, ranges: NDArray[np.intp]) -> None:
        """Count the first writes that a scan of a vCPU's page tables found."""
        self._page_fires += int((ranges[:, 1] - ranges[:, 0]).sum()) // self._grain_pages
        last = (ranges[:, 1] - 1) // _ENTRIES
        mark(self._fired[vcpu], np.stack((ranges[:, 0] // _ENTRIES, last + 1), axis=1))

    def collect(self) -> NDArray[np.int64]:
        """The pages written since `install` or the last call, ascending, by any vCPU.

        Raises:
            KernelError: the kernel refuses.
        """
        return self._tracker.collect()

    def remove(self) -> None:
        """End; the report stays."""
        self._tracker.remove()

    def report(self) -> TraceReport:
        """What tracing did until now."""
        real = not isinstance(self._tracker, BytemapTracker)
        modelled = self.mode.granularity == "1GiB"
        entries = self._vcpus * self._size_bytes // (self._grain_pages * PAGE_BYTES)
        cost_ns = self._protect_ns / entries
        operations: dict[Granularity, int] = {}
        broken: dict[Granularity, int] = {}
        if real and modelled:
            operations["1GiB"] = self._vcpus * -(-self._size_bytes // _GIB)
            broken["2MiB"] = _groups(self._fired)
            if self._grain_pages == 1:
                broken["4KiB"] = int(np.count_nonzero(self._fired))
        elif real:
            operations[self.mode.granularity] = entries
        install_ns = round(sum(operations.values()) * cost_ns) if modelled else self._install_ns
        return TraceReport(
            mode=self.mode,
            mechanism=self.name,
            modelled=real and modelled,
            install_ns=install_ns,
            measured_install_ns=self._install_ns,
            protect_ns=self._protect_ns,
            cost_ns=cost_ns,
            operations=operations,
            broken_down=broken,
            break_down_ns=round(sum(broken.values()) * _ENTRIES * cost_ns),
            page_fires=self._page_fires,
            stopped_ns=tuple(self._stopped_ns),
            longest_stop_ns=self._longest_stop_ns,
        )


def check_granularity(memory: Memory, granularity: Granularity) -> None:
    """Prove that the kernel traces this memory so; 1 GiB is modelled on any.

    Raises:
        KernelError: it doesn't.
    """
    finest: Granularity = "4KiB" if memory.trace_bytes == PAGE_BYTES else "2MiB"
    if granularity not in {"1GiB", finest}:
        remedy = "give the VM page_size 4KiB"
        if granularity == "2MiB":
            remedy = "give the VM page_size 2MiB, and the machine huge pages for it"
        raise KernelError(
            "trace", f"writes by {granularity}", f"this memory is traced by {finest}", remedy
        )


def _groups(fired: NDArray[np.bool_]) -> int:
    """How many 1 GiB regions have a 2 MiB region that fired; a row for each vCPU."""
    starts = np.arange(0, fired.shape[1], _ENTRIES)
    return int(np.count_nonzero(np.logical_or.reduceat(fired, starts, axis=1)))
