"""The dirty rate that a workload was asked for, and what the tracking finds of it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from _row import Row, row

from testbed.guest import layout
from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.guest.tasks.writer import expected_distinct_pages
from testbed.guest.workloads import Writer

if TYPE_CHECKING:
    from testbed.guest.tracking import DirtyTracker

_SCANS = 7
_VCPUS = 2
_MIB = 1 << 20
_PAGE_BYTES = 4096
_MOST_OFF = 0.02


@dataclass(frozen=True, slots=True)
class _Case:
    """A rate, and the time between two scans.

    So long that chance and a scan's own time are far below 2 % of the pages, and so short that
    the sequential writer, in 512 MiB, writes none of them twice.
    """

    rate_bytes_per_s: int
    interval_s: float
    random_mib: int
    """The working set of the writers that pick pages at random."""
    exponent: float = 0.99
    """Of the zipf writer: a few hundred writes of a steeper law hit too many pages by chance."""


_CASES = (
    _Case(10**6, 1.5, 64, 0.5),
    _Case(10**7, 0.8, 64, 0.5),
    _Case(10**8, 0.4, 64),
    _Case(4 * 10**8, 0.25, 64),
    _Case(10**9, 0.2, 256),
    _Case(2 * 10**9, 0.2, 256),
)
_SEQUENTIAL_MIB = 512
_KINDS: tuple[tuple[Literal["sequential", "uniform", "zipf"], str], ...] = (
    ("sequential", "asked"),
    ("uniform", "W(1 - e^(-n/W))"),
    ("zipf", "sum of 1 - e^(-n p)"),
)


def rates(runs: int | None) -> list[Row]:
    """Distinct pages x 4096 that PAGEMAP_SCAN finds in each of some scans, beside the expected.

    n is the rate asked for x the time between two scans. The guest's own state pages, which
    aren't the workload's, are left out. `runs` is the number of scans.
    """
    spec = GuestSpec("bench", (_SEQUENTIAL_MIB + 64) * _MIB, _VCPUS, in_use_bytes=0)
    rows = []
    with Guest.power_on(spec, tracking="pagemap") as guest:
        tracker = guest.tracker()
        tracker.install()
        try:
            for kind, theory in _KINDS:
                for case in _CASES:
                    mib = _SEQUENTIAL_MIB if kind == "sequential" else case.random_mib
                    workload = Writer(kind, case.rate_bytes_per_s, mib * _MIB, case.exponent)
                    guest.switch_workloads((workload,))
                    rows.append(_row(case, workload, theory, _scans(tracker, case, runs or _SCANS)))
        finally:
            tracker.remove()
    return rows


def _scans(tracker: DirtyTracker, case: _Case, count: int) -> list[tuple[float, int]]:
    """Of each scan: the seconds since the one before, and how many pages it found."""
    found = []
    first = layout.first_data_page(_VCPUS)
    time.sleep(0.1)  # since the workload was switched: what that delayed has been made up
    last, _ = _scan(tracker, first)
    due = last
    for _ in range(count):
        due += case.interval_s
        time.sleep(max(0.0, due - time.monotonic()))
        now, pages = _scan(tracker, first)
        found.append((now - last, pages))
        last = now
    return found


def _scan(tracker: DirtyTracker, first: int) -> tuple[float, int]:
    """The middle of a scan, and the pages from `first` on that it found."""
    began = time.monotonic()
    pages = tracker.collect()
    ended = time.monotonic()
    return (began + ended) / 2, int((pages >= first).sum())


def _row(case: _Case, workload: Writer, theory: str, scans: list[tuple[float, int]]) -> Row:
    pages = workload.working_set_bytes // _PAGE_BYTES
    values, expected, ratios = [], [], []
    for passed_s, found in scans:
        writes = case.rate_bytes_per_s / _PAGE_BYTES * passed_s
        wanted = expected_distinct_pages(workload, _VCPUS, pages, writes)
        values.append(found * _PAGE_BYTES / passed_s / 1e6)
        expected.append(wanted * _PAGE_BYTES / passed_s / 1e6)
        ratios.append(found / wanted)
    ratio = statistics.median(ratios)
    name = workload.kind + (f" {workload.exponent:g}" if workload.kind == "zipf" else "")
    return row(
        f"{name} writer, {case.rate_bytes_per_s / 1e6:g} MB/s: found",
        statistics.median(values), "MB/s", len(scans),
        peer=(theory, statistics.median(expected)), ratio=ratio,
        bar=f"within {_MOST_OFF:.0%}", met=abs(ratio - 1) <= _MOST_OFF,
    )  # fmt: skip
