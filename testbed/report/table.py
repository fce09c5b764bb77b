"""A result in the terminal: a table of its iterations and a summary in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from testbed.report.figures import COLUMNS, iteration_cells, succeeded, summary, verdict

if TYPE_CHECKING:
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
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right")
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
