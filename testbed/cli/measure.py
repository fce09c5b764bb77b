"""`testbed iperf`, `ping`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from testbed.lab.directory import LabDirectory
    from testbed.measure.endpoint import Endpoint
    from testbed.report.result import WireReport

LAB = click.option("--lab", help="The lab; needed when several are up.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _ends(
    lab: str | None, source: str, destination: str, command: str
) -> tuple[LabDirectory, tuple[Endpoint, Endpoint]]:
    """The lab, and both adapters of it, with addresses of one IP version."""
    from testbed.kernel import netns
    from testbed.lab.adapters import adapter, common_addresses
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root
    from testbed.measure.endpoint import Endpoint

    require_root(f"{command} {source} {destination}")
    directory, journal = running_lab(lab)
    a, b = adapter(journal.plan, source), adapter(journal.plan, destination)
    ours, theirs = common_addresses(a, b)
    return directory, (
        # Not bound to the devices: with them Linux takes any address for a neighbour's, route
        # or none. The address's own routing table leads to its adapter.
        Endpoint(netns.path_of(a.netns), ours),
        Endpoint(netns.path_of(b.netns), theirs),
    )


def _refuse_troubled(wires: tuple[WireReport, ...]) -> None:
    """A figure that a delay line has spoilt is none: it is shown, and the command fails.

    Raises:
        MeasurementError: a wire was not the link that was asked for.
    """
    from testbed.errors import MeasurementError

    troubles = [f"{wire.link}: {wire.trouble}" for wire in wires if wire.trouble]
    if troubles:
        raise MeasurementError(
            f"the result is not valid: {'; '.join(troubles)}; run it again on a quieter machine"
        )


@click.command("iperf")
@click.argument("source")
@click.argument("destination")
@LAB
@click.option("--time", "duration_s", default=5, show_default=True, help="Seconds.")
@click.option("--streams", default=1, show_default=True, help="Parallel TCP streams.")
@click.option("--reverse", is_flag=True, help="The destination sends.")
@click.option("--congestion", default="cubic", show_default=True, help="Congestion control.")
@click.option("--port", default=5201, show_default=True, help="TCP port at DESTINATION.")
@AS_JSON
def iperf_command(
    source: str,
    destination: str,
    lab: str | None,
    duration_s: int,
    streams: int,
    reverse: bool,
    congestion: str,
    port: int,
    as_json: bool,
) -> None:
    """Measure TCP throughput from SOURCE to DESTINATION, each NODE/ADAPTER: esx01/vmk1.

    A measurement that was cut short or failed has no result: exit code 1. Several at once to one
    node need a --port each.
    """
    from testbed.lab.wires import over_wires
    from testbed.measure.iperf import measure
    from testbed.measure.iperf_result import IperfTest
    from testbed.units import format_rate, format_size

    directory, ends = _ends(lab, source, destination, "iperf")
    test = IperfTest(
        duration_s=duration_s,
        streams=streams,
        reverse=reverse,
        congestion_control=congestion,
        port=port,
    )
    result, wires = over_wires(directory, lambda: measure(*ends, test))
    if as_json:
        click.echo(json.dumps(asdict(result) | {"wires": list(map(asdict, wires))}, indent=2))
        _refuse_troubled(wires)
        return
    click.echo(
        f"{source} -> {destination}{' (reverse)' if reverse else ''}:"
        f" {format_rate(result.received_bps)} received, {format_size(result.received_bytes)}"
        f" in {result.duration_ns / 1e9:.2f} s, {result.retransmits} retransmits,"
        f" {result.streams} x TCP {result.congestion_control}, MSS {result.mss_bytes}"
    )
    _refuse_troubled(wires)


@click.command("ping")
@click.argument("source")
@click.argument("destination")
@LAB
@click.option("-c", "--count", default=10, show_default=True)
@click.option("-i", "--interval", default="100ms", show_default=True, metavar="TIME")
@click.option("-s", "--size", default=56, show_default=True, help="Payload in bytes.")
@click.option("-d", "--dont-fragment", is_flag=True, help="Find an MTU that is too small.")
@AS_JSON
def ping_command(
    source: str,
    destination: str,
    lab: str | None,
    count: int,
    interval: str,
    size: int,
    dont_fragment: bool,
    as_json: bool,
) -> None:
    """Measure round trips from SOURCE to DESTINATION, each NODE/ADAPTER: esx01/vmk1.

    Exit code 1 if an echo was lost.
    """
    import sys

    from testbed.errors import InputError
    from testbed.lab.wires import over_wires
    from testbed.measure.ping import PingTest, measure
    from testbed.units import format_duration, parse_duration_ns

    try:
        interval_ns = parse_duration_ns(interval)
    except ValueError as error:
        raise InputError(f"--interval: {error}") from error
    directory, ends = _ends(lab, source, destination, "ping")
    test = PingTest(
        count=count, interval_ns=interval_ns, payload_bytes=size, dont_fragment=dont_fragment
    )
    result, wires = over_wires(directory, lambda: measure(*ends, test))
    if as_json:
        click.echo(json.dumps(asdict(result) | {"wires": list(map(asdict, wires))}, indent=2))
    else:
        click.echo(
            f"{source} -> {destination}: {result.sent} sent, {result.received} received,"
            f" {result.late} late, {result.lost} lost; round trip"
            f" {format_duration(result.minimum_ns)} least, {format_duration(result.median_ns)}"
            f" median, {format_duration(result.p99_ns)} p99,"
            f" {format_duration(result.maximum_ns)} most"
        )
    _refuse_troubled(wires)
    if result.lost:
        sys.exit(1)
