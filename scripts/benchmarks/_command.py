"""Runs one benchmark of this folder and shows its rows; the shell part is scripts/bench.

A benchmark is a module NAME.py here, with a docstring whose first line says what it measures
and a function `run(runs: int | None) -> list[dict]`. `runs` is the number of paired runs that
was asked for, None for the benchmark's own. A benchmark in parts that can be run alone has them
in `PARTS`: such functions by name. Each row has the keys of ROW_KEYS: `bar` is text
such as ">= 0.99", `peer`, `peer_value`, `ratio`, `bar` and `met` are None where there is none.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

ROW_KEYS = ("name", "value", "unit", "peer", "peer_value", "ratio", "bar", "met", "runs")

Row = dict[str, Any]


def summaries(folder: Path) -> dict[str, str]:
    """The benchmarks of a folder: each one's name and the first line of its docstring."""
    files = sorted(file for file in folder.glob("*.py") if not file.name.startswith("_"))
    return {
        file.stem: (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        for file in files
    }


def load(file: Path) -> ModuleType:
    """Loads a benchmark by its path.

    Raises:
        ValueError: it is not a module.
    """
    spec = importlib.util.spec_from_file_location(f"benchmark_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.append(str(file.parent))  # last: what benchmarks share shadows no other module
    spec.loader.exec_module(module)
    return module


def checked(rows: list[Row]) -> list[Row]:
    """The rows.

    Raises:
        ValueError: one does not have the keys of ROW_KEYS.
    """
    for row in rows:
        if set(row) != set(ROW_KEYS):
            differing = ", ".join(sorted(set(row) ^ set(ROW_KEYS)))
            raise ValueError(f"row {row.get('name')!r} lacks or adds: {differing}")
    return rows


def missed(rows: list[Row]) -> list[str]:
    """The names of the rows whose bar was not met; no rows at all is a miss too."""
    return [str(row["name"]) for row in rows if row["met"] is False] if rows else ["no result"]


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_table(name: str, rows: list[Row]) -> None:
    """Prints the rows as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"bench {name}")
    for key in ROW_KEYS:
        numeric = key in {"value", "peer_value", "ratio", "runs"}
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_text(row[key]) for key in ROW_KEYS))
    console = Console()
    # A file or a pipe has no width of its own, and a cut figure is of no use.
    Console(width=console.width if console.is_terminal else 160).print(table)


def main(arguments: list[str]) -> int:
    """Runs what the arguments say; the exit code: 0, 1 for a missed bar, 2 for a wrong name."""
    known = summaries(Path(__file__).parent)
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Runs a benchmark.")
    parser.add_argument("name", nargs="?", help="the benchmark; without it they are listed")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--runs", type=int, help="paired runs to take the median of")
    parser.add_argument("--only", metavar="PART", help="of a benchmark in parts, this one")
    options = parser.parse_args(arguments)
    if options.name is None:
        for name, summary in known.items():
            print(f"{name:12} {summary}")
        return 0
    if options.name not in known:
        parser.error(f"no benchmark {options.name!r}; there are: {', '.join(known) or 'none'}")
    if options.runs is not None and options.runs < 1:
        parser.error(f"--runs {options.runs} is not a number of runs; give 1 or more")
    module = load(Path(__file__).parent / f"{options.name}.py")
    parts = getattr(module, "PARTS", {})
    if options.only is not None and options.only not in parts:
        parser.error(f"no part {options.only!r}; there are: {', '.join(parts) or 'none'}")
    rows = checked((parts[options.only] if options.only else module.run)(runs=options.runs))
    if options.json:
        print(json.dumps(rows, indent=2, allow_nan=False))
    else:
        show_table(options.name, rows)
    failures = missed(rows)
    if failures:
        print(f"bar missed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
