"""The migration of a VM of which a part is in its swap file, which both hosts see.

Swapped pages aren't sent, but told: SWAPPED at the beginning of each iteration tells which pages
the destination has no use for, as they are out, so that it never holds more than the source. In
the stun SWAPPED is the swap bitmap, of all pages that are out, and SLOTS says where in the file.

Why no page is missed although vCPUs swap meanwhile: the source keeps a list of pages that the
destination lacks. A page is taken off it when it is sent, and put onto it when it is found
written, or found out. It is sent only if it is in memory, and what is out is told at the same
look at the table. So a page that comes in later is on the list, whether it was read or written.
One that goes out and comes in between two looks may have been read meanwhile as a hole: but
its coming in was a write, which the tracking finds. With a byte map the page is noted before the
table says that it is in, and the notes are taken before the table is looked at: if the note was
taken too early, the page is on the list as one that is out, and a note missed is found next time.

The lock of the file goes along with the guest: given up right before RESUME, taken right after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.swap import OvercommittedMemory
from testbed.migration import bitmap
from testbed.migration.wire import Kind, WireError, pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.migration.stream import Stream
    from testbed.migration.wire import Frame

SLOT = np.dtype("<u4")


def pack_swapped(pages: NDArray[np.int64], page_count: int, *, compacted: bool) -> bytes:
    """A whole SWAPPED of these pages, ascending."""
    encoding, data = bitmap.encode(pages, page_count, compacted=compacted)
    return pack(Kind.SWAPPED, encoding, len(data)) + bytes(data)


def pack_slots(slots: NDArray[np.uint32], swap_ins: int) -> bytes:
    """A whole SLOTS, of the pages that the last SWAPPED told of; `swap_ins` since power on."""
    return pack(Kind.SLOTS, len(slots), swap_ins) + slots.astype(SLOT).tobytes()


class Leaving:
    """What the source knows of the swap file: of the memories without one, nothing to be done."""

    def __init__(self, memory: Memory, *, compacted: bool) -> None:
        """Of a memory of which the destination has nothing yet."""
        self._memory = memory if isinstance(memory, OvercommittedMemory) else None
        self._compacted = compacted
        count = memory.page_count if self._memory is not None else 0
        self._lacks = np.ones(count, np.bool_)
        self._gone = np.empty(0, np.int64)
        self.swapped_pages = self.bitmap_bytes = 0
        """What the stun told: pages that are out, and the bytes of both frames about them."""

    def first(self) -> NDArray[np.int64] | None:
        """The pages to begin with: those in memory now; None: all."""
        if self._memory is None:
            return None
        table = self._memory.table()
        self._gone = np.flatnonzero(table)
        return self._in_memory(table)

    def sendable(self, dirty: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the pages found dirty and those left from before, those in memory now."""
        return dirty if self._memory is None else self._look(dirty, self._memory.table())

    def tell(self, stream: Stream) -> None:
        """Before these pages are sent: tell what the destination may discard.

        Raises:
            PeerError: it has gone, gave up, or is stuck.
        """
        if self._memory is not None:
            stream.send(pack_swapped(self._gone, self._memory.page_count, compacted=True))

    def last(self, pages: NDArray[np.int64], stream: Stream) -> NDArray[np.int64]:
        """In the stun: tell the swap bitmap and the slots; the pages left that are in memory.

        Errors as for `tell`.
        """
        if self._memory is None:
            return pages
        table = self._memory.table()
        found = self._look(pages, table)
        out = np.flatnonzero(table)
        parts = (
            pack_swapped(out, len(table), compacted=self._compacted),
            pack_slots(table[out], self._memory.swap_counters().swap_ins),
        )
        stream.send(*parts)
        self.swapped_pages, self.bitmap_bytes = len(out), sum(map(len, parts))
        return found

    def _look(self, dirty: NDArray[np.int64], table: NDArray[np.uint32]) -> NDArray[np.int64]:
        self._gone = np.flatnonzero((table != 0) & ~self._lacks)
        self._lacks[dirty] = self._lacks[self._gone] = True
        return self._in_memory(table)

    def _in_memory(self, table: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Those that the destination lacks, off the list."""
        found = np.flatnonzero(self._lacks & (table == 0))
        self._lacks[found] = False
        return found


class Arriving:
    """What the destination is told of the swap file; the memory adopts it."""

    def __init__(self, memory: OvercommittedMemory, stamps: NDArray[np.uint8]) -> None:
        """`stamps` are those of the pages that have come; 0: it has not."""
        self._memory, self._stamps = memory, stamps
        self._empty = np.zeros(memory.page_count, np.bool_)  # nothing there, but for what came
        self._swapped: NDArray[np.int64] | None = None
        self._adopted = False

    def receive(self, frame: Frame, stream: Stream) -> None:
        """What follows a SWAPPED or SLOTS.

        Raises:
            PeerError: the source has gone, gave up, or is stuck.
            WireError: it tells of no such pages or slots.
        """
        if self._adopted:
            raise WireError(f"{frame.kind.name} after SLOTS")
        if frame.kind is Kind.SWAPPED:
            self._receive_swapped(frame, stream)
        else:
            self._receive_slots(frame, stream)

    def _receive_swapped(self, frame: Frame, stream: Stream) -> None:
        page_count = self._memory.page_count
        pages = bitmap.decode_parts(frame.count, frame.value, page_count, stream.receive)
        self._swapped = pages
        self._memory.discard(pages[(self._stamps[pages] != 0) | ~self._empty[pages]])
        self._stamps[pages] = 0
        self._empty[pages] = True

    def _receive_slots(self, frame: Frame, stream: Stream) -> None:
        if self._swapped is None or frame.count != len(self._swapped) or frame.value < 0:
            raise WireError(f"SLOTS of {frame.count} pages, {frame.value} swap-ins")
        body = bytearray(frame.count * SLOT.itemsize)
        stream.receive(body)
        try:
            self._memory.adopt(self._swapped, np.frombuffer(body, SLOT), frame.value)
        except ValueError as error:
            raise WireError(f"SLOTS: {error}") from error
        self._adopted = True

    def lacking(self) -> int:
        """How many pages are neither here nor in the file.

        Raises:
            WireError: nothing was told of the file.
        """
        if not self._adopted:
            raise WireError("SWITCHOVER, but nothing was told of the swap file")
        return int(np.count_nonzero((self._stamps == 0) & (self._memory.table() == 0)))


def hand_over(memory: Memory) -> None:
    """At the source, right before RESUME: its swap file may be taken."""
    if isinstance(memory, OvercommittedMemory):
        memory.hand_over()


def take_over(memory: Memory) -> None:
    """At the destination, right before the guest runs.

    Raises:
        KernelError: the source has not let go of the file, or it is gone.
    """
    if isinstance(memory, OvercommittedMemory):
        memory.take_over()


def take_back(memory: Memory) -> None:
    """At the source, before the guest runs on there after all.

    Raises:
        KernelError: the destination has the file: so it runs there, or may.
    """
    if isinstance(memory, OvercommittedMemory):
        memory.take_back()


def settle(memory: Memory) -> None:
    """At the destination, when the guest will surely never run at its source again."""
    if isinstance(memory, OvercommittedMemory):
        memory.settle()
