"""The published tables of pre-copy (vmotion-facts.md, rows 20 and 43) as real transfers.

Memory and rates are divided by the same number, so durations are the published ones. Phases are
named as in row 43: the first is -1.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from _engine_moves import move
from _pair import MTU, pair
from _row import Row, row
from _transfer import specification

from testbed.guest.memory import PAGE_BYTES
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Replay, TraceRange, Writer

if TYPE_CHECKING:
    from testbed.guest.machine import Guest
    from testbed.guest.workloads import Workload

_MOST_OFF = 0.05
_LEAD_NS = 500_000_000  # the guest has been writing for so long when it is moved
_MB = 1 << 20  # of row 20: its volumes are powers of two
_GB = 10**9  # of row 43
# What the engine's frames for pages add is 16 bytes for a megabyte of them.
_HEADERS = (MTU + 14) / (MTU - 52)  # Ethernet's as HTB counts; IP's, TCP's and its timestamps


@dataclass(frozen=True, slots=True)
class _Table:
    """A published table, at full size, and by how much it is divided here.

    `volumes` are those of the phases that it prints, in `unit_bytes`.
    """

    name: str
    unit: str
    unit_bytes: int
    volumes: tuple[int, ...]
    rate_bytes_per_s: int
    goal_ns: int
    divisor: int
    workload: Workload


def _row_20() -> _Table:
    """2048 MB at 128 MB/s, of which 32 MB/s are written; 8 MB are the cut-off, 0.06 s."""
    divisor = 8
    writer = Writer("sequential", 32 * _MB // divisor, 1024 * _MB // divisor)
    volumes = 2048, 512, 128, 32, 8
    return _Table("row 20", "MB", _MB, volumes, 128 * _MB, 100_000_000, divisor, writer)


def _row_43() -> _Table:
    """24 GB, then 8, 3 and 1, at 10 Gb/s; what is left after that takes less than the goal.

    The trace writes, in the time that each phase takes, what the next one sends; after the last
    it goes on as in the one before.
    """
    divisor, rate, volumes = 96, 10**10 // 8, (24, 8, 3, 1)
    ranges, at_ns = [], 0
    for number, (volume, dirtied) in enumerate(zip(volumes, (*volumes[1:], 1 / 3), strict=True)):
        until_ns = at_ns + volume * _GB * 10**9 // rate + (0 if number else _LEAD_NS)
        if number == len(volumes) - 1:
            until_ns += 60 * 10**9
        written = round(dirtied / volume * rate) // divisor
        pages = 16 * _GB // divisor // PAGE_BYTES
        ranges.append(TraceRange(at_ns, until_ns, 0, pages, written))
        at_ns = until_ns
    replay = Replay(tuple(ranges))
    return _Table("row 43", "GB", _GB, volumes, rate, 500_000_000, divisor, replay)


def tables(runs: int | None) -> list[Row]:
    """Each phase's volume beside the published one, at full size; the median of some runs."""
    return [found for table in (_row_20(), _row_43()) for found in _replay(table, runs or 1)]


def _replay(table: _Table, count: int) -> list[Row]:
    size = table.volumes[0] * table.unit_bytes // table.divisor // PAGE_BYTES * PAGE_BYTES
    guest = GuestSpec("bench", size, 1, (table.workload,))
    link_bps = round(table.rate_bytes_per_s / table.divisor * 8 * _HEADERS)
    found: list[list[float]] = []
    with pair(link_bps) as names:
        for _ in range(count):
            spec = specification(size, switchover_goal_ns=table.goal_ns)
            report, failure = move(names, replace(spec, guest=guest), _writing)
            if failure:
                raise RuntimeError(f"{table.name}: {failure}")
            scale = table.divisor / table.unit_bytes
            found.append([iteration.memory_bytes * scale for iteration in report.iterations])
    rows = []
    for number, published in enumerate(table.volumes):
        # A run that stopped before did not send this phase.
        value = statistics.median(one[number] if number < len(one) else 0 for one in found)
        ratio = value / published
        rows.append(
            row(
                f"{table.name}, phase {number - 1}",
                value,
                table.unit,
                count,
                peer=("published", published),
                ratio=ratio,
                bar=f"within {_MOST_OFF:.0%}",
                met=abs(ratio - 1) <= _MOST_OFF,
            )
        )
    return rows


def _writing(guest: Guest) -> None:
    """Return when the guest has been at work for a while: its trace's clock says so."""
    began = int(guest.task_counters()["last_at_ns"].max())
    while not began:
        time.sleep(0.001)
        began = int(guest.task_counters()["last_at_ns"].max())
    time.sleep(max(0, began + _LEAD_NS - time.monotonic_ns()) / 1e9)
