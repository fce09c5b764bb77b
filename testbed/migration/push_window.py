"""How many pages may be under way unasked-for, so that one that is demanded comes soon.

A demanded page waits behind all that was sent before it: in TCP, in the switches' queues, in the
receiver's buffer. So no more is sent ahead than keeps the path busy. What shows it is the time from
a page's sending until it is placed: whatever even the quickest page of a round takes beyond the
shortest time ever seen, it has spent in a queue (FAST TCP finds its window that way).
"""

from __future__ import annotations

from collections import deque

from testbed.migration.post_copy_wire import MOST_PAGES

FRAME_PAGES = 4
"""The least of a push: at 1 Gb/s a demanded page that comes behind one waits for 0.13 ms."""
LEAST_PAGES = 2 * FRAME_PAGES
QUEUE_NS = 500_000
"""So long may a page be in queues; longer on a long path, where its time varies more."""


class PushWindow:
    """Each round, in which as many pages are placed as were under way, it grows or shrinks."""

    def __init__(self) -> None:
        self.pages = 8 * FRAME_PAGES
        self.sent = self.placed = 0
        self._shortest_ns: float = float("inf")
        self._frames: deque[tuple[int, int]] = deque()  # pages sent by then, and when
        self._round_end = 0
        self._quickest_ns: float = float("inf")
        self._filled, self._starting = False, True

    @property
    def frame_pages(self) -> int:
        """How many to send at once: few enough not to look like a queue by themselves."""
        quarter = min(self.pages // 4, 4 * FRAME_PAGES)
        return min(max(quarter, self.pages // 16, FRAME_PAGES), MOST_PAGES)

    @property
    def full(self) -> bool:
        """Whether no more may be sent now but what is demanded."""
        return self.sent - self.placed >= self.pages

    def has_sent(self, pages: int, now_ns: int) -> None:
        """So many more pages were sent."""
        self.sent += pages
        self._frames.append((self.sent, now_ns))
        self._filled = self._filled or self.full

    def has_placed(self, total: int, now_ns: int) -> None:
        """So many have been placed by now in all."""
        self.placed = total
        while self._frames and self._frames[0][0] <= total:
            took_ns = now_ns - self._frames.popleft()[1]
            self._quickest_ns = min(self._quickest_ns, took_ns)
        if total >= self._round_end and self._quickest_ns < float("inf"):
            self._end_round()

    def _end_round(self) -> None:
        self._shortest_ns = min(self._shortest_ns, self._quickest_ns)
        wanted_ns = self._shortest_ns + max(QUEUE_NS, self._shortest_ns / 8)
        factor = max(wanted_ns / self._quickest_ns, 0.5)
        self._starting = self._starting and factor > 1
        if self._starting and self._filled:
            self.pages *= 2
        elif factor < 1 or self._filled:
            self.pages = max(round(self.pages * (1 + min(factor, 2)) / 2), LEAST_PAGES)
        self._round_end, self._quickest_ns, self._filled = self.sent, float("inf"), False
