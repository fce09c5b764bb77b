"""What a guest's memory holds before anything is written: content that follows from a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.specification import SMALL_PAGE_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORDS = SMALL_PAGE_BYTES // 8
_CHUNK_PAGES = 1024  # 4 MiB at a time stays in the cache


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble words in place (the finaliser of splitmix64) and return them."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def fill_pages(rows: NDArray[np.uint64], first: int, seed_key: int) -> None:
    """Give rows of 512 words the content of pages `first` and on: no page is zero, none alike."""
    words = np.arange(_WORDS, dtype=np.uint64) + np.uint64(seed_key % 2**64)
    base = mix(words)
    for start in range(0, len(rows), _CHUNK_PAGES):
        chunk = rows[start : start + _CHUNK_PAGES]
        number = first + start + 1
        keys = mix(np.arange(number, number + len(chunk), dtype=np.uint64))
        np.bitwise_xor(base, keys[:, None], out=chunk)
