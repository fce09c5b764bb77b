"""The bitmap of a switchover: which pages are still to come.

Full: one bit for each page that the VM has, the lowest bit of the first byte for page 0: 32 KB for
each GB (vmotion-facts.md, row 39). Compacted (row 40): only what remains, as runs: for each
how many pages lie between it and the one before, and how many it has, less one; both as LEB128
numbers (7 bits a byte, low ones first, the top bit says that more follow).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from testbed.migration.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

_PART_BYTES = 1 << 20
_LONGEST = 5  # bytes of a number: 2^35 pages are 128 TiB
_SET_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")


class Encoding(IntEnum):
    """How a bitmap is told."""

    FULL = 1
    COMPACTED = 2


def most_bytes(page_count: int) -> int:
    """No bitmap of so many pages is longer, however it is told."""
    return -(-page_count // 8) + 1


def encode(
    pages: NDArray[np.int64], page_count: int, *, compacted: bool
) -> tuple[Encoding, memoryview]:
    """As `encode_parts`, in one piece."""
    encoding, _, parts = encode_parts(pages, page_count, compacted=compacted)
    return encoding, memoryview(b"".join(bytes(part) for part in parts))


def decode(encoding: int, data: bytes | bytearray, page_count: int) -> NDArray[np.int64]:
    """As `decode_parts`, of what is here already.

    Raises:
        WireError: it is no bitmap of so many pages.
    """
    left = memoryview(data)

    def receive(into: memoryview) -> None:
        nonlocal left
        into[:], left = left[: len(into)], left[len(into) :]

    return decode_parts(encoding, len(data), page_count, receive)


def encode_parts(
    pages: NDArray[np.int64], page_count: int, *, compacted: bool
) -> tuple[Encoding, int, Iterable[memoryview]]:
    """These pages, ascending, each once, told of a memory of so many.

    Compacted is what is shorter: where hardly two neighbours are alike, that is the full one.

    Returns:
        How it is told, its bytes, and these in parts: each is to be used before the next is taken.
    """
    if compacted:
        short = _encode_runs(pages)
        if len(short) < most_bytes(page_count):
            return Encoding.COMPACTED, len(short), [short.data]
    return Encoding.FULL, -(-page_count // 8), _full_parts(pages, page_count)


def decode_parts(
    encoding: int, size_bytes: int, page_count: int, receive: Callable[[memoryview], None]
) -> NDArray[np.int64]:
    """The pages that a bitmap of so many tells of, ascending; `receive` fills what it is given.

    Raises:
        WireError: it is no bitmap of so many pages.
    """
    if encoding == Encoding.FULL:
        if size_bytes != -(-page_count // 8):
            raise WireError(f"full bitmap of {size_bytes} bytes for {page_count} pages")
        return _decode_bits(page_count, receive)
    if encoding != Encoding.COMPACTED:
        raise WireError(f"bitmap of unknown encoding {encoding}")
    if not 0 <= size_bytes <= most_bytes(page_count):
        raise WireError(f"compacted bitmap of {size_bytes} bytes for {page_count} pages")
    octets = np.empty(size_bytes, np.uint8)
    if size_bytes:
        receive(octets.data)
    return _decode_runs(octets, page_count)


def _full_parts(pages: NDArray[np.int64], page_count: int) -> Iterator[memoryview]:
    """Part by part: a VM of 24 TB has 768 MB of it, which nobody should have to make first."""
    size_bytes = -(-page_count // 8)
    bits = np.zeros(min(_PART_BYTES, size_bytes), np.uint8)
    for first in range(0, size_bytes, _PART_BYTES):
        part = bits[: size_bytes - first]
        begin, end = np.searchsorted(pages, (first * 8, (first + len(part)) * 8))
        own = pages[begin:end] - first * 8
        places = own >> 3
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        if len(starts):
            values = np.left_shift(1, own & 7).astype(np.uint8)
            part[places[starts]] = np.bitwise_or.reduceat(values, starts)
        yield part.data
        part[places] = 0


def _decode_bits(page_count: int, receive: Callable[[memoryview], None]) -> NDArray[np.int64]:
    size_bytes = -(-page_count // 8)
    words = np.empty(-(-min(_PART_BYTES, size_bytes) // 8), np.uint64)
    bits = words.view(np.uint8)
    found = [np.empty(0, np.int64)]
    for first in range(0, size_bytes, _PART_BYTES):
        count = min(_PART_BYTES, size_bytes - first)
        bits[count:] = 0
        receive(bits[:count].data)
        (where,) = np.nonzero(words)  # few have any bit set
        if len(where):
            rows, columns = np.nonzero(_SET_BITS[bits.reshape(-1, 8)[where]].reshape(-1, 64))
            found.append(first * 8 + where[rows] * 64 + columns)
    pages = np.concatenate(found)
    if len(pages) and pages[-1] >= page_count:
        raise WireError(f"bitmap of page {pages[-1]} of {page_count}")
    return pages


def _encode_runs(pages: NDArray[np.int64]) -> NDArray[np.uint8]:
    starts = np.flatnonzero(np.diff(pages, prepend=-2) != 1)
    counts = np.diff(starts, append=len(pages))
    firsts = pages[starts]
    numbers = np.empty((len(starts), 2), np.int64)
    numbers[:, 0] = np.diff(firsts, prepend=0)
    numbers[1:, 0] -= counts[:-1]
    numbers[:, 1] = counts - 1
    return _encode_numbers(numbers.reshape(-1))


def _decode_runs(octets: NDArray[np.uint8], page_count: int) -> NDArray[np.int64]:
    numbers = _decode_numbers(octets)
    if len(numbers) % 2:
        raise WireError("compacted bitmap that ends in the middle of a run")
    gaps, counts = numbers[::2], numbers[1::2] + 1
    # No sum overflows: a number has 35 bits, and there are fewer than 2^27 runs of them.
    firsts = np.cumsum(gaps + counts) - counts
    if len(firsts) and firsts[-1] + counts[-1] > page_count:
        raise WireError(f"bitmap of page {firsts[-1] + counts[-1] - 1} of {page_count}")
    if (gaps[1:] == 0).any():
        raise WireError("compacted bitmap of runs that touch")
    skips = firsts - np.cumsum(counts) + counts
    pages: NDArray[np.int64] = np.arange(counts.sum()) + np.repeat(skips, counts)
    return pages


def _encode_numbers(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    lengths = np.ones(len(numbers), np.int64)
    for more in range(1, _LONGEST):
        lengths += numbers >= 1 << 7 * more
    ends = np.cumsum(lengths)
    starts = ends - lengths
    octets = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(_LONGEST):
        has = np.flatnonzero(lengths > place)
        part = (numbers[has] >> 7 * place) & 0x7F
        octets[starts[has] + place] = part | np.where(lengths[has] > place + 1, 0x80, 0)
    return octets


def _decode_numbers(octets: NDArray[np.uint8]) -> NDArray[np.int64]:
    ends = np.flatnonzero(octets < 0x80)
    if len(octets) and (not len(ends) or ends[-1] != len(octets) - 1):
        raise WireError("compacted bitmap that ends in the middle of a number")
    starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > _LONGEST:
        raise WireError("compacted bitmap with a number that is too long")
    numbers = np.zeros(len(ends), np.int64)
    for place in range(_LONGEST):
        has = np.flatnonzero(lengths > place)
        part = octets[starts[has] + place].astype(np.int64) & 0x7F
        numbers[has] |= part << 7 * place
    return numbers
