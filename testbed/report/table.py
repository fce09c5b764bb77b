"""Results in the terminal: iterations and a summary in plain words, or several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from testbed.report.comparison import column, rows
from testbed.report.figures import COLUMNS, iteration_cells, succeeded, summary, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.report.observed import LogResult
    from testbed.report.result import MigrationResult


def render(result: MigrationResult) -> Group:
    """All there is to say about a result, for `rich.print`."""
    parts: list[Table | Text] = [
        Text(verdict(result), style="bold" if succeeded(result) else "red")
    ]
    if result.engine is not None:
        parts.append(iterations_table(result))
    parts.append(summary_table(result))
    return Group(*parts)


def iterations_table(result: MigrationResult) -> Table:
    """Phase -1 is all memory, each next one what was dirtied meanwhile."""
    # As narrow as it goes: it is to fit a terminal of 80 columns.
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number == 0 else "right")
    if result.engine is not None:
        for iteration in result.engine.iterations:
            style = "yellow" if iteration.stunned else ""
            cells = (Text(cell) for cell in iteration_cells(result, iteration))
            table.add_row(*cells, style=style)
    return table


def summary_table(result: MigrationResult) -> Table:
    """What was achieved, and by which mechanisms."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for figure in summary(result):
        table.add_row(Text(figure.name), Text(figure.value))
    mechanisms = ", ".join(f"{name}: {value}" for name, value in sorted(result.mechanisms.items()))
    table.add_row(Text("Mechanisms"), Text(mechanisms or "none recorded"))
    return table


def side_by_side(results: Sequence[MigrationResult | LogResult]) -> Table:
    """A column for each result, a row for each quantity."""
    columns = [column(result) for result in results]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("")
    for one in columns:
        shown.add_column(Text(f"{one.title}\n{one.about}"))
    for row in rows(columns):
        shown.add_row(row.name, *map(Text, row.cells))
    return shown
