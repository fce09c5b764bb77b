"""The source's end of a migration: copies the memory, stuns the guest, hands it over."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import TestbedError
from testbed.guest.backing import told
from testbed.guest.tracing import TracedTracker
from testbed.migration import swap_bitmap
from testbed.migration.charging import check_ledger
from testbed.migration.convergence import decide, overdue
from testbed.migration.encrypted import CIPHER
from testbed.migration.observation import Observation, Progress, SourceHooks
from testbed.migration.outgoing import Outgoing
from testbed.migration.pauses import no_garbage_collection
from testbed.migration.phase import MigrationFailed, Phase, enter, failure
from testbed.migration.post_copy import ResumeFile, Serving
from testbed.migration.slowing import Slowing
from testbed.migration.stream import PeerError
from testbed.migration.stun import check_early, stun
from testbed.migration.wire import RESUMED_BYTES, Kind, Resumed, WireError, pack, unpack_resumed
from testbed.report.result import EngineReport

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from testbed.guest.machine import Guest
    from testbed.guest.tracking import DirtyTracker
    from testbed.ledger import Ledger
    from testbed.migration.specification import MigrationSpec

__all__ = ["Progress", "SourceHooks", "migrate", "take_back"]

_HANDED_OVER = (Phase.RESUME, Phase.PAGE_IN, Phase.COMPLETED)


def migrate(
    guest: Guest,
    spec: MigrationSpec,
    hooks: SourceHooks | None = None,
    started_ns: int | None = None,
    ledger: Ledger | None = None,
) -> EngineReport:
    """Move a running guest to the destination that waits for it.

    On return it runs there with all of its pages, and the caller powers it off here.

    Args:
        guest: running.
        spec: the migration.
        hooks: what the lab does.
        started_ns: when the migration began (CLOCK_MONOTONIC), if that was before this call.
        ledger: what this host's CPU is charged to.

    Raises:
        InputError: the migration costs cycles, and there is no ledger.
        MigrationFailed: it runs on here; the destination cleans up by itself.
        MigrationUncertain: it is suspended here and may run there.
        MigrationLost: it ran there without all of its pages, and has failed.
    """
    check_ledger(spec, ledger)
    began_ns = started_ns or time.monotonic_ns()
    migration = _Source(guest, spec, hooks or SourceHooks(), began_ns, ledger)
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
        KernelError: the destination is not gone: it has the VM's swap file.
    """
    swap_bitmap.take_back(guest.memory)
    guest.resume()
    (hooks or SourceHooks()).uncut()


