"""`testbed migrate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from testbed.cli.engine_options import engine_options, engine_request
from testbed.cli.felt import DEFAULT_INTERVAL, FROM, LATE, probe_request

if TYPE_CHECKING:
    from testbed.lab.directory import LabDirectory
    from testbed.report.result import MigrationResult

RESULTS = "testbed-results"


@click.command("migrate")
@click.argument("vms", metavar="VM...", nargs=-1, required=True)
@click.option("--to", required=True, metavar="HOST", help="The host to move it to.")
@click.option("--lab", help="The lab; needed when several are up.")
@engine_options
@click.option(
    "--probe",
    metavar="TIME",
    help=f"How often the guest's own counters are read while it moves, 1ms to 1s, or off; "
    f"{DEFAULT_INTERVAL} if left out. With --probe or --from also for a second before and after.",
)
@FROM
@LATE
@click.option(
    "--trace",
    metavar="MODE",
    help="Lay page tracing over the guest as ESX does, and tell what it cost: stop-based (before "
    "vSphere 7) or loose, with /4KiB, /2MiB or /1GiB. If left out, no vCPU is stopped for it.",
)
@click.option("--verify", is_flag=True, help="Compare both memories page by page before resuming.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(RESULTS),
    show_default=True,
    help="Where the result (JSON) and its page (HTML) are written.",
)
@click.option("--no-results", is_flag=True, help="Write no files.")
def migrate_command(
    vms: tuple[str, ...],
    to: str,
    lab: str | None,
    probe: str | None,
    client: str | None,
    late: str | None,
    trace: str | None,
    verify: bool,
    results: Path,
    no_results: bool,
    **engine: Any,
) -> None:
    """Migrate VMs to another host, and tell what was achieved.

    Several move side by side, as many as the hosts take. A run with --verify reports no stun, as
    the guest is held while its memory is compared.
    Exit code 1: a migration failed, or pages differ.
    """
    from testbed.cli.many import carry_out
    from testbed.errors import InputError
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root
    from testbed.report.files import make_directory

    felt = probe_request(probe, client, late)
    mode = _trace_mode(trace)
    if len(set(vms)) < len(vms):
        raise InputError(f"migrate {' '.join(vms)}: a VM is named twice; name each once")
    require_root(f"migrate {' '.join(vms)} --to {to}")
    directory, _ = running_lab(lab)
    if not no_results:
        make_directory(results)
    asked = {
        **engine_request(**engine),
        "verify": verify,
        "probe": felt,
        "trace": mode,
        "command_line": " ".join(["testbed", *sys.argv[1:]]),
    }
    if len(vms) > 1:
        moves = [[vm, to] for vm in vms]
        done = carry_out(
            directory,
            {"command": "migrate-all", "moves": moves, **asked},
            None if no_results else results,
        )
        if not done.succeeded:
            sys.exit(130 if done.cancelled else 1)
        return
    _migrate_one(directory, vms[0], to, asked, None if no_results else results)


def _migrate_one(
    directory: LabDirectory, vm: str, to: str, asked: dict[str, Any], results: Path | None
) -> None:
    from testbed.cli.many import update_of
    from testbed.lab.client import request
    from testbed.report.figures import succeeded
    from testbed.report.progress import progress
    from testbed.report.store import from_json

    interrupted: list[bool] = []

    def interrupt() -> None:
        interrupted.append(True)
        click.echo("cancelling; Ctrl-C again stops waiting for it", err=True)

    with progress(sys.stderr) as show:

        def heed(event: dict[str, Any]) -> None:
            if event["event"] == "waiting":
                click.echo("waiting: another change of this lab is under way", err=True)
            elif event["event"] == "queued":
                click.echo(f"waiting: {event['cause']}", err=True)
            elif event["event"] == "progress":
                show(update_of(event))

        answer = request(
            directory,
            {"command": "migrate", "vm": vm, "to": to, **asked},
            on_event=heed,
            on_interrupt=interrupt,
        )
    result = from_json(answer, f"lab {directory.name}")
    _show(result)
    if results is not None:
        _write(result, results)
    if result.failure is not None and interrupted:
        sys.exit(130)
    if not succeeded(result):
        sys.exit(1)


def _trace_mode(text: str | None) -> dict[str, str] | None:
    """`--trace` as the supervisor takes it.

    Raises:
        InputError: there is no such mode.
    """
    from dataclasses import asdict

    from testbed.errors import InputError
    from testbed.guest.trace import parse_mode

    try:
        return None if text is None else asdict(parse_mode(text))
    except ValueError as error:
        raise InputError(f"--trace: {error}") from error


def _show(result: MigrationResult) -> None:
    from rich.console import Console

    from testbed.report.table import render

    Console().print(render(result))


def _write(result: MigrationResult, directory: Path) -> None:
    from testbed.report import page, store

    stored = store.write(result, directory)
    html = stored.with_suffix(".html")
    page.write_page(result, html)
    click.echo(f"result: {stored}\npage:   {html}")
