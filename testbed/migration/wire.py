"""What goes over the stream: frames of a 16-byte header and what follows it.

    HELLO     version; then migration id, secret, memory bytes    source -> destination
    ACCEPTED                                                      destination -> source
    RUN       count pages from page `value` on; their contents    first pass, up to 1 MiB
    GATHER    count page numbers; then the pages' contents        later passes, up to 512
    END       count pages were sent in iteration `value`
    ENDED     iteration `value` is in the destination's memory
    SWITCHOVER as END, for the last iteration
    LOADED    all memory is there
    RESUME    run the guest: it is yours
    RESUMED   it runs; then `Resumed`
    ERROR     count bytes of text: I give up

Little-endian. Whoever receives a frame checks every length and page number before it uses it.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.memory import PAGE_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
RUN_PAGES = (1 << 20) // PAGE_BYTES
GATHER_PAGES = 512
ERROR_BYTES = 4096
NUMBER = np.dtype("<u4")  # a page number: 16 TiB of memory

_HEADER = struct.Struct("<IIq")
_HELLO = struct.Struct("<q32sq")
_RESUMED = struct.Struct("<qqqqq")
HEADER_BYTES = _HEADER.size
HELLO_BYTES = HEADER_BYTES + _HELLO.size
RESUMED_BYTES = _RESUMED.size


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 0x544D5631
    ACCEPTED = 1
    RUN = 2
    GATHER = 3
    END = 4
    ENDED = 5
    SWITCHOVER = 6
    LOADED = 7
    RESUME = 8
    RESUMED = 9
    ERROR = 10


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header."""

    kind: Kind
    count: int
    value: int


class WireError(Exception):
    """The peer sent what no peer of ours sends."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who connects, and for which migration."""

    migration_id: int
    secret: bytes = field(repr=False)
    memory_bytes: int

    def same_migration(self, other: Hello) -> bool:
        """Whether identifier and secret agree; the time taken tells nothing of the secret."""
        mine, theirs = (_HELLO.pack(it.migration_id, it.secret, 0) for it in (self, other))
        return hmac.compare_digest(mine, theirs)


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
    most = {Kind.RUN: RUN_PAGES, Kind.GATHER: GATHER_PAGES, Kind.ERROR: ERROR_BYTES}.get(kind)
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


def pack_hello(hello: Hello) -> bytes:
    """A whole HELLO."""
    body = _HELLO.pack(hello.migration_id, hello.secret, hello.memory_bytes)
    return pack(Kind.HELLO, VERSION) + body


def unpack_hello(data: bytes | bytearray) -> Hello:
    """A whole HELLO.

    Raises:
        WireError: it is none, or of another version.
    """
    if len(data) != HELLO_BYTES:
        raise WireError(f"HELLO of {len(data)} bytes")
    frame = unpack(data[:HEADER_BYTES])
    if (frame.kind, frame.count) != (Kind.HELLO, VERSION):
        raise WireError(f"{frame.kind.name} of version {frame.count} instead of HELLO {VERSION}")
    return Hello(*_HELLO.unpack(data[HEADER_BYTES:]))


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
