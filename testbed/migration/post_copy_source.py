"""The source's end of a post-copy: sends the missing pages while the guest runs elsewhere."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import MigrationError
from testbed.guest.memory import GuestMemory
from testbed.migration.backlog import Backlog
from testbed.migration.post_copy_threads import TURN_NS, PostCopyFailed, StreamThreads
from testbed.migration.post_copy_wire import (
    Kind,
    pack_head,
    pages_frame,
    receive_head,
    receive_numbers,
    unpack_fetched,
)
from testbed.migration.push_window import PushWindow
from testbed.migration.resume_file import FileSilentError, State
from testbed.migration.stream import GaveUpError, PeerError
from testbed.migration.wire import WireError
from testbed.report.post_copy import PostCopyReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from testbed.guest.machine import Guest
    from testbed.migration.post_copy_wire import Fetched
    from testbed.migration.resume_file import ResumeFile
    from testbed.migration.stream import Stream

_UNSENT_BYTES = 16384
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
_SHORTEST_NAP_S, _LONGEST_NAP_S = 0.0001, 0.002


def _nothing() -> None:
    pass


class Serving:
    """Pushes the missing pages over all streams, and answers demands before what is pushed.

    The guest is suspended here and stays so, its memory as it was at resume, until the destination
    has said that it has all: then `run` returns, and the caller powers it off.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        guest: Guest,
        missing: NDArray[np.int64],
        file: ResumeFile | None = None,
        *,
        turn: Callable[[], None] = _nothing,
    ) -> None:
        """Take over the streams.

        Raises:
            MigrationError: a guest with such memory can't be served.

        Args:
            streams: of the migration; nothing but this post-copy's frames comes over them.
            guest: suspended.
            missing: the pages that the destination lacks, ascending.
            file: the Quick Resume file, made before the stun; None: without.
            turn: called about twenty times a second; what it raises ends the post-copy.
        """
        if not isinstance(guest.memory, GuestMemory):
            raise MigrationError(f"the memory of {guest.spec.name} can't be missing page by page")
        self._streams, self._memory, self._file = streams, guest.memory.bytes, file
        self._name, self._turn = guest.spec.name, turn
        self._known = np.zeros(guest.memory.page_count, np.bool_)
        self._known[missing] = True
        self._backlog, self._window = Backlog(missing), PushWindow()
        self._change = threading.Condition()
        """Of either; held while they are used."""
        self._wire_bytes = [0] * len(streams)
        self._heard = 0
        self.left = self._count = len(missing)
        """How many pages the destination lacked when it last said so."""

    def run(self) -> PostCopyReport:
        """Serve until the guest is whole.

        Raises:
            PostCopyFailed: the destination has gone, or gave up: the guest has failed.
        """
        with ExitStack() as undo:
            undo.push(self._tell_failure)
            cause = ""
            try:
                try:
                    fetched = self._over_network()
                except GaveUpError:
                    raise
                except (PeerError, WireError) as error:
                    cause = str(error)
                    fetched = self._through_file(cause)
            except GaveUpError as error:
                raise self._failed(f"its destination gave up: {error}") from error
            except (WireError, FileSilentError, OSError) as error:
                raise self._failed(f"{cause}; then {error}") from error
        self.left = 0
        return self._report(fetched, cause)

    def _tell_failure(self, _: object, error: BaseException | None, __: object) -> None:
        """Leave word in the file; a stream may be in the middle of a frame."""
        if error is not None and self._file is not None:
            with suppress(OSError):
                self._file.tell(State.FAILED, str(error).encode())

    def _report(self, fetched: Fetched, cause: str) -> PostCopyReport:
        waits = fetched.waits > 0
        return PostCopyReport(
            pages_missing=self._count,
            pages_pushed=self._window.sent - self._backlog.demanded,
            pages_demanded=self._backlog.demanded,
            pages_through_file=fetched.pages_through_file,
            duplicates=fetched.duplicates,
            wire_bytes=sum(self._wire_bytes),
            faults=fetched.faults,
            waits=fetched.waits,
            wait_p50_ns=fetched.wait_p50_ns if waits else None,
            wait_p99_ns=fetched.wait_p99_ns if waits else None,
            wait_max_ns=fetched.wait_max_ns if waits else None,
            expect_ns=fetched.expect_ns,
            install_ns=fetched.install_ns,
            whole_ns=fetched.whole_ns,
            network_failure=fetched.network_failure or cause,
        )

    def _failed(self, cause: str) -> PostCopyFailed:
        return PostCopyFailed(
            f"{self._name} has failed: it ran at its destination without {self.left} of its pages, "
            f"and {cause}; it can't go on here, as it was further there: power it on anew"
        )

    # -- over the network ---------------------------------------------------------------------

    def _over_network(self) -> Fetched:
        for stream in self._streams:
            # What TCP holds unsent, a demanded page has to wait for.
            stream.socket.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        with StreamThreads(self._streams, self._push, self._look_around, self._moved) as threads:
            first = self._streams[0]
            while True:
                head = receive_head(first, (Kind.DEMAND, Kind.PLACED, Kind.WHOLE))
                threads.check()
                self._heard += 1
                if head.kind is Kind.WHOLE:
                    body = bytearray(head.count)
                    first.receive(body)
                    self._check_all_sent()  # or a thread would wait for ever to send the rest
                    return unpack_fetched(body)
                if head.kind is Kind.PLACED:
                    self._placed(head.value)
                else:
                    pages = receive_numbers(first, head.count, self._known)
                    with self._change:
                        self._backlog.demand(pages.tolist())
                        self._change.notify()

    def _check_all_sent(self) -> None:
        if self._backlog.left:
            raise WireError(f"WHOLE, but {self._backlog.left} pages have not been sent yet")

    def _moved(self) -> int:
        """Grows while the destination shows that it lives."""
        return self._heard

    def _look_around(self) -> None:
        self._turn()
        card = self._file.peer() if self._file is not None else None
        if card is not None and card.state is State.FALLEN_BACK:
            raise PeerError("the destination went on through the Quick Resume file")

    def _placed(self, count: int) -> None:
        if not 0 <= count <= self._count:
            raise WireError(f"PLACED {count} of {self._count} pages")
        self.left = self._count - count
        with self._change:
            self._window.has_placed(count, time.monotonic_ns())
            self._change.notify()

    def _push(self, stream: Stream) -> None:
        """A stream's thread: what is demanded, else what is next, until nothing is left."""
        number = self._streams.index(stream)
        while len(pages := self._next(stream)):
            parts = pages_frame(pages, self._memory)
            stream.send(*parts)
            self._wire_bytes[number] += sum(map(len, parts))
        stream.send(pack_head(Kind.LAST))

    def _next(self, stream: Stream) -> NDArray[np.int64]:
        """Wait until the window lets something be sent; empty when nothing is left."""
        backlog, window = self._backlog, self._window
        with self._change:
            while backlog.left and window.full and not backlog.is_demanded:
                if not self._change.wait(TURN_NS / 1e9):
                    stream.turn()
            pages = backlog.take(window.frame_pages)
            if not backlog.left:
                self._change.notify_all()  # the others have to say that it was all
            window.has_sent(len(pages), time.monotonic_ns())
        return pages

    # -- through the file ---------------------------------------------------------------------

    def _through_file(self, cause: str) -> Fetched:
        """Answer what the destination asks for in the file.

        It asks anew for all that it lacks, as nobody knows what the network has lost.
        """
        file = self._file
        if file is None:
            raise self._failed(f"the network failed ({cause}), without a Quick Resume file")
        file.fall_back()
        nap_s = _SHORTEST_NAP_S
        while True:
            card = file.live()
            if card.state is State.WHOLE:
                return unpack_fetched(card.body)
            if card.state is State.FAILED:
                raise GaveUpError(card.body.decode(errors="replace"))
            self._turn()
            pages = file.requests()
            if any(page >= len(self._known) or not self._known[page] for page in pages):
                raise WireError(f"pages {pages} asked for in the file are not all missing ones")
            file.answer([(page, self._content(page)) for page in pages])
            nap_s = _SHORTEST_NAP_S if pages else min(2 * nap_s, _LONGEST_NAP_S)
            time.sleep(nap_s)

    def _content(self, page: int) -> bytes:
        return bytes(pages_frame(np.array([page]), self._memory)[1])
