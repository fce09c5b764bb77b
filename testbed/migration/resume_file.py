"""The Quick Resume file: the way between two hosts when their network has failed after resume.

It is on the datastore that both hosts see (vmotion-facts.md, row 28): a backup buffer for pages
and a two-way channel. The destination writes numbered requests into one ring, a page each; the
source answers number n with page and content in slot n of the other, so a slot is free again as
soon as its answer is taken, and nobody has to say so. Each end has a card besides, on which it
says how far it is and, by its number going up, that it lives. An encrypted migration's file is
encrypted, too.

    card of the source, card of the destination, ring of requests, ring of answers
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Literal

from testbed.errors import KernelError
from testbed.guest.memory import PAGE_BYTES
from testbed.migration.resume_rings import RECORD_BYTES, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.migration.specification import MigrationSpec

SLOTS = 480
_CARD_BYTES = 4096
_TEXT_BYTES = _CARD_BYTES - RECORD_BYTES
FILE_BYTES = 2 * _CARD_BYTES + SLOTS * (2 * RECORD_BYTES + PAGE_BYTES)  # 2.0 MB
_BEAT_NS = 100_000_000
_RUNNING_NS, _POLL_S = 2_000_000_000, 0.005


class State(IntEnum):
    """How far an end is."""

    READY = 1  # the network carries the pages
    FALLEN_BACK = 2  # it has failed: go on through the file
    WHOLE = 3  # all pages are at the destination
    FAILED = 4  # this end gave up
    RUNNING = 5  # the guest runs at the destination


@dataclass(frozen=True, slots=True)
class Card:
    """What an end says; `beat` goes up while it lives."""

    beat: int
    state: State
    body: bytes


class FileSilentError(Exception):
    """The other end has written nothing for too long."""


class ResumeFile:
    """One end of it; `create` at the source, then `open` at the destination. A context manager.

    Errors of the file system are OSErrors.
    """

    def __init__(
        self, fd: int, path: str, end: Literal["source", "destination"], spec: MigrationSpec
    ) -> None:
        self._fd, self.path, self._timeout_ns = fd, path, spec.timeout_ns
        ring = partial(Ring, self, secret=spec.secret, encrypted=spec.encrypted)
        cards = (
            ring(0, 1, _TEXT_BYTES, name="source"),
            ring(_CARD_BYTES, 1, _TEXT_BYTES, name="destination"),
        )
        self._own, self._other = cards if end == "source" else cards[::-1]
        self._requests = ring(2 * _CARD_BYTES, SLOTS, 0, name="requests")
        self._answers = ring(self._requests.end, SLOTS, PAGE_BYTES, name="answers")
        self._requested = self._answered = 0
        self._card = Card(0, State.READY, b"")
        self._peer: Card | None = None
        self._heard_ns = self._beat_ns = 0

    @classmethod
    def create(cls, path: str, spec: MigrationSpec) -> ResumeFile:
        """Make it, all of its room taken, so that a full datastore fails before the stun.

        Raises:
            KernelError: it can't be made, or is there.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _refused("make", path, error) from error
        try:
            os.posix_fallocate(fd, 0, FILE_BYTES)
            made = cls(fd, path, "source", spec)
            made.tell(State.READY)
        except OSError as error:
            os.close(fd)
            os.unlink(path)  # noqa: PTH108 - as os.open made it
            raise _refused("make", path, error) from error
        return made

    @classmethod
    def open(cls, path: str, spec: MigrationSpec) -> ResumeFile:
        """Open the one that the source has made.

        Raises:
            KernelError: it isn't there, or isn't this migration's.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _refused("open", path, error) from error
        try:
            found = cls(fd, path, "destination", spec)
            if found.peer() is None:
                raise OSError(0, "the source of this migration has written nothing there")
            found.tell(State.READY)
        except OSError as error:
            os.close(fd)
            raise _refused("open", path, error) from error
        return found

    def close(self) -> None:
        """Close and remove it; the other end, which has it open, can read it still."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(FileNotFoundError):
                os.unlink(self.path)  # noqa: PTH108 - as os.open made it

    def __enter__(self) -> ResumeFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- cards --------------------------------------------------------------------------------

    def tell(self, state: State, body: bytes = b"") -> None:
        """Write this end's card; a text that is too long is cut."""
        self._card = Card(self._card.beat + 1, state, body[:_TEXT_BYTES])
        self._own.put(self._card.beat, [(state, self._card.body)])
        self._beat_ns = time.monotonic_ns()

    def peer(self) -> Card | None:
        """The other end's card as it was last read whole; None if it never was."""
        found = self._other.latest(0)
        if found is not None and (self._peer is None or found[0] > self._peer.beat):
            with suppress(ValueError):  # a state that no version of ours knows
                self._peer = Card(found[0], State(found[1]), found[2])
                self._heard_ns = time.monotonic_ns()
        return self._peer

    def fall_back(self) -> None:
        """Say that the network has failed; from now on the other end has to show that it lives."""
        self.tell(State.FALLEN_BACK, self._card.body)
        self._heard_ns = time.monotonic_ns()

    def said_running(self) -> bytes | None:
        """What the destination wrote when its guest ran; None if it doesn't for two seconds.

        To be asked when the network has failed: usually it has been there for long.
        """
        deadline_ns = time.monotonic_ns() + _RUNNING_NS
        while (card := self.peer()) is None or card.state not in {State.RUNNING, State.FALLEN_BACK}:
            if time.monotonic_ns() > deadline_ns:
                return None
            time.sleep(_POLL_S)
        return card.body

    def live(self) -> Card:
        """Show that this end lives, if it is time for that; the other end's card.

        Raises:
            FileSilentError: the other end has not shown that it lives for the timeout.
        """
        now = time.monotonic_ns()
        if now - self._beat_ns >= _BEAT_NS:
            self.tell(self._card.state, self._card.body)
        card = self.peer()
        if card is None or now - self._heard_ns > self._timeout_ns:
            raise FileSilentError(
                f"nothing was written to {self.path} for {self._timeout_ns / 1e9:g} s"
            )
        return card

    # -- pages --------------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        """How many requests have no answer yet; at most `SLOTS` may."""
        return self._requested - self._answered

    def request(self, pages: Sequence[int]) -> None:
        """Ask for pages, at the destination.

        Raises:
            ValueError: more would be outstanding than there are slots.
        """
        if self.outstanding + len(pages) > SLOTS:
            raise ValueError(f"{len(pages)} more requests, {self.outstanding} are outstanding")
        self._requests.put(self._requested, [(page, b"") for page in pages])
        self._requested += len(pages)

    def answers(self) -> Iterator[tuple[int, bytes]]:
        """Pages and contents that have come since the last call."""
        while self.outstanding and (answer := self._answers.get(self._answered)) is not None:
            self._answered += 1
            yield answer

    def requests(self) -> list[int]:
        """Pages asked for since the last call, at the source; all are to be answered, in order."""
        pages: list[int] = []
        while len(pages) < SLOTS and (request := self._requests.get(self._requested)) is not None:
            self._requested += 1
            pages.append(request[0])
        return pages

    def answer(self, pages: Sequence[tuple[int, bytes]]) -> None:
        """Answer the next requests with pages and contents."""
        self._answers.put(self._answered, pages)
        self._answered += len(pages)

    # -- the file -----------------------------------------------------------------------------

    def read(self, size: int, offset: int) -> bytes:
        """What lies there."""
        return os.pread(self._fd, size, offset)

    def write(self, data: bytes, offset: int) -> None:
        """Put it there."""
        if os.pwrite(self._fd, data, offset) != len(data):
            raise OSError(0, f"{self.path} took only a part of {len(data)} bytes")


def _refused(attempt: str, path: str, error: OSError) -> KernelError:
    cause = error.strerror or str(error)
    remedy = "Quick Resume needs a datastore that both hosts see, with 2 MB of room"
    return KernelError(attempt, f"the Quick Resume file {path}", cause, remedy)
