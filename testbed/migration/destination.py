"""The destination's end of a migration: waits for its guest, takes it in, runs it."""

from __future__ import annotations

import select
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import TestbedError
from testbed.guest import layout
from testbed.guest.machine import Guest
from testbed.migration.pauses import no_garbage_collection
from testbed.migration.phase import MigrationFailed, Phase
from testbed.migration.receiver import Receiver
from testbed.migration.stream import PeerError, Stream, listen
from testbed.migration.wire import (
    HELLO_BYTES,
    Hello,
    Kind,
    Resumed,
    WireError,
    pack,
    pack_error,
    pack_resumed,
    unpack_hello,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from testbed.guest.tracking import TrackingName
    from testbed.migration.specification import MigrationSpec

_STRANGERS = 16  # connections that may be half-way through their hello at once


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
    ) -> None:
        """Listen in this network namespace, and make the guest, masked: memory and vCPUs.

        Raises:
            KernelError: the address is not here or in use, or there is not enough memory.
            LabError: a vCPU process died.
        """
        self._spec = spec
        self._cpu_ns = time.process_time_ns()
        with ExitStack() as undo:
            self._listener = listen(spec)
            undo.callback(self._listener.close)
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
            MigrationFailed: nothing is left here, and the guest was never run here.
        """
        hooks = hooks or DestinationHooks()
        with no_garbage_collection(), self._undo as undo:
            arrival = self._receive(hooks)
            undo.pop_all()
            return arrival

    def _receive(self, hooks: DestinationHooks) -> Arrival:
        phase = Phase.CONNECT
        try:
            stream = Stream(_accept(self._listener, self._spec), self._spec.timeout_ns)
        except PeerError as error:
            raise MigrationFailed(phase, str(error)) from error
        self._listener.close()
        self._cpu_ns = time.process_time_ns()  # populating the memory is not the copy's cost
        with stream.socket:
            try:
                stream.send(pack(Kind.ACCEPTED))
                phase = Phase.PRECOPY
                last = Receiver(stream, self.guest.memory).copy()
                phase = Phase.SWITCHOVER
                layout.check(self.guest.memory, self._spec.guest.vcpus)
                loaded_ns = time.monotonic_ns()
                if self._spec.verify:
                    hooks.hold()
                stream.send(pack(Kind.LOADED, 0, last.value))
                stream.expect(Kind.RESUME)
                phase = Phase.RESUME
                self.guest.resume()
            except (PeerError, WireError, TestbedError) as error:
                stream.timeout_ns = 0
                with suppress(PeerError):
                    stream.send(pack_error(str(error)))
                raise MigrationFailed(phase, str(error)) from error
            counters = self.guest.counters()
            arrival = Arrival(
                self.guest,
                loaded_ns,
                int(counters["resumed_at_ns"].max()),
                int(counters["resume_gap_ns"].max()),
                _opened(hooks),
            )
            self._answer(stream, arrival)
            return arrival

    def _answer(self, stream: Stream, arrival: Arrival) -> None:
        """Tell the source; if it can't be told, it asks the lab."""
        receive_buffer = stream.receive_buffer_bytes()
        cpu_ns = time.process_time_ns() - self._cpu_ns
        with suppress(PeerError):
            stream.send(
                pack_resumed(
                    Resumed(
                        arrival.loaded_ns,
                        arrival.resumed_ns,
                        arrival.guest_gap_ns,
                        cpu_ns,
                        receive_buffer,
                    )
                )
            )


def _opened(hooks: DestinationHooks) -> str:
    """Open the guest's ports. It runs here now: a failure is told, and undoes nothing."""
    try:
        hooks.open()
    except TestbedError as error:
        return f"its port could not be opened: {error}"
    return ""


def _accept(listener: socket.socket, spec: MigrationSpec) -> socket.socket:
    """Wait for the source; strangers are closed without a word, and keep nobody waiting.

    Raises:
        PeerError: it did not come within the timeout.
    """
    deadline = time.monotonic_ns() + spec.timeout_ns
    wanted = Hello(spec.migration_id, spec.secret, spec.guest.memory_bytes)
    listener.setblocking(False)
    heard: dict[socket.socket, bytearray] = {}
    try:
        while (left_ns := deadline - time.monotonic_ns()) > 0:
            poll = select.poll()
            sockets = {sock.fileno(): sock for sock in (listener, *heard)}
            for fd in sockets:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(left_ns / 1e6):
                sock = sockets[fd]
                if sock is listener:
                    _take(listener, heard)
                elif sock in heard and _listen_to(sock, heard[sock]):
                    hello = bytes(heard.pop(sock))
                    if _is_from(wanted, hello):
                        return sock
                    sock.close()
    finally:
        for sock in heard:
            sock.close()
    raise PeerError(f"the source did not come within {spec.timeout_ns / 1e9:g} s")


def _take(listener: socket.socket, heard: dict[socket.socket, bytearray]) -> None:
    with suppress(OSError):  # it went away again
        sock = listener.accept()[0]
        sock.setblocking(False)
        heard[sock] = bytearray()
        if len(heard) > _STRANGERS:
            oldest = next(iter(heard))
            del heard[oldest]
            oldest.close()


def _listen_to(sock: socket.socket, heard: bytearray) -> bool:
    """Take what there is of a hello; True when it is whole, or will never be."""
    try:
        part = sock.recv(HELLO_BYTES - len(heard))
    except BlockingIOError:
        return False
    except OSError:
        return True
    heard += part
    return not part or len(heard) == HELLO_BYTES


def _is_from(wanted: Hello, data: bytes) -> bool:
    try:
        hello = unpack_hello(data)
    except WireError:
        return False
    return hello.same_migration(wanted) and hello.memory_bytes == wanted.memory_bytes
