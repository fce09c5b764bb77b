"""The source's streams: they share the pages of each iteration, and end it together."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from testbed.migration import bitmap
from testbed.migration.charging import charge
from testbed.migration.encrypted import proved
from testbed.migration.handshake import Offering
from testbed.migration.helpers import StreamHelpers
from testbed.migration.sender import Sender
from testbed.migration.sockets import connect
from testbed.migration.stream import PeerError, Stream, reason
from testbed.migration.wire import Kind, pack, pack_error
from testbed.migration.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    import numpy as np
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.ledger import Ledger
    from testbed.migration.handshake import Keys
    from testbed.migration.specification import MigrationSpec
    from testbed.report.result import StreamReport


class Outgoing:
    """All connections of one migration. A context manager.

    `turn` is called in the caller's thread now and then while bytes move; what it raises ends
    what is under way on all streams.
    """

    def __init__(
        self,
        spec: MigrationSpec,
        memory: Memory,
        turn: Callable[[], None],
        ledger: Ledger | None = None,
    ) -> None:
        """Not yet connected; what the bytes cost is charged to the ledger."""
        self._spec, self._memory, self._turn, self._ledger = spec, memory, turn, ledger
        self._streams: dict[int, Stream] = {}
        self._senders: dict[int, Sender] = {}
        self._work = Work(0)
        self.bitmap_ns = self.bitmap_bytes = 0
        self.bitmap_encoding: Literal["full", "compacted"] | None = None
        with ExitStack() as undo:
            undo.callback(self._close)
            self._helpers = undo.enter_context(StreamHelpers(len(spec.connections)))
            self._undo = undo.pop_all()

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def first(self) -> Stream:
        """The stream that carries control messages."""
        return self._streams[0]

    @property
    def streams(self) -> list[Stream]:
        """All of them, in order of their numbers."""
        return [self._streams[number] for number in sorted(self._streams)]

    def connect(self) -> None:
        """Connect every stream, and prove on each what migration it is of.

        Raises:
            PeerError: the destination can't be reached or did not accept it.
            KernelError: a socket's options or address are refused.
        """
        self._helpers.run(self._connect, self._turn)

    def copy(self, pages: NDArray[np.int64] | None, iteration: int) -> None:
        """Send these pages (None: all); returns when they are in the destination's memory.

        Raises:
            PeerError: the peer has gone, gave up, or is stuck.
            WireError: it sent something else.
        """
        self._share(pages)

        def job(number: int) -> None:
            sender = self._senders[number]
            sender.send(self._work)
            sender.end(Kind.END, iteration)
            sender.confirm(Kind.ENDED, iteration)

        self._helpers.run(job, self._turn)

    def expect(self, pages: NDArray[np.int64], iteration: int) -> None:
        """Before the stun, have the destination make ready for pages that come after resume.

        Errors as for `copy`.
        """
        self._announce(Kind.EXPECT, pages)
        self._senders[0].confirm(Kind.EXPECTED, iteration)

    def switch_over(
        self,
        pages: NDArray[np.int64],
        iteration: int,
        announced: tuple[Kind, NDArray[np.int64]] | None,
    ) -> None:
        """Send the last pages; returns when the destination has all of its memory.

        `announced` are pages for a BITMAP or MISSING, as the specification's `bitmap` says.
        Errors as for `copy`.
        """
        self._share(pages)

        def job(number: int) -> None:
            sender = self._senders[number]
            if number == 0 and announced is not None:
                self._announce(*announced)
            sender.send(self._work)
            sender.end(Kind.SWITCHOVER, iteration)
            if number == 0:  # LOADED tells that all streams' pages are there
                sender.confirm(Kind.LOADED, iteration)

        self._helpers.run(job, self._turn)

    def tell_failure(self, cause: str) -> None:
        """Tell the destination, on every stream that takes it at once, why it ends.

        Whoever has not proved to be the destination is told nothing.
        """
        for number in self._senders:
            stream = self._streams[number]
            stream.timeout_ns, stream.turn = 0, _nothing
            with suppress(PeerError):
                stream.send(pack_error(cause))

    def reason(self, error: Exception) -> str:
        """Why it failed: what the destination said, or else the error's own text."""
        return reason(error, self.streams)

    @property
    def pages_left(self) -> int:
        """Pages of this iteration that are not sent yet."""
        return self._work.total - sum(sender.pages for sender in self._senders.values())

    @property
    def zero_pages(self) -> int:
        """Pages of this iteration that were told to be zero."""
        return sum(sender.zero_pages for sender in self._senders.values())

    @property
    def wire_bytes(self) -> int:
        """What has been sent of this iteration, headers of ours included."""
        return sum(sender.wire_bytes for sender in self._senders.values())

    def acknowledged_bytes(self) -> int:
        """What the destination's TCP has acknowledged so far."""
        return sum(stream.acknowledged_bytes() for stream in self.streams)

    def reports(self, receive_buffer_bytes: int) -> tuple[StreamReport, ...]:
        """Every connection as TCP tells it now."""
        window_bytes = self._spec.window_bytes
        return tuple(one.report(receive_buffer_bytes, window_bytes) for one in self.streams)

    def _connect(self, number: int) -> None:
        check = self._helpers.check

        def turn() -> None:
            check()
            self._turn()

        own_turn = check if number else turn
        sock = connect(self._spec, number, own_turn)
        plain = self._streams[number] = Stream(sock, self._spec.timeout_ns)
        plain.turn = own_turn
        plain.name = f"stream {number}: " if len(self._spec.connections) > 1 else ""
        try:
            keys = _prove(plain, Offering(self._spec, number))
        except PeerError as error:
            raise PeerError(f"the destination did not accept this migration ({error})") from error
        stream = self._streams[number] = proved(sock, self._spec, keys, at_source=True)
        stream.turn, stream.name = plain.turn, plain.name
        # LOADED waits for the slowest stream. One that breaks is given up by TCP itself.
        stream.moved = self.acknowledged_bytes
        charge(stream, self._spec, self._ledger, self._undo)
        self._senders[number] = Sender(stream, self._memory, zero_pages=self._spec.zero_pages)

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()

    def _share(self, pages: NDArray[np.int64] | None) -> None:
        for sender in self._senders.values():
            sender.begin()
        self._work = Work(self._memory.page_count, pages)

    def _announce(self, kind: Kind, pages: NDArray[np.int64]) -> None:
        began_ns = time.monotonic_ns()
        compacted = self._spec.bitmap != "full" or kind is Kind.EXPECT
        pages_in_all = self._memory.page_count
        encoding, size_bytes, parts = bitmap.encode_parts(pages, pages_in_all, compacted=compacted)
        self.first.send(pack(kind, encoding, size_bytes))
        for part in parts:
            self.first.send(part)
        self.bitmap_ns = time.monotonic_ns() - began_ns
        self.bitmap_bytes = size_bytes
        self.bitmap_encoding = "full" if encoding is bitmap.Encoding.FULL else "compacted"


def _nothing() -> None:
    pass


def _prove(stream: Stream, offering: Offering) -> Keys:
    stream.send(offering.hello)
    while offering.wants:
        said = bytearray(offering.wants)
        stream.receive(said)
        if answer := offering.feed(said):
            stream.send(answer)
    if offering.keys is None:
        raise PeerError(offering.refused)
    return offering.keys
