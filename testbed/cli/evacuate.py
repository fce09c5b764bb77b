"""`testbed evacuate`: maintenance mode of a host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from testbed.cli.engine_options import engine_options, engine_request
from testbed.cli.migrate import RESULTS


@click.command("evacuate")
@click.argument("host")
@click.option("--exit", "leaving", is_flag=True, help="End it: the host takes VMs again.")
@click.option("--power-off", is_flag=True, help="Then cut the host's links, as if powered off.")
@click.option("--lab", help="The lab; needed when several are up.")
@engine_options
@click.option("--verify", is_flag=True, help="Compare both memories page by page before resuming.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(RESULTS),
    show_default=True,
    help="Where the results are written.",
)
@click.option("--no-results", is_flag=True, help="Write no files.")
@click.pass_context
def evacuate_command(
    context: click.Context,
    /,
    host: str,
    leaving: bool,
    power_off: bool,
    lab: str | None,
    verify: bool,
    results: Path,
    no_results: bool,
    **engine: Any,
) -> None:
    """Put HOST into maintenance mode: move every VM to hosts that have room.

    It takes no VMs until --exit. Exit code 1: a VM could not be moved, and the mode was not
    entered.
    """
    from testbed.cli.many import carry_out
    from testbed.errors import InputError
    from testbed.lab.client import request
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root
    from testbed.report.files import make_directory

    if leaving and any(
        context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        for name in context.params.keys() - {"host", "leaving", "lab"}
    ):
        raise InputError(
            "--exit: moves no VM, and powers the host on again; give nothing with it but --lab"
        )
    require_root(f"evacuate {host}")
    directory, _ = running_lab(lab)
    if leaving:
        request(directory, {"command": "leave-maintenance", "host": host})
        click.echo(f"{host} takes VMs again")
        return
    if not no_results:
        make_directory(results)
    done = carry_out(
        directory,
        {
            "command": "evacuate",
            "host": host,
            "power_off": power_off,
            **engine_request(**engine),
            "verify": verify,
            "probe": None,
            "command_line": " ".join(["testbed", *sys.argv[1:]]),
        },
        None if no_results else results,
    )
    if not done.answer["entered"]:
        left = ", ".join(done.answer["left"])
        click.echo(f"{host} is not in maintenance mode: {left} remained", err=True)
        sys.exit(130 if done.cancelled else 1)
    off = " and powered off" if power_off else ""
    click.echo(f"{host} is in maintenance mode{off}; 'testbed evacuate {host} --exit' ends it")
    if not done.succeeded:
        sys.exit(1)
