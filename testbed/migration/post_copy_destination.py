"""The destination's end of a post-copy: gets a running guest the pages that it lacks."""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import MigrationError
from testbed.guest.memory import PAGE_BYTES
from testbed.guest.missing import MissingPages
from testbed.migration.post_copy_threads import TURN_NS, PostCopyFailed, StreamThreads
from testbed.migration.post_copy_wire import (
    CAUSE_BYTES,
    MOST_PAGES,
    Fetched,
    Kind,
    pack_demand,
    pack_fetched,
    pack_head,
    receive_head,
    receive_numbers,
)
from testbed.migration.resume_file import SLOTS, FileSilentError, State
from testbed.migration.stream import GaveUpError, PeerError
from testbed.migration.wire import WireError, pack_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from testbed.guest.machine import Guest
    from testbed.migration.resume_file import ResumeFile
    from testbed.migration.stream import Stream

_FILE_AHEAD = 128  # so few pages that nobody waits for are asked for in the file at a time
_FILE_POLL_MS = 0.2
_TELL_PAGES = 16
_SIGN_NS = 100_000_000


def _nothing() -> None:
    pass


class Fetching:
    """Makes a guest ready to run without some pages, and gets it these once it runs.

    `expect` any number of times before the stun, `prepare` within it; once the guest is resumed
    `tell_running`, and `run`. From `prepare` on a guest that fails must be powered off.
    """

    def __init__(
        self,
        guest: Guest,
        file: ResumeFile | None = None,
        *,
        turn: Callable[[], None] = _nothing,
    ) -> None:
        """Of a guest that stands still; `turn` is called about twenty times a second in `run`.

        Raises:
            MigrationError: it can't run without all of its pages.
        """
        self._guest, self._file, self._turn = guest, file, turn
        self._pages = MissingPages(guest)
        self._poll = select.poll()
        self._vcpus = {fd: vcpu for vcpu, fd in enumerate(self._pages.fds)}
        for fd in self._pages.fds:
            self._poll.register(fd, select.POLLIN)
        self._known = np.zeros(guest.memory.page_count, np.bool_)
        self._expect_ns = self._install_ns = self._count = self._through = 0
        self._due_ns = self._sign_ns = 0
        self._send = threading.Lock()  # the first stream's
        self._cause = ""

    def expect(self, pages: NDArray[np.int64]) -> None:
        """Make ready for these, ascending: they come only after resume. See `MissingPages`."""
        began_ns = time.monotonic_ns()
        self._pages.expect(pages)
        self._expect_ns += time.monotonic_ns() - began_ns

    def prepare(self, missing: NDArray[np.int64]) -> None:
        """Make the guest one that may run without these pages, ascending, and has all others.

        Raises:
            MigrationError, KernelError: it can't; it has not run, and must not here.
        """
        began_ns = time.monotonic_ns()
        self._pages.install(missing)
        self._known[missing] = True
        self._count = len(missing)
        self._install_ns = time.monotonic_ns() - began_ns

    def tell_running(self, body: bytes) -> None:
        """The guest runs: leave word of it in the file, as the network may fail right now."""
        if self._file is not None:
            with suppress(OSError):
                self._file.tell(State.RUNNING, body)

    def run(self, streams: Sequence[Stream]) -> Fetched:
        """Fetch until the guest is whole, then make it one that can be migrated again.

        Raises:
            PostCopyFailed: the source, or a vCPU, has gone: the guest has failed. Power it off.
        """
        began_ns = time.monotonic_ns()
        try:
            try:
                self._over_network(streams)
            except GaveUpError:
                raise
            except (PeerError, WireError) as error:
                if self._pages.left:
                    self._cause = str(error).encode()[:CAUSE_BYTES].decode(errors="ignore")
                    self._through_file()
            whole_ns = time.monotonic_ns() - began_ns
            self._pages.remove()
        except (MigrationError, GaveUpError, FileSilentError, WireError, OSError) as error:
            raise self._failed(streams, error) from error
        fetched = self._fetched(whole_ns)
        body = pack_fetched(fetched)
        if self._file is not None:
            with suppress(OSError):  # the network may have told it
                self._file.tell(State.WHOLE, body)
        with suppress(PeerError):
            streams[0].send(pack_head(Kind.WHOLE, len(body)), body)
        return fetched

    def _failed(self, streams: Sequence[Stream], error: Exception) -> PostCopyFailed:
        """Tell the source, by whatever way there is."""
        cause = f"{self._cause}; then {error}" if self._cause else str(error)
        with suppress(PeerError):
            streams[0].timeout_ns = 0
            streams[0].send(pack_error(cause))
        if self._file is not None:
            with suppress(OSError):
                self._file.tell(State.FAILED, cause.encode())
        left = self._pages.left
        return PostCopyFailed(
            f"{self._guest.spec.name} has failed: it runs without {left} of its pages, and can't "
            f"get them ({cause}); power it on anew"
        )

    def _fetched(self, whole_ns: int) -> Fetched:
        pages, waits = self._pages, sorted(self._pages.waits_ns) or [0]
        return Fetched(
            pages_missing=self._count,
            pages_through_file=self._through,
            duplicates=pages.duplicates,
            faults=pages.faults,
            waits=len(pages.waits_ns),
            wait_p50_ns=waits[len(waits) // 2],
            wait_p99_ns=waits[len(waits) * 99 // 100],
            wait_max_ns=waits[-1],
            expect_ns=self._expect_ns,
            install_ns=self._install_ns,
            whole_ns=whole_ns,
            network_failure=self._cause,
        )

    def _look_around(self) -> None:
        """What is done about twenty times a second, whoever carries the pages."""
        self._turn()
        if dead := self._guest.dead_vcpus():
            raise MigrationError(f"vCPU {', '.join(map(str, dead))} has died")

    def _faults(self, timeout_ms: float, *also: int) -> list[int]:
        """Wait for faults; the pages that have come to be waited for."""
        pages: list[int] = []
        for fd, _ in self._poll.poll(timeout_ms):
            if fd not in also:
                pages += self._pages.faults_of(self._vcpus[fd])
        return pages

    # -- over the network ---------------------------------------------------------------------

    def _over_network(self, streams: Sequence[Stream]) -> None:
        first = streams[0]

        def turn() -> None:
            self._look_around()
            card = self._file.peer() if self._file is not None else None
            if card is not None and card.state is State.FALLEN_BACK:
                raise PeerError("the source went on through the Quick Resume file")

        receive = partial(self._receive, first)
        with StreamThreads(streams, receive, turn, self._placed) as threads:
            self._poll.register(threads.bell, select.POLLIN)
            try:
                while not threads.ended:
                    if pages := self._faults(TURN_NS / 1e6, threads.bell):
                        with self._send:
                            first.send(pack_demand(pages))
                    with suppress(BlockingIOError):
                        os.eventfd_read(threads.bell)
                    threads.check()
                    if time.monotonic_ns() >= self._sign_ns:
                        self._sign_of_life(first)
            finally:
                self._poll.unregister(threads.bell)
            threads.check()
        if self._pages.left:
            raise WireError(f"the source has sent all, but {self._pages.left} pages never came")

    def _sign_of_life(self, stream: Stream) -> None:
        with self._send:
            self._sign_ns = time.monotonic_ns() + _SIGN_NS
            stream.send(pack_head(Kind.PLACED, 0, self._placed()))

    def _placed(self) -> int:
        """How many pages are there; as long as it grows, no stream that is idle has failed."""
        return self._count - self._pages.left

    def _receive(self, first: Stream, stream: Stream) -> None:
        """A stream's thread: frames into the guest, until the source says that it was the last."""
        room = np.empty(MOST_PAGES * PAGE_BYTES, np.uint8)
        view, address = room.data, int(room.ctypes.data)
        told = 0  # pages since the source was last told
        while (head := receive_head(stream, (Kind.PAGES, Kind.LAST))).kind is Kind.PAGES:
            pages = receive_numbers(stream, head.count, self._known)
            stream.receive(view[: head.count * PAGE_BYTES])
            self._pages.place(pages, address)
            told += len(pages)
            if told >= _TELL_PAGES or not stream.readable():
                told = 0
                self._sign_of_life(first)

    # -- through the file ---------------------------------------------------------------------

    def _through_file(self) -> None:
        """Ask for all that is missing, what vCPUs wait for first."""
        file = self._file
        if file is None:
            raise MigrationError(f"the network failed ({self._cause}), and there is no other way")
        file.fall_back()
        demanded, rest = self._pages.waited_for(), self._pages.missing().tolist()[::-1]
        asked: set[int] = set()
        while self._pages.left:
            demanded += self._faults(0 if self._take(file) else _FILE_POLL_MS)
            pages = [page for page in demanded if page not in asked][: SLOTS - file.outstanding]
            while rest and file.outstanding + len(pages) < _FILE_AHEAD:
                if (page := rest.pop()) not in asked and page not in pages:
                    pages.append(page)
            file.request(pages)
            asked.update(pages)
            demanded = [page for page in demanded if page not in asked]
            now = time.monotonic_ns()
            if now >= self._due_ns:
                self._due_ns = now + TURN_NS
                self._look_around()
                if (card := file.live()).state is State.FAILED:
                    raise GaveUpError(card.body.decode(errors="replace"))

    def _take(self, file: ResumeFile) -> bool:
        """Put in what has come; whether anything has."""
        before = self._through
        for page, content in file.answers():
            if page >= len(self._known) or not self._known[page] or len(content) != PAGE_BYTES:
                raise WireError(f"what came through the file for page {page} is no missing page")
            room = np.frombuffer(content, np.uint8)
            self._pages.place(np.array([page]), int(room.ctypes.data))
            self._through += 1
        return self._through > before
