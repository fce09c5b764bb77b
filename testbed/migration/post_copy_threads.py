"""The threads of a post-copy, one for each stream, and how it fails."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from testbed.errors import MigrationError
from testbed.migration.stream import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from testbed.migration.stream import Stream

TURN_NS = 50_000_000


class PostCopyFailed(MigrationError):  # noqa: N818 - as MigrationFailed
    """A guest that already ran at its destination can't get the rest of its pages: it has failed.

    It can't go on at its source either, as it is further at the destination.
    """


class StreamThreads:
    """A thread of the same work for each stream; what any of them raises ends all.

    Made and ended in the thread that also uses the first stream; `turn` is called there, at least
    whenever a call of a stream has blocked for 50 ms. `moved` grows while the peer lives. The
    streams' own turns are kept aside until `end`. A context manager.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        work: Callable[[Stream], None],
        turn: Callable[[], None],
        moved: Callable[[], int],
    ) -> None:
        self._streams, self._turn = streams, turn
        self._kept = [(stream.turn, stream.moved) for stream in streams]
        self._owner, self._due_ns = threading.get_ident(), 0
        self._ending = False
        self._failure: BaseException | None = None
        self._done: list[Stream] = []
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable when a thread has ended."""
        self._threads = [
            threading.Thread(target=self._run, args=(work, stream), daemon=True)
            for stream in streams
        ]
        for stream in streams:
            stream.turn, stream.moved = self.turn, moved
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[Stream], None], stream: Stream) -> None:
        try:
            work(stream)
        except BaseException as error:  # raised again by the owner's `check`
            if self._failure is None:
                self._failure = error
        finally:
            self._done.append(stream)  # before the bell: a thread that rings is alive still
            os.eventfd_write(self.bell, 1)

    def check(self) -> None:
        """Raise what a thread has raised; in the owner's thread, call `turn` if it is due."""
        if self._failure is not None:
            raise self._failure
        if self._ending:
            raise PeerError("given up")
        if threading.get_ident() == self._owner and time.monotonic_ns() >= self._due_ns:
            self._due_ns = time.monotonic_ns() + TURN_NS
            self._turn()

    turn = check

    @property
    def ended(self) -> bool:
        """Whether every thread has done its work, or failed."""
        return len(self._done) == len(self._threads)

    def end(self, *, now: bool) -> None:
        """Wait until every thread has ended; `now`: nothing is received over the streams any more.

        They can be sent to still, should no thread have done that.
        """
        self._ending = now
        if now:
            for stream in self._streams:
                with suppress(OSError):
                    stream.socket.shutdown(socket.SHUT_RD)
        for thread in self._threads:
            thread.join()
        for stream, kept in zip(self._streams, self._kept, strict=True):
            stream.turn, stream.moved = kept
        os.close(self.bell)

    def __enter__(self) -> StreamThreads:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.end(now=kind is not None)
