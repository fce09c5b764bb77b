"""The pages of one iteration, given out in order to whichever stream asks next."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from testbed.migration.wire import GATHER_PAGES, NUMBER, RUN_PAGES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Work:
    """One ordered queue: a slow stream takes less of it, and keeps nobody waiting."""

    def __init__(self, page_count: int, pages: NDArray[np.int64] | None = None) -> None:
        """These pages, ascending; None: all that the memory has."""
        self.numbers = None if pages is None else pages.astype(NUMBER)
        self.total = page_count if pages is None else len(pages)
        self._step = RUN_PAGES if pages is None else GATHER_PAGES
        self._next = 0
        self._lock = Lock()

    def take(self) -> tuple[int, int] | None:
        """The next part: its first page, or its place in `numbers`, and how many; None: no more.

        1 MiB of neighbouring pages, or up to 512 `numbers`.
        """
        with self._lock:
            first = self._next
            count = min(self._step, self.total - first)
            self._next += count
        return (first, count) if count else None
