"""`testbed log`: what a lab's host tells of its migrations, and what logs of real hosts tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from testbed.cli.measure import LAB

if TYPE_CHECKING:
    from rich.table import Table

    from testbed.report.observed import LogResult


@click.command("log")
@click.argument("host", required=False)
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on as the log grows.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Of what there is, the last lines.")
@LAB
@click.option(
    "--parse",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Read a log of a real host instead (vmkernel.log, hostd.log; also .gz). Give it again for "
    "the other host's.",
)
@click.option("--json", "as_json", is_flag=True, help="With --parse: print JSON.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --parse: store each migration as a result, for 'testbed report'.",
)
def log_command(
    host: str | None,
    follows: bool,
    lines: int | None,
    lab: str | None,
    logs: tuple[Path, ...],
    as_json: bool,
    results: Path | None,
) -> None:
    """Show the log of HOST as its vmkernel writes it, or read logs of real hosts.

    Lines of the module Testbed tell what ESXi keeps to itself.
    """
    from testbed.errors import InputError

    if (host is None) == (not logs):
        raise InputError("log: give a host of a lab, or --parse FILE")
    if logs and (follows or lab is not None or lines is not None):
        raise InputError("log --parse: reads the files as they are; leave -f, -n and --lab out")
    if host is not None and (as_json or results is not None):
        raise InputError("log HOST: shows the log as it is; --json and --results are for --parse")
    if host is not None:
        _show(host, lab, lines, follows=follows)
    else:
        _parse(logs, results, as_json=as_json)


def _show(host: str, lab: str | None, lines: int | None, *, follows: bool) -> None:
    from testbed.errors import InputError
    from testbed.lab import host_log
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root
    from testbed.plan.steps import Netns

    require_root(f"log {host}")
    directory, journal = running_lab(lab)
    steps = [step for step in journal.plan.steps if isinstance(step, Netns)]
    hosts = [step.node for step in steps if step.role == "host"]
    if host not in hosts:
        raise InputError(f"lab {directory.name!r} has no host {host!r}; it has: {', '.join(hosts)}")
    path = host_log.log_file(directory, host)
    if not follows:
        for line in host_log.read(path, lines):
            click.echo(line)
        return
    for line in host_log.follow(path, lambda: not directory.exists(), lines):
        click.echo(line)


def _parse(logs: tuple[Path, ...], results: Path | None, *, as_json: bool) -> None:
    from dataclasses import asdict
    from datetime import UTC, datetime

    from testbed import __version__
    from testbed.errors import InputError
    from testbed.report import store
    from testbed.report.observed import LOG_SCHEMA_VERSION, LogResult
    from testbed.report.vmkernel_parse import read_logs

    found = [
        LogResult(
            schema_version=LOG_SCHEMA_VERSION,
            kind="esxi-log",
            testbed_version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=" ".join(["testbed", *sys.argv[1:]]),
            logs=one.logs,
            lines=one.lines,
            observed=one.observed,
        )
        for one in read_logs(logs)
    ]
    if not found:
        names = ", ".join(map(str, logs))
        raise InputError(f"{names}: nothing of a vMotion in it; give a host's vmkernel.log")
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        _print(found)
    if results is not None:
        for one in found:
            click.echo(f"result: {store.write(one, results)}", err=as_json)


def _print(found: list[LogResult]) -> None:
    from rich.console import Console

    from testbed.report.table import side_by_side

    console = Console()
    # A pipe or a file has no width of its own.
    console = Console(width=console.width if console.is_terminal else 160)
    console.print(side_by_side(found) if len(found) == 1 else _list(found))


def _list(found: list[LogResult]) -> Table:
    """One migration a line."""
    from rich.table import Table
    from rich.text import Text

    from testbed.report.comparison import rate_text
    from testbed.units import format_duration

    table = Table("Migration", "began", "outcome", "pre-copy", "all", "pages left", "stun")
    for one in found:
        seen = one.observed
        rates = seen.precopy_bytes_per_s, seen.transmit_bytes_per_s
        cells = (
            str(seen.migration_id),
            seen.began or "-",
            seen.outcome if seen.failure is None else f"failed: {seen.failure.cause}",
            *("-" if rate is None else rate_text(rate) for rate in rates),
            "-" if seen.pages_left is None else f"{seen.pages_left:,}",
            "-" if seen.stun_ns is None else format_duration(seen.stun_ns),
        )
        table.add_row(*map(Text, cells))
    return table
