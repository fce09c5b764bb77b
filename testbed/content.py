"""What files and streams of a VM hold: bytes that follow from (seed, file, offset) alone.

So whoever receives them checks every byte without having been sent anything beside.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import numpy as np

PART_NS = 10_000_000
"""A media stream's parts are due every 10 ms: without buffering, a missing one is seen."""
PART_HEADER = struct.Struct("<qqQ")
"""What a part begins with: its number, when it was due (CLOCK_MONOTONIC), its bytes with this."""
_MEDIA_FILE = -1
_WORD_BYTES = 8
_CHUNK_WORDS = 8192  # 64 KiB stay in the cache
_ODD = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step and first multiplier
_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(29)


def content(seed: int, file: int, offset: int, length: int) -> bytes:
    """Bytes offset .. offset + length - 1 of a file, which has no end.

    Args:
        seed: the VM's.
        file: the file's number.
        offset: from 0.
        length: 0 or more; up to 64 KiB at a time is quickest, at 2 to 3 GB/s.
    """
    first = offset // _WORD_BYTES
    skipped = offset - first * _WORD_BYTES
    count = -(-(skipped + length) // _WORD_BYTES)
    key = int.from_bytes(blake2b(repr((seed, file)).encode(), digest_size=8).digest(), "little")
    parts = []
    for begin in range(0, count, _CHUNK_WORDS):
        words = np.arange(begin, min(begin + _CHUNK_WORDS, count), dtype=np.uint64)
        words += np.uint64((key + first) % 2**64)
        words *= _ODD
        words ^= words >> _SHIFT
        words *= _MULTIPLIER
        parts.append(words.view(np.uint8).data)
    if parts:  # what was not asked for goes before it is copied
        parts[-1] = parts[-1][: skipped + length - (count - len(words)) * _WORD_BYTES]
        parts[0] = parts[0][skipped:]
    return b"".join(parts)


def part_bytes(rate_bps: int) -> int:
    """The size of each part of a media stream, with its header."""
    return max(PART_HEADER.size, rate_bps * PART_NS // 8 // 10**9)


def part_content(seed: int, number: int, offset: int, length: int) -> bytes:
    """What part `number` of a VM's media streams holds after its header, from `offset` on."""
    return content(seed, _MEDIA_FILE, number * 2**32 + offset, length)
