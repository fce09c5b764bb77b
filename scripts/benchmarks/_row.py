"""Rows of a benchmark's table, which are said as soon as they are there."""

from __future__ import annotations

import sys
from typing import TypeAlias

Row: TypeAlias = dict[str, object]


def say(text: str) -> None:
    """Progress, and what disturbed a run, on stderr: the table is on stdout."""
    print(text, file=sys.stderr, flush=True)


def row(
    name: str,
    value: float | None,
    unit: str,
    runs: int,
    *,
    peer: tuple[str, float] | None = None,
    ratio: float | None = None,
    bar: str | None = None,
    met: bool | None = None,
) -> Row:
    """A row of the table; no value: it could not be measured, and the name says why."""
    beside = "" if peer is None else f", {peer[0]} {peer[1]:.4g}"
    missed = f"; bar {bar} MISSED" if met is False else ""
    say(name if value is None else f"{name}: {value:.4g} {unit}{beside}{missed}")
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": None if peer is None else peer[0],
        "peer_value": None if peer is None else peer[1],
        "ratio": ratio,
        "bar": bar,
        "met": met,
        "runs": runs,
    }
