"""`testbed up`, `apply`, `down`."""

from __future__ import annotations

from pathlib import Path

import click

from testbed.cli.topology import FILE


@click.command("up")
@FILE
def up_command(topology_file: Path) -> None:
    """Build the lab of a topology and power on its VMs: all of it, or nothing."""
    from testbed import topology
    from testbed.lab.up import up

    found = topology.load(topology_file)
    brought = up(found)
    if brought.cleaned:
        click.echo("took down what an interrupted command had left of this lab")
    if brought.mended:
        click.echo(f"started the NIC process of {', '.join(brought.mended)} again")
    match brought.outcome:
        case "unchanged" if brought.mended:
            click.echo(f"lab {found.name!r} is up already; nothing else changed")
        case "unchanged":
            click.echo(f"lab {found.name!r} is up already; nothing changed")
        case "revived":
            vms = ", ".join(brought.powered_on)
            click.echo(f"lab {found.name!r} is up; powered on afresh, as they had failed: {vms}")
        case "restarted":
            click.echo(
                f"the supervisor of lab {found.name!r} had ended: started it again;"
                " its VMs were powered on afresh"
            )
        case "built":
            nodes = f"{len(found.hosts)} hosts, {len(found.switches)} physical switches"
            click.echo(
                f"lab {found.name!r} is up: {nodes}, {len(found.vms)} VMs"
                f" ({len(brought.plan.steps)} steps); 'testbed status {found.name}' shows it"
            )


@click.command("apply")
@FILE
def apply_command(topology_file: Path) -> None:
    """Change a running lab to what the file says now; 'testbed plan' shows it first."""
    from testbed import topology
    from testbed.errors import LabError
    from testbed.lab.client import request
    from testbed.lab.directory import LabDirectory
    from testbed.lab.privilege import require_root

    found = topology.load(topology_file)
    require_root(f"apply {topology_file}")
    directory = LabDirectory(found.name)
    if not directory.exists():
        raise LabError(f"there is no lab {found.name!r}; 'testbed up {topology_file}' builds it")
    # Without the lab's lock: the supervisor makes one change at a time, and 'down' may end it.
    answer = request(
        directory,
        {
            "command": "apply",
            "topology_file": str(topology_file.absolute()),
            "topology_text": found.text,
            "traces": dict(found.traces),
        },
    )
    for mark, key in (("-", "undone"), ("~", "altered"), ("+", "done")):
        for line in answer[key]:
            click.echo(f"{mark} {line}")
    for note in answer["notes"]:
        click.echo(f"note: {note}")
    if answer["undone"] or answer["altered"] or answer["done"]:
        return
    if answer["properties"]:
        click.echo("changed what is no kernel object: memory, CPU, profile, services, a VM's host")
    else:
        click.echo(f"lab {found.name!r} is as the file says; nothing changed")


@click.command("down")
@click.argument("lab", metavar="LAB|TOPOLOGY")
def down_command(lab: str) -> None:
    """Take a lab down, in whatever state it is, and restore the machine.

    LAB is its name; a topology file's path serves as well.
    """
    from testbed.lab.down import down

    name = lab
    if "/" in lab or lab.endswith((".yaml", ".yml")):
        from testbed import topology

        name = topology.load(Path(lab)).name
    gone = down(name)
    if not gone:
        click.echo(f"there is no lab {name!r}; nothing to take down")
        return
    click.echo(
        f"lab {name!r} is down: {len(gone.namespaces)} namespaces removed,"
        f" {len(gone.processes) + gone.supervisor} processes ended"
    )
