"""The destination's end of a migration: waits for its guest, takes it in, runs it."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import TestbedError
from testbed.guest import layout
from testbed.guest.machine import Guest
from testbed.migration import swap_bitmap
from testbed.migration.charging import check_ledger
from testbed.migration.incoming import Incoming
from testbed.migration.listening import Listening
from testbed.migration.pauses import no_garbage_collection
from testbed.migration.phase import MigrationFailed, MigrationLost, Phase
from testbed.migration.post_copy import Fetching, PostCopyFailed, ResumeFile
from testbed.migration.stream import PeerError
from testbed.migration.wire import HEADER_BYTES, Kind, Resumed, WireError, pack, pack_resumed

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.guest.tracking import TrackingName
    from testbed.ledger import Ledger
    from testbed.migration.acceptor import Acceptor
    from testbed.migration.specification import MigrationSpec


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class DestinationHooks:
    """What the lab does at the destination.

    `hold`, if the migration is to be verified, when all memory is there and both guests stand
    still: it returns when they have been compared. `open` right after the guest runs here.
    """

    hold: Callable[[], None] = _nothing
    open: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class Arrival:
    """The guest, running here and the caller's now, and when; times on CLOCK_MONOTONIC.

    `resumed_ns` is when the last vCPU ran; `guest_gap_ns` as the guest itself saw it;
    `trouble` says why its ports could not be opened, if so.
    """

    guest: Guest
    loaded_ns: int
    resumed_ns: int
    guest_gap_ns: int
    trouble: str = ""


class Destination:
    """A host prepared for one migration. A context manager; `receive` gives `guest` away."""

    def __init__(
        self,
        spec: MigrationSpec,
        vcpu_setup: Callable[[], None] | None = None,
        tracking: TrackingName | None = None,
        acceptor: Acceptor | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Listen, and make the guest, masked: memory and vCPUs.

        Args:
            spec: the migration.
            vcpu_setup: what each vCPU does first.
            tracking: the dirty tracking that it will be migrated with from here; None probes.
            acceptor: takes the connections in, and is closed by this; None: it listens in this
                network namespace.
            ledger: what this host's CPU is charged to.

        Raises:
            InputError: the migration costs cycles, and there is no ledger.
            KernelError: the address is not here or in use, or there is not enough memory.
            LabError: a vCPU process died.
        """
        check_ledger(spec, ledger)
        self._spec, self._ledger = spec, ledger
        self._cpu_ns = time.process_time_ns()
        with ExitStack() as undo:
            self._acceptor = acceptor or Listening(spec)
            undo.callback(self._acceptor.close)
            self.guest = Guest.create_masked(spec.guest, vcpu_setup, tracking)
            undo.callback(self.guest.power_off)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Leave nothing here, unless the guest has been given away."""
        self._undo.close()

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, hooks: DestinationHooks | None = None) -> Arrival:
        """Take the guest in and run it.

        Once RESUME has come the guest is run, whether or not the source hears of it.

        Raises:
            MigrationFailed: nothing is left here; the source has the guest, or asks who has.
            MigrationLost: it ran here without all of its pages, which can't come any more.
        """
        hooks = hooks or DestinationHooks()
        with no_garbage_collection(), self._undo as undo:
            arrival = self._receive(hooks)
            undo.pop_all()
            return arrival

    def _receive(self, hooks: DestinationHooks) -> Arrival:
        try:
            accepted = self._acceptor.accept(self._spec)
        except PeerError as error:
            raise MigrationFailed(Phase.CONNECT, str(error)) from error
        self._acceptor.close()
        self._cpu_ns = time.process_time_ns()  # populating the memory is not the copy's cost
        memory = self.guest.memory
        with ExitStack() as undo:
            try:
                fetching = self._fetching(undo)
            except TestbedError as error:
                with Incoming(self._spec, accepted, memory) as streams:
                    raise MigrationFailed(Phase.PREPARE, streams.fail(error)) from error
            expect = fetching.expect if fetching is not None else None
            streams = undo.enter_context(
                Incoming(self._spec, accepted, memory, self._ledger, expect)
            )
            return self._take_in(streams, hooks, fetching)

    def _fetching(self, undo: ExitStack) -> Fetching | None:
        """What gets pages after resume, if it may come to that; its file is the source's."""
        if not self._spec.may_resume_early:
            return None
        file = None
        if self._spec.resume_file:
            file = undo.enter_context(ResumeFile.open(self._spec.resume_file, self._spec))
        return Fetching(self.guest, file)

    def _take_in(
        self, streams: Incoming, hooks: DestinationHooks, fetching: Fetching | None
    ) -> Arrival:
        first, phase = streams.first, Phase.PREPARE
        try:
            first.send(pack(Kind.PREPARED))
            phase = Phase.PRECOPY
            last = streams.copy()
            phase = Phase.SWITCHOVER
            missing = streams.arrivals.missing
            if fetching is not None and missing is not None:
                fetching.prepare(missing)
            layout.check(self.guest.memory, self._spec.guest.vcpus)
            loaded_ns = time.monotonic_ns()
            if self._spec.verify:
                hooks.hold()
            first.send(pack(Kind.LOADED, 0, last))
            first.expect(Kind.RESUME)
            phase = Phase.RESUME
            swap_bitmap.take_over(self.guest.memory)
            self.guest.resume()
        except (PeerError, WireError, TestbedError) as error:
            raise MigrationFailed(phase, streams.fail(error)) from error
        counters = self.guest.counters()
        arrival = Arrival(
            self.guest,
            loaded_ns,
            int(counters["resumed_at_ns"].max()),
            int(counters["resume_gap_ns"].max()),
            _opened(hooks),
        )
        early = missing is not None
        self._answer(streams, arrival, fetching if early else None)
        if fetching is not None and early:
            try:
                fetching.run(streams.streams)
            except PostCopyFailed as error:
                raise MigrationLost(Phase.PAGE_IN, str(error)) from error
        return arrival

    def _answer(self, streams: Incoming, arrival: Arrival, fetching: Fetching | None) -> None:
        """Tell the source; if it can't be told, it looks into the file, or asks the lab."""
        receive_buffer = max(stream.receive_buffer_bytes() for stream in streams.streams)
        cpu_ns = time.process_time_ns() - self._cpu_ns
        resumed = Resumed(
            arrival.loaded_ns,
            arrival.resumed_ns,
            arrival.guest_gap_ns,
            cpu_ns,
            receive_buffer,
        )
        data = pack_resumed(resumed)
        if fetching is not None:
            fetching.tell_running(data[HEADER_BYTES:])
        with suppress(PeerError):
            streams.first.send(data)


def _opened(hooks: DestinationHooks) -> str:
    """Open the guest's ports. It runs here now: a failure is told, and undoes nothing."""
    try:
        hooks.open()
    except TestbedError as error:
        return f"its port could not be opened: {error}"
    return ""
