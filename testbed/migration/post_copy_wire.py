"""What goes over the streams once the guest runs at the destination without all of its pages.

    PAGES     count page numbers, ascending; then their contents      source -> destination
    LAST      nothing more is sent on this stream                     source -> destination
    DEMAND    count page numbers: vCPUs wait for these                destination -> source
    PLACED    `value` pages are there; a sign of life                 destination -> source
    WHOLE     all pages are there; then count bytes: `Fetched`        destination -> source

and ERROR, as in wire.py, either way. Headers are those of wire.py, kinds others. DEMAND, PLACED
and WHOLE go over the first stream. Whoever receives a frame checks every length and number.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.memory import PAGE_BYTES
from testbed.migration.stream import GaveUpError
from testbed.migration.wire import ERROR_BYTES, HEADER_BYTES, NUMBER, WireError
from testbed.migration.wire import Kind as CopyKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from testbed.migration.stream import Stream

MOST_PAGES = 64
CAUSE_BYTES = 256
_HEADER = struct.Struct("<IIq")
_FETCHED = struct.Struct("<11q")


class Kind(IntEnum):
    """What a frame is."""

    PAGES = 0x51520001
    LAST = 0x51520002
    DEMAND = 0x51520003
    PLACED = 0x51520004
    WHOLE = 0x51520005
    ERROR = CopyKind.ERROR


_MOST = {
    Kind.PAGES: MOST_PAGES,
    Kind.DEMAND: MOST_PAGES,
    Kind.WHOLE: _FETCHED.size + CAUSE_BYTES,
    Kind.ERROR: ERROR_BYTES,
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the destination counted and measured: see `PostCopyReport`."""

    pages_missing: int
    pages_through_file: int
    duplicates: int
    faults: int
    waits: int
    wait_p50_ns: int
    wait_p99_ns: int
    wait_max_ns: int
    expect_ns: int
    install_ns: int
    whole_ns: int
    network_failure: str


@dataclass(frozen=True, slots=True)
class Head:
    """A frame's header."""

    kind: Kind
    count: int
    value: int


def pack_head(kind: Kind, count: int = 0, value: int = 0) -> bytes:
    """A header."""
    return _HEADER.pack(kind, count, value)


def unpack_head(data: bytes | bytearray) -> Head:
    """A header of a known kind, with a count that it allows.

    Raises:
        WireError: it is none.
    """
    number, count, value = _HEADER.unpack(data)
    try:
        kind = Kind(number)
    except ValueError:
        raise WireError(f"frame of unknown kind {number:#x} after resume") from None
    most = _MOST.get(kind, 0)
    if not min(most, 1) <= count <= most:
        raise WireError(f"{kind.name} of {count}, at most {most} are allowed")
    return Head(kind, count, value)


def receive_head(stream: Stream, kinds: Sequence[Kind]) -> Head:
    """The next header, which must be of one of these kinds.

    Raises:
        PeerError: the peer has gone or is stuck.
        WireError: it is none, or another.
        GaveUpError: the peer gave up.
    """
    data = bytearray(HEADER_BYTES)
    stream.receive(data)
    head = unpack_head(data)
    if head.kind is Kind.ERROR:
        text = bytearray(head.count)
        stream.receive(text)
        raise GaveUpError(text.decode(errors="replace"))
    if head.kind not in kinds:
        raise WireError(f"{head.kind.name} from the end that never sends it")
    return head


def receive_numbers(stream: Stream, count: int, known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The page numbers of a PAGES or DEMAND, ascending, each of which was missing at resume.

    Raises:
        PeerError: the peer has gone or is stuck.
        WireError: they are others.
    """
    data = bytearray(count * NUMBER.itemsize)
    stream.receive(data)
    numbers = np.frombuffer(data, NUMBER).astype(np.int64)
    if not (numbers[1:] > numbers[:-1]).all():
        raise WireError("page numbers that do not ascend")
    if numbers[-1] >= len(known) or not known[numbers].all():
        raise WireError(f"pages {numbers.tolist()} are not all of those that were missing")
    return numbers


def pack_demand(pages: Sequence[int]) -> bytes:
    """DEMANDs for these pages."""
    numbers = np.array(sorted(pages), NUMBER)
    parts = [numbers[n : n + MOST_PAGES] for n in range(0, len(numbers), MOST_PAGES)]
    return b"".join(pack_head(Kind.DEMAND, len(part)) + part.tobytes() for part in parts)


def pages_frame(pages: NDArray[np.int64], memory: memoryview) -> list[bytes | memoryview]:
    """The parts of a PAGES of these, ascending, whose contents stay where they are."""
    head = pack_head(Kind.PAGES, len(pages)) + pages.astype(NUMBER).tobytes()
    numbers, parts, end = pages.tolist(), [], 0
    while end < len(numbers):  # quicker than numpy's calls, as they are few
        first, end = end, end + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            end += 1
        parts.append(memory[numbers[first] * PAGE_BYTES : (numbers[end - 1] + 1) * PAGE_BYTES])
    return [head, *parts]


def pack_fetched(fetched: Fetched) -> bytes:
    """The body of a WHOLE."""
    numbers = astuple(fetched)[:-1]
    return _FETCHED.pack(*numbers) + fetched.network_failure.encode()[:CAUSE_BYTES]


def unpack_fetched(body: bytes | bytearray) -> Fetched:
    """The body of a WHOLE.

    Raises:
        WireError: it is none.
    """
    if not _FETCHED.size <= len(body) <= _FETCHED.size + CAUSE_BYTES:
        raise WireError(f"WHOLE of {len(body)} bytes")
    numbers: tuple[int, ...] = _FETCHED.unpack_from(body)
    if min(numbers) < 0:
        raise WireError("WHOLE with a count below 0")
    cause = bytes(body[_FETCHED.size :]).decode(errors="replace")
    names = [field.name for field in fields(Fetched)][:-1]
    return Fetched(**dict(zip(names, numbers, strict=True)), network_failure=cause)
