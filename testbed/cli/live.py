"""`testbed net-stats`, `top`: the ports of virtual switches, and what passes them now."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from testbed.cli.measure import LAB
from testbed.cli.reach import duration_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.lab.port_reader import PortReader
    from testbed.lab.switch_ports import SwitchPort
    from testbed.report.port_rates import PortReading
    from testbed.report.port_view import PortRow

LEAST_INTERVAL_NS = 100_000_000


@click.command("net-stats")
@click.argument("host")
@click.option("-l", "--list", "lists", is_flag=True, help="List the ports, as ESXi does.")
@click.option("-A", "--all", "reads", is_flag=True, help="Counters and rates, as JSON.")
@click.option("-i", "--interval", default="1s", show_default=True, metavar="TIME", help="With -A.")
@LAB
def net_stats_command(host: str, lists: bool, reads: bool, interval: str, lab: str | None) -> None:
    """Show the ports of HOST's virtual switches.

    Sent and received are the adapter's: what a VM sends is tx. With -A there are counters, rates
    over the interval, drops, errors, MTU and link state, and an uplink's traffic classes.
    """
    from testbed.errors import InputError
    from testbed.lab.privilege import require_root
    from testbed.report.port_view import net_stats_list

    if lists == reads:
        raise InputError("net-stats: give -l to list the ports, or -A for their counters")
    interval_ns = _interval(interval, "--interval")
    require_root(f"net-stats {host} {'-l' if lists else '-A'}")
    with _Lab(lab, host) as watched:
        if lists:
            click.echo(net_stats_list(port.port for port in watched.ports))
            return
        (now,) = _samples(watched, interval_ns, 1, time.sleep)
        click.echo(json.dumps(now.to_json(), indent=2))


@click.command("top")
@click.argument("lab", required=False)
@click.option("-b", "--batch", is_flag=True, help="Print plain tables, for a file.")
@click.option("-n", "--iterations", type=int, help="End after so many.")
@click.option("-d", "--delay", default="2s", show_default=True, metavar="TIME")
@click.option("--host", help="This host alone.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def top_command(
    lab: str | None,
    batch: bool,
    iterations: int | None,
    delay: str,
    host: str | None,
    as_json: bool,
) -> None:
    """Show what passes every port, uplink and traffic class now, as esxtop's network panel.

    TX is what the adapter sends. TEAM-PNIC is the uplink that a port's frames leave by; the lines
    below an uplink are the traffic classes that have carried something. q ends it.
    """
    from testbed.errors import InputError
    from testbed.lab.privilege import require_root
    from testbed.report.port_view import text

    interval_ns = _interval(delay, "--delay")
    if iterations is not None and iterations < 1:
        raise InputError(f"--iterations {iterations}: give 1 or more")
    require_root(f"top {lab or ''}".rstrip())
    with _Lab(lab, host) as watched:
        if not as_json and not batch and sys.stdout.isatty():
            _draw(watched, interval_ns, iterations)
            return
        for now in _samples(watched, interval_ns, iterations, time.sleep):
            if as_json:
                click.echo(json.dumps(now.to_json()))
                continue
            for name, rows in now.by_host():
                click.echo(text(name, rows) + "\n")


def _interval(given: str, option: str) -> int:
    from testbed.errors import InputError

    interval_ns = duration_ns(given, option)
    if interval_ns < LEAST_INTERVAL_NS:
        raise InputError(f"{option} {given}: give 100ms or more")
    return interval_ns


class _Lab:
    """The ports of a running lab, looked up again whenever it has been changed."""

    reader: PortReader
    ports: list[SwitchPort]

    def __init__(self, lab: str | None, host: str | None) -> None:
        self._lab, self._host = lab, host
        self._written_ns = 0
        self._closing = ExitStack()
        self.look()

    def look(self) -> None:
        """Look whether VMs have moved, or a change was applied."""
        from testbed.lab.enter import running_lab
        from testbed.lab.port_reader import PortReader
        from testbed.lab.switch_ports import switch_ports

        directory, journal = running_lab(self._lab)
        written_ns = directory.journal.stat().st_mtime_ns
        if written_ns != self._written_ns:
            self._closing.close()
            self.ports = switch_ports(journal, self._host)
            self.reader = PortReader(journal.plan, self.ports)
            self._closing.callback(self.reader.close)
            self._lab, self._written_ns = directory.name, written_ns

    @property
    def name(self) -> str:
        """The lab's."""
        return self._lab or ""

    def __enter__(self) -> _Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()


