"""`testbed iochain`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from testbed.kernel.iochain.text import WayRow
    from testbed.lab.port_chain import PortChain

HEADINGS = {"in": "in: from what is plugged in", "out": "out: to what is plugged in"}


@click.command("iochain")
@click.argument("lab")
@click.argument("port", metavar="NODE/PORT")
@click.option("--program", is_flag=True, help="Print the eBPF instructions, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def iochain_command(lab: str, port: str, program: bool, as_json: bool) -> None:
    """Show what a port of a virtual or physical switch does with frames, stage by stage.

    NODE/PORT is a port (esx01/vmnic0, tor-a/tor-b) or the adapter in it (esx01/vmk1, db01/eth0).
    Packets are counted since the chain was put on; a train of TCP segments as its packets.
    """
    from testbed.kernel.iochain.text import list_program
    from testbed.lab.enter import running_lab
    from testbed.lab.port_chain import port_chain
    from testbed.lab.privilege import require_root

    require_root(f"iochain {lab} {port}")
    _, journal = running_lab(lab)
    found = port_chain(journal, port)
    if as_json:
        data = {
            "netns": found.netns,
            "port": found.dev,
            "uplink": found.uplink,
            "directions": [asdict(way) for way in found.ways],
            "rates": list(found.rates),
            "nic": asdict(found.nic) if found.nic else None,
        }
        click.echo(json.dumps(data, indent=2))
        return
    _show(found)
    if program:
        for direction, way in enumerate(found.ways):
            click.echo(f"\n{way.way}:")
            for line in list_program(found.chain, direction):
                click.echo(f"  {line}")


def _show(found: PortChain) -> None:
    from rich.console import Console

    from testbed.units import format_size

    console = Console()
    console = Console(width=console.width if console.is_terminal else 160, highlight=False)
    console.print(f"port [bold]{found.dev}[/bold] in {found.netns}")
    if found.uplink is not None:
        console.print(f"pinned to {found.uplink}")
    for way in found.ways:
        _show_way(console, way)
    for words in found.rates:
        console.print(f"then {words}", markup=False)
    if found.nic is not None:
        states = {"TSO": found.nic.tso, "LRO": found.nic.lro, "checksum": found.nic.checksum}
        offloads = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in states.items())
        waiting = (("tx", found.nic.tx_queue_bytes), ("rx", found.nic.rx_queue_bytes))
        rings = ", ".join(
            f"{way} {'nothing waits' if size is None else format_size(size)}"
            for way, size in waiting
        )
        console.print(f"then the NIC: offloads {offloads}; rings {rings}")


def _show_way(console: Console, way: WayRow) -> None:
    from rich.table import Table

    from testbed.units import format_size

    table = Table("stage", "does", "kernel functions", title_justify="left")
    table.title = HEADINGS[way.way]
    table.add_column("dropped", justify="right")
    for stage in way.stages:
        dropped = f"{stage.drops:,}" + (" (copies)" if stage.filters and stage.drops else "")
        table.add_row(stage.kind, stage.text, ", ".join(stage.functions) or "-", dropped)
    passed = f"{way.packets:,} packets, {format_size(way.bytes)}" if way.counted else "not counted"
    table.add_row("passed", passed, "", "")
    console.print(table)
