"""`testbed status`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


@click.command("status")
@click.argument("lab", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(lab: str | None, as_json: bool) -> None:
    """Show the labs of this machine, or one lab's nodes, VMs and links.

    Exit code 1 if the lab is not whole: a VM has failed, or its supervisor has ended.
    """
    from testbed.lab.privilege import require_root
    from testbed.lab.status import lab_status, overview

    require_root(f"status {lab or ''}".rstrip())
    if lab is None:
        labs = overview()
        if as_json:
            click.echo(json.dumps(labs, indent=2))
            return
        for row in labs:
            click.echo(f"{row['lab']}: {row['state']}, {row['topology_file']}")
        if not labs:
            click.echo("no labs")
        if any(row["state"] not in ("up", "changing") for row in labs):
            sys.exit(1)
        return
    status = lab_status(lab)
    if as_json:
        click.echo(json.dumps(status, indent=2))
    else:
        _show(status)
    if status["troubles"]:
        for trouble in status["troubles"]:
            click.echo(f"testbed: {trouble}", err=True)
        sys.exit(1)


def _show(status: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from testbed.units import format_rate, format_size

    console = Console()
    # A pipe or a file has no width of its own.
    console = Console(width=console.width if console.is_terminal else 160)
    console.print(
        f"lab [bold]{status['lab']}[/bold] is {status['state']}, from {status['topology_file']}"
    )
    if closed := status.get("maintenance"):
        console.print(f"in maintenance mode: {', '.join(closed)}")
    vms = Table("VM", "host", "state", "memory", "vCPUs", "workload", "pages written", "resumed")
    for vm in status["vms"]:
        counters = vm["counters"] or {}
        vms.add_row(
            vm["name"],
            vm["host"],
            vm["state"],
            format_size(vm["memory_bytes"]),
            str(vm["vcpus"]),
            vm["workload"],
            f"{counters['pages_written']:,}" if counters else "-",
            str(counters["resumes"] - 1) if counters else "-",
        )
    for column in vms.columns:
        column.overflow = "fold"
    console.print(vms)
    links = Table("node", "link", "MTU", "rate", "received", "sent", "dropped", "state")
    for link in status["links"]:
        links.add_row(
            link["node"],
            link["name"],
            str(link["mtu"]),
            format_rate(link["rate_bps"]) if link["rate_bps"] else "-",
            format_size(link["rx_bytes"]),
            format_size(link["tx_bytes"]),
            str(link["rx_dropped"] + link["tx_dropped"]),
            "up" if link["running"] else "down",
        )
    for column in links.columns:
        column.overflow = "fold"
    console.print(links)
    _show_uplinks(console, status)


def _show_uplinks(console: Console, status: dict[str, Any]) -> None:
    """What each vmnic hears from its switch by LLDP, and which ports are pinned to it."""
    from rich.table import Table

    from testbed.units import format_duration

    nodes = {node["netns"]: node["name"] for node in status["nodes"]}
    uplinks = Table("host", "uplink", "physical switch", "its port", "MTU", "VLANs", "ports on it")
    for heard in status["neighbours"]:
        ports = [
            team["port"]
            for team in status.get("teams", [])
            if (nodes.get(team["netns"]), team["uplink"]) == (heard["host"], heard["nic"])
        ]
        uplinks.add_row(
            heard["host"],
            heard["nic"],
            heard["switch"] or "nothing heard",
            heard["port"] or "-",
            str(heard["mtu"] or "-"),
            ", ".join(map(str, heard["vlans"])) or "all",
            ", ".join(ports) or "-",
        )
    for column in uplinks.columns:
        column.overflow = "fold"
    console.print(uplinks)
    for event in status.get("team_events", []):
        moved = len(event["moved"])
        console.print(
            f"{nodes.get(event['host'], event['host'])}: {event['uplink']}"
            f" {'up' if event['up'] else 'down'}, {moved} port{'s' * (moved != 1)} moved in"
            f" {format_duration(event['took_ns'])}"
        )
