"""What goes over the stream: frames of a 16-byte header and what follows it.

    PREPARED  there is memory for the guest                       destination -> source
    RUN       count pages from page `value` on; their contents    first pass, up to 1 MiB
    GATHER    count page numbers; then the pages' contents        later passes, up to 512
    ZERO      count runs (first page, pages) that are all zero    up to 512 pages
    BITMAP    the pages still to come; `value` bytes of it, encoded as `count` says
    EXPECT    as BITMAP, before the stun: pages that will come only after the guest runs
    EXPECTED  they may be missing
    MISSING   as BITMAP: all pages that come only after the guest runs
    SWAPPED   as BITMAP: pages that are in the swap file; what has come of them is of no use
    SLOTS     count slots of the swap file, for the pages of the last SWAPPED; `value` swap-ins
    END       count pages were sent in iteration `value` on this stream
    ENDED     all of them are in the destination's memory
    SWITCHOVER as END, for the last iteration
    LOADED    all memory is there
    RESUME    run the guest: it is yours
    RESUMED   it runs; then `Resumed`
    ERROR     count bytes of text: I give up

The handshake (handshake.py) comes before. Over other streams than the first go RUN, GATHER,
ZERO, END, ENDED, SWITCHOVER and ERROR only. After RESUMED: post_copy_wire.py.
Little-endian. Whoever receives a frame checks every length and page number before it uses it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.memory import PAGE_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

RUN_PAGES = (1 << 20) // PAGE_BYTES
GATHER_PAGES = 512
ERROR_BYTES = 4096
NUMBER = np.dtype("<u4")  # a page number: 16 TiB of memory

_HEADER = struct.Struct("<IIq")
_RESUMED = struct.Struct("<qqqqq")
HEADER_BYTES = _HEADER.size
RESUMED_BYTES = _RESUMED.size


class Kind(IntEnum):
    """What a frame is."""

    PREPARED = 1
    RUN = 2
    GATHER = 3
    END = 4
    ENDED = 5
    SWITCHOVER = 6
    LOADED = 7
    RESUME = 8
    RESUMED = 9
    ERROR = 10
    ZERO = 11
    BITMAP = 12
    MISSING = 13
    EXPECT = 14
    EXPECTED = 15
    SWAPPED = 16
    SLOTS = 17


_MOST = {
    Kind.RUN: RUN_PAGES,
    Kind.GATHER: GATHER_PAGES,
    Kind.ZERO: GATHER_PAGES,
    Kind.ERROR: ERROR_BYTES,
}


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header."""

    kind: Kind
    count: int
    value: int


class WireError(Exception):
    """The peer sent what no peer of ours sends."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the destination measured; times on CLOCK_MONOTONIC."""

    loaded_ns: int
    resumed_ns: int
    guest_gap_ns: int
    cpu_ns: int
    receive_buffer_bytes: int


def pack(kind: Kind, count: int = 0, value: int = 0) -> bytes:
    """A header."""
    return _HEADER.pack(kind, count, value)


def unpack(data: bytes | bytearray | memoryview) -> Frame:
    """A header, of a known kind and with a count that the kind allows.

    Raises:
        WireError: it is none.
    """
    number, count, value = _HEADER.unpack(data)
    try:
        kind = Kind(number)
    except ValueError:
        raise WireError(f"frame of unknown kind {number:#x}") from None
    most = _MOST.get(kind)
    if most is not None and not 0 < count <= most:
        raise WireError(f"{kind.name} of {count}, 1 to {most} are allowed")
    return Frame(kind, count, value)


def check_run(frame: Frame, page_count: int) -> None:
    """Prove that a RUN lies in memory.

    Raises:
        WireError: it does not.
    """
    if not 0 <= frame.value <= page_count - frame.count:
        raise WireError(f"RUN of {frame.count} from page {frame.value} of {page_count}")


def check_gather(pages: NDArray[np.uint32], page_count: int) -> None:
    """Prove that the page numbers of a GATHER ascend and lie in memory.

    Raises:
        WireError: they do not.
    """
    if len(pages) and int(pages[-1]) >= page_count:
        raise WireError(f"GATHER of page {pages[-1]} of {page_count}")
    if not (pages[1:] > pages[:-1]).all():
        raise WireError("GATHER of pages that do not ascend")


def pack_zero(pages: NDArray[np.uint32]) -> bytes:
    """A whole ZERO of these pages, ascending, 512 at most."""
    starts = np.flatnonzero(np.diff(pages, prepend=pages[:1] - 2) != 1)
    runs = np.empty((len(starts), 2), NUMBER)
    runs[:, 0] = pages[starts]
    runs[:, 1] = np.diff(starts, append=len(pages))
    return pack(Kind.ZERO, len(runs)) + runs.tobytes()


def unpack_zero(body: bytes | bytearray, page_count: int) -> NDArray[np.int64]:
    """The pages of a ZERO, ascending, from what follows its header.

    Raises:
        WireError: they are none, too many, do not ascend, or do not lie in memory.
    """
    runs = np.frombuffer(body, NUMBER).reshape(-1, 2).astype(np.int64)
    firsts, counts = runs[:, 0], runs[:, 1]
    ends = firsts + counts
    if not counts.all() or counts.sum() > GATHER_PAGES:
        raise WireError(f"ZERO of {counts.sum()} pages in {len(runs)} runs")
    if (firsts[1:] < ends[:-1]).any() or ends[-1] > page_count:
        raise WireError(f"ZERO of runs that do not ascend, or leave the {page_count} pages")
    skips = firsts - np.cumsum(counts) + counts
    return np.arange(counts.sum()) + np.repeat(skips, counts)


def pack_resumed(resumed: Resumed) -> bytes:
    """A whole RESUMED."""
    return pack(Kind.RESUMED) + _RESUMED.pack(
        resumed.loaded_ns,
        resumed.resumed_ns,
        resumed.guest_gap_ns,
        resumed.cpu_ns,
        resumed.receive_buffer_bytes,
    )


def unpack_resumed(body: bytes | bytearray) -> Resumed:
    """The part of a RESUMED that follows its header."""
    return Resumed(*_RESUMED.unpack(body))


def pack_error(text: str) -> bytes:
    """A whole ERROR; text beyond its most is cut."""
    body = text.encode()[:ERROR_BYTES] or b"?"
    return pack(Kind.ERROR, len(body)) + body
