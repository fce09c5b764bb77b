"""The guest: dirty rates, the costs of tracking and tracing, throttling, 128 VMs started.

Each part has guests or a lab of its own. Values are medians. Figures of the kernel notes are
those of this project's design, taken on another kernel build of the same machine type; where
they are a range, its upper end is the peer value. 1 GB is 2^30 bytes where memory is meant;
rates are in 10^6 bytes a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from _guest_rates import rates
from _guest_start import start
from _guest_throttle import throttle
from _guest_tracing import tracing
from _guest_tracking import tracking

if TYPE_CHECKING:
    from collections.abc import Callable

    from _row import Row

PARTS: dict[str, Callable[[int | None], list[Row]]] = {
    "rates": rates,
    "tracking": tracking,
    "tracing": tracing,
    "throttle": throttle,
    "start": start,
}


def run(runs: int | None = None) -> list[Row]:
    """All parts, one after the other."""
    return [row for part in PARTS.values() for row in part(runs)]