class _Sample:
    """Two readings of each port, and the uplinks that they use now."""

    def __init__(
        self,
        before: dict[SwitchPort, PortReading],
        after: dict[SwitchPort, PortReading],
        uplinks: dict[SwitchPort, str],
    ) -> None:
        self._before, self._after, self._uplinks = before, after, uplinks

    def _ports(self) -> Iterator[SwitchPort]:
        return (port for port in self._after if port in self._before)

    def by_host(self) -> list[tuple[str, list[PortRow]]]:
        """The rows of the live view, without classes that nothing has ever passed."""
        from dataclasses import replace

        from testbed.report.port_rates import port_rates
        from testbed.report.port_view import PortRow

        found: dict[str, list[PortRow]] = {}
        for port in self._ports():
            after = self._after[port]
            used = {name: c for name, c in after.classes.items() if c.packets or c.dropped}
            rates = port_rates(self._before[port], replace(after, classes=used))
            row = PortRow(port.port, rates, self._uplinks.get(port, ""))
            found.setdefault(port.host, []).append(row)
        return list(found.items())

    def to_json(self) -> dict[str, Any]:
        """All that is known, by host and port."""
        from dataclasses import asdict

        from testbed.report.port_rates import port_rates

        hosts: dict[str, list[dict[str, Any]]] = {}
        for port in self._ports():
            reading = self._after[port]
            rates = asdict(port_rates(self._before[port], reading))
            classes = {
                name: {"counters": asdict(counted), "rates": rates["classes"][name]}
                for name, counted in reading.classes.items()
            }
            hosts.setdefault(port.host, []).append(
                {
                    "name": port.port.client,
                    "port_number": port.port.number,
                    "type": port.port.kind,
                    "subtype": port.port.subtype,
                    "switch": port.port.switch,
                    "mac": port.port.mac,
                    "uplink": self._uplinks.get(port),
                    "mtu": reading.mtu,
                    "link_up": reading.link_up,
                    "counters": {"tx": asdict(reading.tx), "rx": asdict(reading.rx)},
                    "rates": {"tx": rates["tx"], "rx": rates["rx"]},
                    "interval_ns": rates["interval_ns"],
                    "classes": classes,
                }
            )
        return {"unix_time_s": time.time(), "hosts": hosts}


def _samples(
    watched: _Lab,
    interval_ns: int,
    iterations: int | None,
    wait: Callable[[float], object],
) -> Iterator[_Sample]:
    """A sample at the end of each interval; `wait` takes seconds and may end it by a result."""
    before, due_ns = watched.reader.read(), time.monotonic_ns()
    done = 0
    while iterations is None or done < iterations:
        due_ns = max(due_ns + interval_ns, time.monotonic_ns())
        if wait((due_ns - time.monotonic_ns()) / 1e9):
            return
        watched.look()
        after = watched.reader.read()
        yield _Sample(before, after, watched.reader.uplinks())
        before, done = after, done + 1


def _draw(watched: _Lab, interval_ns: int, iterations: int | None) -> None:
    """The live view, until q."""
    import os
    import select
    import termios
    import tty

    from rich.live import Live

    from testbed.report.port_view import table

    keyboard = sys.stdin.fileno()

    def wait(seconds: float) -> bool:
        if not sys.stdin.isatty():
            time.sleep(max(0.0, seconds))
            return False
        deadline = time.monotonic() + seconds
        while select.select([keyboard], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if os.read(keyboard, 1) in (b"q", b"Q", b""):
                return True
        return False

    usual = termios.tcgetattr(keyboard) if sys.stdin.isatty() else None
    try:
        if usual is not None:
            tty.setcbreak(keyboard)
        with Live(screen=True, auto_refresh=False) as live:
            for now in _samples(watched, interval_ns, iterations, wait):
                head = f"lab {watched.name}  {time.strftime('%H:%M:%S')}  q ends"
                live.update(table(now.by_host(), head), refresh=True)
    finally:
        if usual is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, usual)
