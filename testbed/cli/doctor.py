"""`testbed doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from testbed.lab.doctor import Diagnosis


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(as_json: bool) -> None:
    """Tell what this machine has, which mechanism each feature will use, what to install.

    As root it tries everything in a namespace that it removes. Exit code 1 if something that a
    lab can't do without is missing.
    """
    from testbed.lab.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(asdict(diagnosis), indent=2))
    else:
        _show(diagnosis)
    if diagnosis.missing:
        sys.exit(1)


def _show(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table

    features = Table("feature", "mechanism here", title=diagnosis.kernel, title_justify="left")
    for feature, mechanism in diagnosis.mechanisms.items():
        features.add_row(feature, mechanism)
    found = Table("what", "here", "detail", "used for", "if it lacks", "to get it")
    for has in diagnosis.capabilities:
        here = {True: "yes", False: "no", None: "needs root"}[has.present]
        if has.present is False and has.name not in diagnosis.missing:
            here = "no (optional)"
        wanted = (has.fallback, has.install) if not has.present else ("", "")
        found.add_row(has.name, here, has.detail, has.used_for, *wanted)
    for column in (*features.columns, *found.columns):
        column.overflow = "fold"
    console = Console()
    # A pipe or a file has no width of its own.
    console = Console(width=console.width if console.is_terminal else 160)
    console.print(features)
    console.print(found)
    if not diagnosis.missing:
        console.print("A lab can be built on this machine.")
    for name in diagnosis.missing:
        console.print(f"[bold red]missing:[/bold red] {name}; without it no lab can be built")
