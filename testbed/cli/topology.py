"""`testbed validate`, `plan`, `schema`: no root, nothing touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from testbed.plan.difference import Difference
    from testbed.topology.model import Topology

FILE = click.argument("topology_file", metavar="TOPOLOGY", type=click.Path(path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("validate")
@FILE
def validate_command(topology_file: Path) -> None:
    """Check a topology file as a whole; every mistake is told, with its line and remedy."""
    from testbed import topology

    found = topology.load(topology_file)
    click.echo(
        f"{topology_file}: lab {found.name!r} is valid: {len(found.hosts)} hosts,"
        f" {len(found.vms)} VMs, {len(found.switches)} physical switches"
    )


@click.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of the topology file, for editors."""
    from testbed import topology

    click.echo(json.dumps(topology.json_schema(), indent=2))


@click.command("plan")
@FILE
@AS_JSON
@click.option("--fresh", is_flag=True, help="Show the whole plan even if the lab runs.")
def plan_command(topology_file: Path, as_json: bool, fresh: bool) -> None:
    """Show what 'up' would do; for a lab that runs, what 'apply' would change."""
    from testbed import topology
    from testbed.lab.planning import plan_here
    from testbed.plan import plan as plans
    from testbed.plan.text import describe

    found = topology.load(topology_file)
    change = None if fresh else _against_running(found)
    if change is not None:
        _show_difference(change, as_json)
        return
    plan = plan_here(found)
    if as_json:
        click.echo(json.dumps(plans.to_json(plan), indent=2))
        return
    for step in plan.steps:
        click.echo(f"+ {describe(step)}")
    for line in _behaviour(found):
        click.echo(line)
    counts = ", ".join(f"{count} {kind}" for kind, count in plan.counts().items())
    click.echo(f"{len(plan.steps)} steps: {counts}")


def _behaviour(found: Topology) -> list[str]:
    """How the hosts' vMotion behaves, those that are alike together."""
    alike: dict[str, list[str]] = {}
    for host in found.hosts:
        cpu = f", {host.cores} cores of {host.mhz:g} MHz" if host.profile.charges_cpu else ""
        alike.setdefault(f"profile {host.profile.name}{cpu}", []).append(host.name)
    return [f"{what}: {', '.join(hosts)}" for what, hosts in alike.items()]


def _against_running(found: Topology) -> Difference | None:
    """The difference to the running lab; None if there is none, or we may not see it."""
    from testbed.lab.change import preview
    from testbed.lab.directory import LabDirectory
    from testbed.lab.journal import Journal

    directory = LabDirectory(found.name)
    try:
        if not directory.exists():
            return None
        journal = Journal.read(directory.journal)
    except PermissionError:
        click.echo("(root is needed to compare with the running lab)", err=True)
        return None
    return preview(journal.plan, journal.placement, found)


def _show_difference(change: Difference, as_json: bool) -> None:
    from testbed.plan.difference import powered_off
    from testbed.plan.plan import step_to_json
    from testbed.plan.text import describe, describe_altered, describe_undo

    if as_json:
        data = {
            "undo": [step_to_json(step) for step in change.undo],
            "alter": [[step_to_json(old), step_to_json(new)] for old, new in change.alter],
            "do": [step_to_json(step) for step in change.do],
        }
        click.echo(json.dumps(data, indent=2))
        return
    for step in change.undo:
        click.echo(f"- {describe_undo(step)}")
    for _, new in change.alter:
        click.echo(f"~ {describe_altered(new)}")
    for step in change.do:
        click.echo(f"+ {describe(step)}")
    for vm in powered_off(change):
        click.echo(f"note: {vm} is powered off by this and loses its memory")
    if not change:
        click.echo("no kernel object of the running lab would change")
