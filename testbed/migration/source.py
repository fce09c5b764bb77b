"""The source's end of a migration: copies the memory, stuns the guest, hands it over."""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import TestbedError
from testbed.migration.convergence import decide
from testbed.migration.observation import Observation, Progress
from testbed.migration.phase import MigrationFailed, MigrationUncertain, Phase, enter
from testbed.migration.sender import Sender
from testbed.migration.stream import PeerError, connect
from testbed.migration.wire import (
    RESUMED_BYTES,
    Hello,
    Kind,
    Resumed,
    WireError,
    pack,
    pack_error,
    pack_hello,
    unpack_resumed,
)
from testbed.report.result import EngineReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from testbed.guest.machine import Guest
    from testbed.guest.tracking import DirtyTracker
    from testbed.migration.specification import MigrationSpec
    from testbed.migration.stream import Stream

_SAMPLE_NS = 25_000_000

__all__ = ["Progress", "SourceHooks", "migrate", "take_back"]


def _nothing() -> None:
    pass


def _no_progress(_: Progress) -> None:
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
    progress: Callable[[Progress], None] = _no_progress
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
    migration = _Source(guest, spec, hooks or SourceHooks(), started_ns or time.monotonic_ns())
    with ExitStack() as undo:
        undo.enter_context(_no_garbage_collection())
        try:
            return migration.run(undo)
        except (PeerError, WireError) as error:
            raise migration.failure(str(error)) from error
        except MigrationFailed:
            raise
        except TestbedError as error:
            raise migration.failure(str(error)) from error


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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """No pause of it falls into the stun; nothing of a migration is cyclic."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


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
        self._stream: Stream
        self._sender: Sender
        self._tracker: DirtyTracker

    def failure(self, cause: str) -> MigrationFailed:
        """What to raise in the phase that the migration is in."""
        if self._phase is Phase.RESUME:
            return MigrationUncertain(
                self._phase,
                f"the destination was told to run {self._guest.spec.name} and did not answer "
                f"({cause})",
                "find out whether it runs there before it is resumed here",
            )
        phase, self._phase = self._phase, enter(self._phase, Phase.FAILED)
        return MigrationFailed(phase, cause, f"{self._guest.spec.name} runs on at its source")

    def run(self, undo: ExitStack) -> EngineReport:
        """All phases; what they acquire goes onto `undo`."""
        spec, memory = self._spec, self._guest.memory
        self._stream = connect(spec)
        undo.callback(self._stream.close)
        self._stream.send(pack_hello(Hello(spec.migration_id, spec.secret, memory.size_bytes)))
        try:
            self._stream.expect(Kind.ACCEPTED)
        except PeerError as error:
            cause = f"the destination did not accept this migration ({error})"
            raise self.failure(cause) from error
        self._stream.turn = self._turn
        self._sender = Sender(self._stream, memory, self._turn, _SAMPLE_NS)
        undo.push(self._say_why)

        self._phase = enter(self._phase, Phase.TRACE)
        self._tracker = self._guest.tracker()
        self._tracker.install()
        undo.callback(self._tracker.remove)

        self._phase = enter(self._phase, Phase.PRECOPY)
        prepare_ns = time.monotonic_ns() - self._started_ns
        dirty = self._precopy()
        return self._switch_over(dirty, prepare_ns)

    def _say_why(self, _: object, error: BaseException | None, __: object) -> None:
        """Tell the destination that the source gives up, unless the guest is its own."""
        if error is not None and self._phase is not Phase.RESUME:
            self._stream.timeout_ns = 0
            self._stream.turn = _nothing
            cause = error.cause if isinstance(error, MigrationFailed) else type(error).__name__
            with suppress(PeerError):
                self._stream.send(pack_error(cause))

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
        if pages is None:
            self._sender.send_all()
        else:
            self._sender.send_pages(pages)
        self._sender.end(Kind.END, Kind.ENDED, count, number)
        ended_ns = time.monotonic_ns()
        dirty = self._tracker.collect()
        self._seen.iterated(
            count, self._sender.wire_bytes, (at_ns, ended_ns), dirty_pages=len(dirty), stunned=False
        )
        return dirty

    def _switch_over(self, dirty: NDArray[np.int64], prepare_ns: int) -> EngineReport:
        """Stun, send the last pages, hand over. Until RESUME is sent, any failure undoes it."""
        spec, hooks, stream = self._spec, self._hooks, self._stream
        self._phase = enter(self._phase, Phase.SWITCHOVER)
        control = np.arange(self._guest.control_pages())
        with ExitStack() as undo:
            stun_ns = time.monotonic_ns()
            undo.callback(hooks.uncut)
            hooks.cut()
            undo.callback(self._guest.resume)
            self._guest.suspend()
            # vCPUs beat in the control pages without marking them, so these always go along.
            last = _merged(control, dirty, self._tracker.collect())
            self._sender.send_pages(last)
            if spec.verify:
                stream.timeout_ns = spec.hold_timeout_ns
            self._sender.end(Kind.SWITCHOVER, Kind.LOADED, len(last), self._seen.next_iteration)
            stream.timeout_ns = spec.timeout_ns
            loaded_ns = time.monotonic_ns()
            self._phase = enter(self._phase, Phase.RESUME)
            undo.pop_all()
        self._stream.turn = _nothing  # from here on nobody cancels
        resumed = self._hand_over()
        self._phase = enter(self._phase, Phase.COMPLETED)
        total_ns = time.monotonic_ns() - self._started_ns
        self._seen.iterated(
            len(last), self._sender.wire_bytes, (stun_ns, loaded_ns), dirty_pages=0, stunned=True
        )
        self._seen.sample(self._phase, stream.acknowledged_bytes(), 0)
        return EngineReport(
            iterations=tuple(self._seen.iterations),
            samples=tuple(self._seen.samples),
            streams=(stream.report(resumed.receive_buffer_bytes),),
            prepare_ns=prepare_ns,
            total_ns=total_ns,
            stun_ns=None if spec.verify else resumed.resumed_ns - stun_ns,
            guest_gap_ns=None if spec.verify else resumed.guest_gap_ns,
            tracking=self._tracker.name,
            source_cpu_ns=time.process_time_ns() - self._cpu_ns,
            destination_cpu_ns=resumed.cpu_ns,
        )

    def _hand_over(self) -> Resumed:
        self._stream.send(pack(Kind.RESUME))
        self._stream.expect(Kind.RESUMED)
        body = bytearray(RESUMED_BYTES)
        self._stream.receive(body)
        return unpack_resumed(body)

    def _turn(self) -> None:
        """What is done now and then while bytes move."""
        if self._phase is Phase.SWITCHOVER and not self._spec.verify:
            return
        if self._hooks.cancelled():
            raise self.failure("cancelled")
        if self._stream.readable() and self._sender.pages_left:
            self._stream.receive_frame()  # an ERROR, or the end: both raise
            raise WireError("the destination spoke out of turn")
        if dead := self._guest.dead_vcpus():
            raise PeerError(f"vCPU {dead} has died")
        left, acknowledged_bytes = self._sender.pages_left, self._stream.acknowledged_bytes()
        progress = self._seen.sample(self._phase, acknowledged_bytes, left)
        if progress is not None:
            self._hooks.progress(progress)
