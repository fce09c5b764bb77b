"""Results side by side: what was measured on real hosts beside what was emulated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.report.observed import LogResult, observed
from testbed.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from testbed.report.observed import Observed
    from testbed.report.result import Iteration, MigrationResult


@dataclass(frozen=True, slots=True)
class Column:
    """One result; its figures are nominal ones, whatever the lab's scale."""

    title: str
    about: str
    seen: Observed


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of all results, as text, and what it is."""

    name: str
    cells: tuple[str, ...]
    meaning: str


def column(result: MigrationResult | LogResult) -> Column:
    """A result as one of several."""
    if isinstance(result, LogResult):
        logs = ", ".join(result.logs)
        # Only the testbed's own logs name the VM.
        title = "Measured" if result.observed.vm is None else "Emulated, from its logs"
        return Column(title, f"{result.lines} lines of {logs}", result.observed)
    k = result.scale_divisor
    about = f"lab {result.lab}, {result.created}"
    if k != 1:
        about += f", scale 1/{k}: sizes and rates are {k} times those of the lab"
    return Column("Emulated", about, _nominal(observed(result), k))


def _nominal(seen: Observed, k: int) -> Observed:
    def times(value: int | None) -> int | None:
        return None if value is None else value * k

    return replace(
        seen,
        memory_bytes=times(seen.memory_bytes),
        precopy_bytes_per_s=times(seen.precopy_bytes_per_s),
        page_in_bytes_per_s=times(seen.page_in_bytes_per_s),
        transmit_bytes_per_s=times(seen.transmit_bytes_per_s),
        stop_bytes_per_s=times(seen.stop_bytes_per_s),
        pages_left=times(seen.pages_left),
        pages_after_resume=times(seen.pages_after_resume),
        iterations=tuple(
            replace(
                it,
                pages=it.pages * k,
                memory_bytes=it.memory_bytes * k,
                wire_bytes=it.wire_bytes * k,
                dirty_pages=it.dirty_pages * k,
            )
            for it in seen.iterations
        ),
    )


def rows(columns: Sequence[Column]) -> list[Row]:
    """All that any of them tells; differences are against the first."""
    told = [_text_row(name, columns, of, meaning) for name, of, meaning in _TEXTS]
    told += [_figure_row(name, columns, of, show, why) for name, of, show, why in _FIGURES]
    return [row for row in told if any(cell != "-" for cell in row.cells)]


def _text_row(
    name: str, columns: Sequence[Column], of: Callable[[Observed], str | None], meaning: str
) -> Row:
    return Row(name, tuple(of(one.seen) or "-" for one in columns), meaning)


def _figure_row(
    name: str,
    columns: Sequence[Column],
    of: Callable[[Observed], int | None],
    show: Callable[[int], str],
    meaning: str,
) -> Row:
    values = [of(one.seen) for one in columns]
    first, cells = values[0], []
    for number, value in enumerate(values):
        text = "-" if value is None else show(value)
        if number and value is not None and first:
            difference = round(100 * (value - first) / first, 1) + 0.0  # no -0.0
            text += f" ({difference:+.1f} %)"
        cells.append(text)
    return Row(name, tuple(cells), meaning)


def _move(seen: Observed) -> str | None:
    if seen.source is None and seen.destination is None:
        return None
    return f"{seen.source or '?'} to {seen.destination or '?'}"


def _addresses(seen: Observed) -> str | None:
    if seen.source_address is None:
        return None
    return f"{seen.source_address} to {seen.destination_address}"


def _outcome(seen: Observed) -> str:
    if seen.failure is None:
        return seen.outcome if seen.outcome != "unknown" else "not told"
    return f"failed in phase {seen.failure.phase}: {seen.failure.cause}"


def rate_text(rate_bytes_per_s: int) -> str:
    """As the vmkernel tells it, and beside it in bits."""
    return f"{rate_bytes_per_s / 1e6:,.1f} MB/s, {rate_bytes_per_s * 8 / 1e9:.3g} Gbit/s"


def _rounds(seen: Observed) -> int | None:
    return sum(not one.stunned for one in seen.iterations) or None


def iteration_cells(one: Iteration) -> tuple[str, ...]:
    """A row of a table of iterations."""
    return (
        f"{one.number}{' stun' if one.stunned else ''}",
        f"{one.pages:,}",
        format_size(one.memory_bytes),
        format_duration(one.duration_ns),
        rate_text(round(one.throughput_bps / 8)),
        "-" if one.stunned else f"{one.dirty_pages:,}",
    )


ITERATION_COLUMNS = ("Phase", "Pages", "Size", "Duration", "Throughput", "Dirty pages")
_TEXTS: tuple[tuple[str, Callable[[Observed], str | None], str], ...] = (
    ("VM", lambda seen: seen.vm, "logs of ESXi name worlds, not VMs"),
    ("Hosts", _move, "from the log's own prefix, if it has one"),
    ("vMotion addresses", _addresses, "of the first vMotion adapter of each host"),
    ("Began", lambda seen: seen.began, "UTC; where the log tells no year, from the migration's ID"),
    ("Outcome", _outcome, "completed: all memory was at the destination"),
)
_FIGURES: tuple[tuple[str, Callable[[Observed], int | None], Callable[[int], str], str], ...] = (
    ("Memory", lambda seen: seen.memory_bytes, format_size, "of the VM, as configured"),
    (
        "Total time",
        lambda seen: seen.total_ns,
        format_duration,
        "from the first line to the last of one host; emulated: from the command on",
    ),
    (
        "Throughput of pre-copy",
        lambda seen: seen.precopy_bytes_per_s,
        rate_text,
        "page contents while the guest ran; ESXi's destination estimates it",
    ),
    (
        "Throughput of page-in",
        lambda seen: seen.page_in_bytes_per_s,
        rate_text,
        "page contents sent while the guest stood still, or after it ran",
    ),
    (
        "Throughput of all",
        lambda seen: seen.transmit_bytes_per_s,
        rate_text,
        "page contents from the first to the last; ESXi's source estimates it",
    ),
    ("Pre-copy rounds", _rounds, str, "ESXi's log does not tell them"),
    (
        "Pages left",
        lambda seen: seen.pages_left,
        lambda value: f"{value:,}",
        "to send when pre-copy stopped",
    ),
    (
        "Pages after resume",
        lambda seen: seen.pages_after_resume,
        lambda value: f"{value:,}",
        "which the guest ran without at first (Quick Resume)",
    ),
    (
        "Rate when pre-copy stopped",
        lambda seen: seen.stop_bytes_per_s,
        rate_text,
        "by which the source judged that the rest fits the goal",
    ),
    (
        "Transmitted to dirtied",
        lambda seen: seen.transmit_to_dirty_percent,
        lambda value: f"{value:,} %",
        '"t2d": transmit rate in per cent of the dirty rate',
    ),
    ("Switchover goal", lambda seen: seen.switchover_goal_ns, format_duration, "as configured"),
    (
        "Stun",
        lambda seen: seen.stun_ns,
        format_duration,
        "how long the guest stood still; hostd's precopyStunTime",
    ),
)
