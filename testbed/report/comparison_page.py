"""Results side by side as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.report import svg
from testbed.report.charts import throughput_chart
from testbed.report.comparison import ITERATION_COLUMNS, column, iteration_cells, rate_text, rows
from testbed.report.document import document, table
from testbed.report.files import write_whole
from testbed.report.observed import LogResult
from testbed.report.svg import Limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.report.comparison import Column
    from testbed.report.result import MigrationResult

CAPTION = (
    '<figure><figcaption><span class="key first"></span>bytes that the destination\'s TCP '
    "acknowledged, per second, at the lab's scale; dashed the measured throughput of pre-copy"
    "</figcaption>"
)


def write_page(results: Sequence[MigrationResult | LogResult], path: Path | str) -> None:
    """Writes the page, whole or not at all, over an older one of that name.

    Raises:
        InputError: the place can't be written.
    """
    write_whole(Path(path), render(results))


def render(results: Sequence[MigrationResult | LogResult]) -> str:
    """The page: what all can tell side by side, then the iterations of each. Text is escaped."""
    columns = [column(result) for result in results]
    title = " and ".join(dict.fromkeys(one.title.lower() for one in columns)).capitalize()
    heads = ("", *(one.title for one in columns), "What it is")
    told = [(row.name, *row.cells, row.meaning) for row in rows(columns)]
    parts = [
        f"<header><h1>{escape(title)}</h1>",
        *(f'<p class="soft">{escape(one.title)}: {escape(one.about)}</p>' for one in columns),
        "</header><h2>Side by side</h2>",
        table(heads, told),
        '<p class="soft">Differences are against the first.</p>' if len(columns) > 1 else "",
        *_charts(results),
        *(part for one in columns for part in _iterations(one)),
        "<h2>Where they come from</h2>",
        table(
            ("", ""),
            [
                (one.title, _origin(one, result))
                for one, result in zip(columns, results, strict=True)
            ],
            head=False,
        ),
    ]
    return document(title, parts)


def _charts(results: Sequence[MigrationResult | LogResult]) -> list[str]:
    """Each emulation's throughput over time, and in it the level that was measured."""
    measured = next(
        (
            one.observed.precopy_bytes_per_s
            for one in results
            if isinstance(one, LogResult) and one.observed.precopy_bytes_per_s
        ),
        None,
    )
    parts = []
    for number, one in enumerate(results):
        if isinstance(one, LogResult) or one.engine is None or not one.engine.iterations:
            continue
        chart = replace(throughput_chart(one.engine, None), name=f"throughput-{number}")
        if measured is not None:
            level = Limit(f"measured {rate_text(measured)}", measured * 8 / one.scale_divisor)
            chart = replace(chart, limit=level)
        about = column(one).about
        parts += [
            f"<h2>Throughput, emulated: {escape(about)}</h2>",
            CAPTION,
            svg.render(chart),
            "<output></output></figure>",
        ]
    return parts


def _iterations(one: Column) -> list[str]:
    if not one.seen.iterations:
        return []
    return [
        f"<h2>Iterations: {escape(one.title.lower())}, {escape(one.about)}</h2>",
        table(
            ITERATION_COLUMNS,
            [iteration_cells(it) for it in one.seen.iterations],
            "numbers",
            stunned={n for n, it in enumerate(one.seen.iterations) if it.stunned},
        ),
    ]


def _origin(one: Column, result: MigrationResult | LogResult) -> str:
    moved = f"migration {one.seen.migration_id}, " if one.seen.migration_id is not None else ""
    return f"{moved}{result.command}, testbed {result.testbed_version}, {result.created}"
