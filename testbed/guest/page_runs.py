"""Lists of pages: in order, and as runs of neighbours."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def once(pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Them, ascending, each once (numpy's own unique loads modules when first called)."""
    pages = np.sort(pages)
    return pages[:1] if len(pages) < 2 else pages[np.append(True, pages[1:] != pages[:-1])]


def bounds(pages: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Of ascending pages: where in the list each run of neighbours begins and ends."""
    if len(pages):
        breaks = np.flatnonzero(np.diff(pages) != 1) + 1
        yield from itertools.pairwise([0, *breaks.tolist(), len(pages)])