class _Source:
    """One migration at its source."""

    def __init__(
        self,
        guest: Guest,
        spec: MigrationSpec,
        hooks: SourceHooks,
        started_ns: int,
        ledger: Ledger | None,
    ) -> None:
        self._guest, self._spec, self._hooks = guest, spec, hooks
        self._started_ns = started_ns
        self._cpu_ns = time.process_time_ns()
        self._phase = Phase.CONNECT
        self._seen = Observation(started_ns)
        self._out = Outgoing(spec, guest.memory, self._turn, ledger)
        self._swap = swap_bitmap.Leaving(guest.memory, compacted=spec.bitmap != "full")
        self._slowing = Slowing(guest, spec)
        self._tracker: DirtyTracker
        self._traced: TracedTracker | None = None
        self._serving: Serving | None = None
        self._prepare_ns = 0

    def failed(self, error: Exception) -> MigrationFailed:
        """What to raise, given what went wrong."""
        if self._phase in _HANDED_OVER:
            return self.failure(str(error))
        return self.failure(self._out.reason(error))

    def failure(self, cause: str) -> MigrationFailed:
        """What to raise in the phase that the migration is in."""
        phase = self._phase
        if phase not in {*_HANDED_OVER, Phase.FAILED}:
            self._phase = enter(phase, Phase.FAILED)
        return failure(phase, self._guest.spec.name, cause, self._guest.dead_vcpus())

    def run(self, undo: ExitStack) -> EngineReport:
        """All phases; what they acquire goes onto `undo`."""
        spec, out = self._spec, undo.enter_context(self._out)
        check_early(self._guest, spec)
        file = None
        if spec.may_resume_early and spec.resume_file:
            file = undo.enter_context(ResumeFile.create(spec.resume_file, spec))
        undo.push(self._say_why)
        out.connect()
        self._phase = enter(self._phase, Phase.PREPARE)
        out.first.expect(Kind.PREPARED)

        self._phase = enter(self._phase, Phase.TRACE)
        self._tracker = tracker = self._guest.tracker(spec.trace)
        self._traced = tracker if isinstance(tracker, TracedTracker) else None
        tracker.install()
        undo.callback(tracker.remove)

        self._phase = enter(self._phase, Phase.PRECOPY)
        self._prepare_ns = time.monotonic_ns() - self._started_ns
        undo.enter_context(self._slowing)
        dirty, early = self._precopy()
        return self._switch_over(dirty, file, early=early)

    def _say_why(self, _: object, error: BaseException | None, __: object) -> None:
        """Tell the destination that the source gives up, unless the guest is its own."""
        if error is not None and self._phase not in _HANDED_OVER:
            cause = error.cause if isinstance(error, MigrationFailed) else str(error)
            self._out.tell_failure(cause)

    def _precopy(self) -> tuple[NDArray[np.int64], bool]:
        """Iterate until the rest fits the goal, or nothing more is to be gained.

        Returns:
            The pages left, found dirty already, and whether they come after resume.
        """
        dirty, slowing = self._iterate(self._swap.first()), self._slowing
        while True:
            decision = decide(self._seen.iterations, self._spec, slowing.sleep_ns_per_ms)
            if decision.next != "copy":
                break
            slowing.follow(self._seen.iterations)
            dirty = self._iterate(dirty)
        if decision.next == "fail":
            self._phase = enter(self._phase, Phase.FAILED)
            raise MigrationFailed(Phase.PRECOPY, decision.cause, decision.remedy)
        self._hooks.stopping()
        after = self._spec.remaining_pages == "after resume" and self._spec.may_resume_early
        return dirty, after or decision.next == "resume early"

    def _iterate(self, pages: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Send these pages (None: all), and find what has been dirtied meanwhile."""
        at_ns = time.monotonic_ns()
        number = self._seen.next_iteration
        count = self._seen.pages_to_copy = (
            self._guest.memory.page_count if pages is None else len(pages)
        )
        self._swap.tell(self._out.first)
        self._out.copy(pages, number)
        ended_ns = time.monotonic_ns()
        dirty = self._swap.sendable(self._tracker.collect())
        self._seen.iterated(
            count, self._out, (at_ns, ended_ns), dirty_pages=len(dirty), stunned=False
        )
        self._hooks.iterated(self._seen.iterations[-1])
        return dirty

    def _switch_over(
        self, dirty: NDArray[np.int64], file: ResumeFile | None, *, early: bool
    ) -> EngineReport:
        """Stun, send the last pages, hand over. Until RESUME is sent, any failure undoes it."""
        spec, hooks, out = self._spec, self._hooks, self._out
        self._phase = enter(self._phase, Phase.SWITCHOVER)
        if spec.verify:
            out.first.timeout_ns = spec.hold_timeout_ns
        stunned = stun(
            self._guest,
            spec,
            out,
            self._seen,
            dirty=dirty,
            tracker=self._tracker,
            swap=self._swap,
            early=early,
            cut=hooks.cut,
            uncut=hooks.uncut,
        )
        self._phase = enter(self._phase, Phase.RESUME)
        out.first.timeout_ns = spec.timeout_ns
        resumed = self._hand_over(None if stunned.missing is None else file)
        between_ns = stunned.began_ns, stunned.loaded_ns
        self._seen.iterated(stunned.pages, out, between_ns, dirty_pages=0, stunned=True)
        served = None
        if stunned.missing is not None:
            self._phase = enter(self._phase, Phase.PAGE_IN)
            self._serving = Serving(
                out.streams, self._guest, stunned.missing, file, turn=self._look
            )
            served = self._serving.run()
        self._phase = enter(self._phase, Phase.COMPLETED)
        total_ns = time.monotonic_ns() - self._started_ns
        self._seen.sample(self._phase, out.acknowledged_bytes(), 0)
        return replace(
            self.measured(),
            streams=out.reports(resumed.receive_buffer_bytes),
            total_ns=total_ns,
            stun_ns=None if spec.verify else resumed.resumed_ns - stunned.began_ns,
            guest_gap_ns=None if spec.verify else resumed.guest_gap_ns,
            destination_cpu_ns=resumed.cpu_ns,
            switchover=stunned.report,
            post_copy=served,
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
            slowdowns=tuple(self._slowing.steps),
            encryption=CIPHER if self._spec.encrypted else None,
        )

    def _hand_over(self, file: ResumeFile | None) -> Resumed:
        """Have it run there; should the network fail meanwhile, the file may say that it does."""
        first = self._out.first
        swap_bitmap.hand_over(self._guest.memory)
        first.send(pack(Kind.RESUME))
        try:
            first.expect(Kind.RESUMED)
            body = bytearray(RESUMED_BYTES)
            first.receive(body)
        except PeerError:
            told = file.said_running() if file is not None else None
            if told is None:
                raise
            return unpack_resumed(told)
        return unpack_resumed(body)

    def _turn(self) -> None:
        """What is done now and then while bytes move; once RESUME is sent nobody cancels."""
        if self._phase in _HANDED_OVER:
            return
        held = self._phase is Phase.SWITCHOVER and self._spec.verify
        elapsed_ns = time.monotonic_ns() - self._started_ns
        if not held and (late := overdue(elapsed_ns, self._spec)):
            raise self.failure(late)
        if self._phase is Phase.SWITCHOVER and not held:
            return
        if self._hooks.cancelled():
            raise self.failure("cancelled")
        if dead := self._guest.dead_vcpus():
            raise PeerError(f"vCPU {dead} has died")
        if self._phase in {Phase.PRECOPY, Phase.SWITCHOVER}:
            self._look()

    def _look(self) -> None:
        """Add to the series, and tell how far it is."""
        left = self._out.pages_left if self._serving is None else self._serving.left
        progress = self._seen.sample(self._phase, self._out.acknowledged_bytes(), left)
        if progress is not None:
            self._hooks.progress(progress)
