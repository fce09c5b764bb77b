"""The source's end of a migration: copies the memory, stuns the guest, hands it over."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import TestbedError
from testbed.guest.backing import check_movable, told
from testbed.guest.tracing import TracedTracker
from testbed.migration.convergence import copy_ns, decide
from testbed.migration.observation import Observation, Progress
from testbed.migration.outgoing import Outgoing
from testbed.migration.pauses import no_garbage_collection
from testbed.migration.phase import MigrationFailed, MigrationUncertain, Phase, enter
from testbed.migration.specification import refuse_unbuilt
from testbed.migration.stream import PeerError
from testbed.migration.wire import RESUMED_BYTES, Kind, Resumed, WireError, pack, unpack_resumed
from testbed.report.result import EngineReport, Switchover

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from testbed.guest.machine import Guest
    from testbed.guest.tracking import DirtyTracker
    from testbed.migration.specification import MigrationSpec

__all__ = ["Progress", "SourceHooks", "migrate", "take_back"]


def _nothing(*_: object) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class SourceHooks:
    """What the lab does at the source, and is told.

    `cut` at the first instant of the stun, `uncut` when the guest runs on here after all;
    `progress` about ten times a second; `cancelled` is asked about forty times a second.
    """

    cut: Callable[[], None] = _nothing
    uncut: Callable[[], None] = _nothing
    progress: Callable[[Progress], None] = _nothing
    cancelled: Callable[[], bool] = _never


def migrate(
    guest: Guest,
    spec: MigrationSpec,
    hooks: SourceHooks | None = None,
    started_ns: int | None = None,
) -> EngineReport:
    """Move a running guest to the destination that waits for it.

    On return it runs there, and the caller powers it off here. `started_ns` (CLOCK_MONOTONIC)
    is when the migration began, if that was before this call.

    Raises:
        MigrationFailed: it runs on here; the destination cleans up by itself.
        MigrationUncertain: it is suspended here and may run there.
    """
    refuse_unbuilt(spec)
    migration = _Source(guest, spec, hooks or SourceHooks(), started_ns or time.monotonic_ns())
    with ExitStack() as undo:
        undo.enter_context(no_garbage_collection())
        try:
            return migration.run(undo)
        except (PeerError, WireError, TestbedError) as error:
            failed = error if isinstance(error, MigrationFailed) else migration.failed(error)
            failed.measured = migration.measured()
            raise failed from error


def take_back(guest: Guest, hooks: SourceHooks | None = None) -> None:
    """Run the guest on at its source, after a `MigrationUncertain`.

    Only when it doesn't run at the destination and never will: that end is known to be gone.

    Raises:
        MigrationError: a vCPU doesn't answer.
    """
    guest.resume()
    (hooks or SourceHooks()).uncut()


def _merged(*pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """All of them, ascending, each once (numpy's own union1d loads modules when first called)."""
    every = np.sort(np.concatenate(pages))
    first = np.ones(len(every), np.bool_)
    np.not_equal(every[1:], every[:-1], out=first[1:])
    return every[first]


class _Source:
    """One migration at its source."""

    def __init__(
        self, guest: Guest, spec: MigrationSpec, hooks: SourceHooks, started_ns: int
    ) -> None:
        self._guest, self._spec, self._hooks = guest, spec, hooks
        self._started_ns = started_ns
        self._cpu_ns = time.process_time_ns()
        self._phase = Phase.CONNECT
        self._seen = Observation(started_ns)
        self._out: Outgoing
        self._tracker: DirtyTracker
        self._traced: TracedTracker | None = None
        self._prepare_ns = 0

    def failed(self, error: Exception) -> MigrationFailed:
        """What to raise, given what went wrong."""
        told = self._phase is not Phase.RESUME and hasattr(self, "_out")
        return self.failure(self._out.reason(error) if told else str(error))

    def failure(self, cause: str) -> MigrationFailed:
        """What to raise in the phase that the migration is in."""
        if dead := self._guest.dead_vcpus():
            cause = f"vCPU {', '.join(map(str, dead))} has died ({cause})"
        if self._phase is Phase.RESUME:
            return MigrationUncertain(
                self._phase,
                f"the destination was told to run {self._guest.spec.name} and did not answer "
                f"({cause})",
                "find out whether it runs there before it is resumed here",
            )
        phase = self._phase
        if phase is not Phase.FAILED:
            self._phase = enter(phase, Phase.FAILED)
        name = self._guest.spec.name
        remedy = f"{name} has failed" if dead else f"{name} runs on at its source"
        return MigrationFailed(phase, cause, remedy)

    def run(self, undo: ExitStack) -> EngineReport:
        """All phases; what they acquire goes onto `undo`."""
        spec, memory = self._spec, self._guest.memory
        check_movable(self._guest.spec)
        self._out = undo.enter_context(Outgoing(spec, memory, self._turn))
        undo.push(self._say_why)
        self._out.connect()
        self._phase = enter(self._phase, Phase.PREPARE)
        self._out.first.expect(Kind.PREPARED)

        self._phase = enter(self._phase, Phase.TRACE)
        self._tracker = tracker = self._guest.tracker(spec.trace)
        self._traced = tracker if isinstance(tracker, TracedTracker) else None
        tracker.install()
        undo.callback(tracker.remove)

        self._phase = enter(self._phase, Phase.PRECOPY)
        self._prepare_ns = time.monotonic_ns() - self._started_ns
        return self._switch_over(self._precopy())

    def _say_why(self, _: object, error: BaseException | None, __: object) -> None:
        """Tell the destination that the source gives up, unless the guest is its own."""
        if error is not None and self._phase is not Phase.RESUME:
            cause = error.cause if isinstance(error, MigrationFailed) else type(error).__name__
            self._out.tell_failure(cause)

    def _precopy(self) -> NDArray[np.int64]:
        """Iterate until the rest fits the goal; returns the pages left, found dirty already."""
        dirty = self._iterate(None)
        while (decision := decide(self._seen.iterations, self._spec)).next == "copy":
            dirty = self._iterate(dirty)
        if decision.next == "fail":
            self._phase = enter(self._phase, Phase.FAILED)
            raise MigrationFailed(Phase.PRECOPY, decision.cause, decision.remedy)
        return dirty

    def _iterate(self, pages: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Send these pages (None: all), and find what has been dirtied meanwhile."""
        at_ns = time.monotonic_ns()
        number = self._seen.next_iteration
        count = self._seen.pages_to_copy = (
            self._guest.memory.page_count if pages is None else len(pages)
        )
        self._out.copy(pages, number)
        ended_ns = time.monotonic_ns()
        dirty = self._tracker.collect()
        self._seen.iterated(
            count, self._out, (at_ns, ended_ns), dirty_pages=len(dirty), stunned=False
        )
        return dirty

    def _switch_over(self, dirty: NDArray[np.int64]) -> EngineReport:
        """Stun, send the last pages, hand over. Until RESUME is sent, any failure undoes it."""
        spec, hooks, out = self._spec, self._hooks, self._out
        self._phase = enter(self._phase, Phase.SWITCHOVER)
        state = self._guest.state_pages()
        estimated_ns = copy_ns(self._seen.iterations, len(dirty))
        with ExitStack() as undo:
            stun_ns = time.monotonic_ns()
            undo.callback(hooks.uncut)
            hooks.cut()
            undo.callback(self._guest.resume)
            self._guest.suspend()
            # vCPUs beat in the state pages without marking them, so these always go along.
            last = _merged(state, dirty, self._tracker.collect())
            if dead := self._guest.dead_vcpus():  # what it had written is not known
                raise PeerError(f"vCPU {dead} died as it was stopped")
            suspended_ns = time.monotonic_ns()
            self._seen.sample(self._phase, out.acknowledged_bytes(), len(last))
            if spec.verify:
                out.first.timeout_ns = spec.hold_timeout_ns
            announced = (Kind.BITMAP, last) if spec.bitmap else None
            out.switch_over(last, self._seen.next_iteration, announced)
            out.first.timeout_ns = spec.timeout_ns
            loaded_ns = time.monotonic_ns()
            self._phase = enter(self._phase, Phase.RESUME)
            undo.pop_all()
        resumed = self._hand_over()
        self._phase = enter(self._phase, Phase.COMPLETED)
        total_ns = time.monotonic_ns() - self._started_ns
        self._seen.iterated(len(last), out, (stun_ns, loaded_ns), dirty_pages=0, stunned=True)
        self._seen.sample(self._phase, out.acknowledged_bytes(), 0)
        return replace(
            self.measured(),
            streams=out.reports(resumed.receive_buffer_bytes),
            total_ns=total_ns,
            stun_ns=None if spec.verify else resumed.resumed_ns - stun_ns,
            guest_gap_ns=None if spec.verify else resumed.guest_gap_ns,
            destination_cpu_ns=resumed.cpu_ns,
            switchover=Switchover(
                estimated_ns=estimated_ns,
                suspend_ns=suspended_ns - stun_ns,
                copy_ns=loaded_ns - suspended_ns,
                bitmap=out.bitmap_encoding,
                bitmap_bytes=out.bitmap_bytes,
                bitmap_ns=out.bitmap_ns,
                pages_after_resume=0,
            ),
        )

    def measured(self) -> EngineReport:
        """What this end has measured so far."""
        return EngineReport(
            iterations=tuple(self._seen.iterations),
            samples=tuple(self._seen.samples),
            streams=(),
            prepare_ns=self._prepare_ns,
            total_ns=time.monotonic_ns() - self._started_ns,
            stun_ns=None,
            guest_gap_ns=None,
            tracking=told(self._guest.spec, self._guest.tracking),
            source_cpu_ns=time.process_time_ns() - self._cpu_ns,
            destination_cpu_ns=0,
            trace=self._traced.report() if self._traced else None,
        )

    def _hand_over(self) -> Resumed:
        first = self._out.first
        first.send(pack(Kind.RESUME))
        first.expect(Kind.RESUMED)
        body = bytearray(RESUMED_BYTES)
        first.receive(body)
        return unpack_resumed(body)

    def _turn(self) -> None:
        """What is done now and then while bytes move; once RESUME is sent nobody cancels."""
        if self._phase is Phase.RESUME:
            return
        if self._phase is Phase.SWITCHOVER and not self._spec.verify:
            return
        if self._hooks.cancelled():
            raise self.failure("cancelled")
        if dead := self._guest.dead_vcpus():
            raise PeerError(f"vCPU {dead} has died")
        if self._phase is not Phase.PRECOPY and self._phase is not Phase.SWITCHOVER:
            return
        left, acknowledged_bytes = self._out.pages_left, self._out.acknowledged_bytes()
        progress = self._seen.sample(self._phase, acknowledged_bytes, left)
        if progress is not None:
            self._hooks.progress(progress)
