"""Ports of a host's virtual switches as ESXi's tools print them: net-stats, esxtop's network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from testbed.report.port_rates import PortRates, Rates

UPLINK, VMKERNEL, VM = 4, 3, 5
"""net-stats' Type."""

NET_STATS_HEADER = "PortNum          Type SubType SwitchName       MACAddress         ClientName"
HEADINGS = (
    "PORT-ID", "USED-BY", "TEAM-PNIC", "DNAME", "PKTTX/s", "MbTX/s", "PSZTX",
    "PKTRX/s", "MbRX/s", "PSZRX", "%DRPTX", "%DRPRX",
)  # fmt: skip
_LEFT = 4  # the first columns are names
_WIDTHS = (10, 16, 9, 16, 10, 10, 6, 10, 10, 6, 6, 6)


@dataclass(frozen=True, slots=True)
class Port:
    """Who a port is: its number, `kind` (Type of net-stats), and what is plugged into it."""

    number: int
    kind: int
    subtype: int
    switch: str
    mac: str
    client: str


@dataclass(frozen=True, slots=True)
class PortRow:
    """A port's line of the live view; `uplink` is the vmnic that it sends by, "" if unknown."""

    port: Port
    rates: PortRates
    uplink: str = ""


def net_stats_list(ports: Iterable[Port]) -> str:
    """The ports as `net-stats -l` lists them."""
    lines = [NET_STATS_HEADER]
    lines += [
        f"{port.number:<16} {port.kind:>4} {port.subtype:>7} {port.switch:<16} {port.mac:<18}"
        f" {port.client}"
        for port in ports
    ]
    return "\n".join(lines)


def cells(row: PortRow) -> list[tuple[str, ...]]:
    """A port's line in esxtop's columns, and below it one for each traffic class."""
    port, rates = row.port, row.rates
    uplink = "-" if port.kind == UPLINK else row.uplink or "?"
    names = (str(port.number), port.client, uplink, port.switch)
    drops = (f"{rates.tx.dropped_percent:.2f}", f"{rates.rx.dropped_percent:.2f}")
    found: list[tuple[str, ...]] = [(*names, *_figures(rates.tx), *_figures(rates.rx), *drops)]
    for name, its in rates.classes.items():
        sent = (*_figures(its), "", "", "", f"{its.dropped_percent:.2f}", "")
        found.append(("", f"  {name}", "", "", *sent))
    return found


def _figures(rates: Rates) -> tuple[str, str, str]:
    return (
        f"{rates.packets_per_s:.2f}",
        f"{rates.bits_per_s / 1e6:.2f}",
        f"{rates.packet_bytes:.0f}",
    )


def text(host: str, rows: Sequence[PortRow]) -> str:
    """A host's table in plain text, for batch mode."""
    lines = [host, _line(HEADINGS)]
    lines += [_line(line) for row in rows for line in cells(row)]
    return "\n".join(lines)


def _line(values: Sequence[str]) -> str:
    aligned = (
        value.ljust(width) if place < _LEFT else value.rjust(width)
        for place, (value, width) in enumerate(zip(values, _WIDTHS, strict=True))
    )
    return " ".join(aligned).rstrip()


def table(hosts: Sequence[tuple[str, Sequence[PortRow]]], head: str) -> Group:
    """All hosts' tables for a terminal, below a line of text."""
    parts: list[Table | Text] = [Text(head)]
    for host, rows in hosts:
        drawn = Table(title=host, title_justify="left", box=None, pad_edge=False)
        for place, heading in enumerate(HEADINGS):
            drawn.add_column(heading, justify="left" if place < _LEFT else "right", no_wrap=True)
        for row in rows:
            for line in cells(row):
                drawn.add_row(*(Text(value) for value in line), style="" if line[0] else "dim")
        parts.append(drawn)
    return Group(*parts)
