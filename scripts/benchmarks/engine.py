"""The engine: tables, distance, CPU, convergence, sessions, NICs, encryption, bitmaps.

One stream beside iperf3 is a benchmark of its own, `stream`. Each part has namespaces of its own
and measures what it is compared with in the same run. Values are medians; a ratio is the median of
each pair's own, as a busy machine slows both of a pair.
GB are 10^9 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from _engine_converge import converge
from _engine_costs import bitmaps, cpu
from _engine_encryption import encryption
from _engine_how_fast import how_fast
from _engine_latency import latency
from _engine_links import migrations, nics
from _engine_sessions import sessions
from _engine_tables import tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from _row import Row

PARTS: dict[str, Callable[[int | None], list[Row]]] = {
    "tables": tables,
    "latency": latency,
    "how-fast": how_fast,
    "converge": converge,
    "sessions": sessions,
    "nics": nics,
    "migrations": migrations,
    "cpu": cpu,
    "encryption": encryption,
    "bitmaps": bitmaps,
}


def run(runs: int | None = None) -> list[Row]:
    """All parts, one after the other."""
    return [row for part in PARTS.values() for row in part(runs)]
