"""How long page tracing takes to install, and how long it stops any vCPU."""

from __future__ import annotations

import statistics
from pathlib import Path

from _row import Row, row

from testbed.guest.machine import Guest
from testbed.guest.specification import LARGE_PAGE_BYTES, GuestSpec
from testbed.guest.trace import TraceMode, TraceReport

_RUNS = 3
_SIZES_GB = (1, 4)
_VCPUS = (1, 4, 16)
_GB = 1 << 30
_MODES = (TraceMode("stop-based", "4KiB"), TraceMode("loose", "4KiB"))
_MODELLED = TraceMode("loose", "1GiB")
_LARGE_MODES = (TraceMode("stop-based", "2MiB"), TraceMode("loose", "2MiB"))
_HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
# 64 times the page table entries; half of that, as entering and leaving a stop has a cost too.
_LEAST_GROWTH = 32.0
# Each stop is for as much whatever the guest. But the longest of 2048 is compared to that of 32,
# and each meets the machine's other load by chance.
_MOST_GROWTH = 8.0

_Reports = dict[TraceMode, list[TraceReport]]


def tracing(runs: int | None) -> list[Row]:
    """Both modes on idle guests of 1 and 4 GB with 1, 4 and 16 vCPUs.

    The bars are about growth, from 1 GB and one vCPU to 4 GB and 16: the longest stop of any vCPU
    by stop-based tracing grows as the page tables do, by loose tracing it does not. For these the
    least of the runs is compared: what other load adds to a stop is not tracing's.
    1 GiB is modelled (see TraceReport); 2 MiB needs huge pages.
    """
    count, rows = runs or _RUNS, []
    found: dict[tuple[int, int], _Reports] = {}
    for size_gb in _SIZES_GB:
        for vcpus in _VCPUS:
            spec = GuestSpec("bench", size_gb * _GB, vcpus, in_use_bytes=0)
            reports = _reports(spec, _MODES, count, _MODELLED)
            found[size_gb, vcpus] = reports
            rows += _rows(f"{size_gb} GB x {vcpus} vCPUs", reports)
    rows += _large(count)
    small, large = found[_SIZES_GB[0], _VCPUS[0]], found[_SIZES_GB[-1], _VCPUS[-1]]
    return rows + [_growth(mode, small[mode], large[mode]) for mode in _MODES]


def _reports(
    spec: GuestSpec, modes: tuple[TraceMode, ...], count: int, *extra: TraceMode
) -> _Reports:
    """Of each mode `count` installs, in turn, and of each extra one another."""
    found: _Reports = {mode: [] for mode in (*modes, *extra)}
    with Guest.power_on(spec, tracking="pagemap") as guest:
        for mode in [*modes * count, *extra]:
            tracker = guest.tracker(mode)
            tracker.install()
            found[mode].append(tracker.report())
            tracker.remove()
    return found


def _rows(what: str, found: _Reports) -> list[Row]:
    rows = []
    for mode, reports in found.items():
        name, count = f"{mode.stop}, {mode.granularity}, {what}", len(reports)
        install_ms = statistics.median(one.install_ns for one in reports) / 1e6
        if reports[0].modelled:
            rows.append(row(f"{name}: install (modelled)", install_ms, "ms", count))
            continue
        stop_ms = statistics.median(one.longest_stop_ns for one in reports) / 1e6
        rows.append(row(f"{name}: install", install_ms, "ms", count))
        rows.append(row(f"{name}: longest stop", stop_ms, "ms", count))
    return rows


def _large(count: int) -> list[Row]:
    """The same at 2 MiB, if the machine has as many huge pages."""
    rows: list[Row] = []
    for size_gb in _SIZES_GB:
        needed = size_gb * _GB // LARGE_PAGE_BYTES
        free, overcommit = (
            int((_HUGE_PAGES / name).read_text()) if _HUGE_PAGES.exists() else 0
            for name in ("free_hugepages", "nr_overcommit_hugepages")
        )
        if free + overcommit < needed:
            remedy = f"not measured: sysctl vm.nr_overcommit_hugepages={needed}"
            rows.append(row(f"2MiB, {size_gb} GB: {remedy}", None, "ms", 0))
            continue
        for vcpus in _VCPUS:
            spec = GuestSpec(
                "bench", size_gb * _GB, vcpus, in_use_bytes=0, page_bytes=LARGE_PAGE_BYTES
            )
            rows += _rows(f"{size_gb} GB x {vcpus} vCPUs", _reports(spec, _LARGE_MODES, count))
    return rows


def _growth(mode: TraceMode, small: list[TraceReport], large: list[TraceReport]) -> Row:
    least, most = (min(one.longest_stop_ns for one in found) for found in (small, large))
    value = most / least
    grows = mode.stop == "stop-based"
    return row(
        f"{mode.stop}: longest stop, 4 GB x 16 vCPUs / 1 GB x 1", value, "times", len(small),
        bar=f">= {_LEAST_GROWTH:g}" if grows else f"<= {_MOST_GROWTH:g}",
        met=value >= _LEAST_GROWTH if grows else value <= _MOST_GROWTH,
    )  # fmt: skip
