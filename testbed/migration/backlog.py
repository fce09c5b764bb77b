"""The pages that the source still has to send after resume, and in which order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_LOOK = 1024


class Backlog:
    """Each page is taken once: those that are demanded first, the others in ascending order.

    After a demanded page the others go on behind it, as a guest that touched a page is likely
    to touch its neighbours next.
    """

    def __init__(self, pages: NDArray[np.int64]) -> None:
        """Begin with these, ascending."""
        self._pages = pages
        self._taken = np.zeros(len(pages), np.bool_)
        self._demanded: deque[int] = deque()
        self._next = 0
        self.left = len(pages)
        self.demanded = 0
        """How many were taken because they were demanded."""

    @property
    def is_demanded(self) -> bool:
        """Whether something that is left is demanded."""
        return bool(self._demanded)

    def demand(self, pages: Iterable[int]) -> None:
        """A vCPU waits for these, which are of the pages that it began with."""
        for row in np.searchsorted(self._pages, np.fromiter(pages, np.int64)).tolist():
            if not self._taken[row]:
                self._taken[row] = True
                self._demanded.append(row)
                self._next = row + 1

    def take(self, most: int) -> NDArray[np.int64]:
        """The next to be sent, ascending, at most so many; empty when nothing is left."""
        if self._demanded:
            rows = np.array(sorted(self._demanded.popleft() for _ in self._some(most)))
            self.demanded += len(rows)
        else:
            rows = self._in_turn(most)
            self._taken[rows] = True
        self.left -= len(rows)
        pages: NDArray[np.int64] = self._pages[rows]
        return pages

    def _some(self, most: int) -> range:
        return range(min(most, len(self._demanded)))

    def _in_turn(self, most: int) -> NDArray[np.int64]:
        """Rows that nobody has taken, from the next one on; the first follows the last."""
        for _ in range(len(self._pages) // _LOOK + 2):
            end = min(self._next + _LOOK, len(self._pages))
            rows = np.flatnonzero(~self._taken[self._next : end])[:most] + self._next
            if len(rows):
                self._next = int(rows[-1]) + 1
                return rows
            self._next = end if end < len(self._pages) else 0
        return np.empty(0, np.int64)
