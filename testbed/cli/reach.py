"""`testbed vmkping`, `traceroute`, `nc`: does a host reach an address, a path, a port?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from testbed.cli.measure import LAB
from testbed.cli.stopping import stopped_by_signals

if TYPE_CHECKING:
    from testbed.measure.endpoint import Endpoint
    from testbed.measure.ping import MessageTooLongError, PingTest, Reply
    from testbed.measure.traceroute import Hop, Probe
    from testbed.plan.plan import Plan

VMK = click.option("-I", "--interface", "vmk", metavar="VMK", help="Send from this adapter: vmk1.")


def duration_ns(text: str, option: str) -> int:
    """`2s` or `200ms`; a bare number is seconds, as ESXi's tools take it."""
    from testbed.errors import InputError
    from testbed.units import parse_duration_ns

    try:
        return parse_duration_ns(f"{text}s" if text.replace(".", "", 1).isdigit() else text)
    except ValueError as error:
        raise InputError(f"{option}: {error}") from error


def _ends(
    lab: str | None, node: str, way: tuple[str | None, str | None], to: str, command: str
) -> tuple[Plan, Endpoint, Endpoint]:
    """The plan and both ends; `way` is the vmk and the TCP/IP stack asked for."""
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root
    from testbed.lab.tool_ends import ends

    require_root(command)
    _, journal = running_lab(lab)
    vmk, netstack = way
    return journal.plan, *ends(journal, node, vmk, to, netstack)


@click.command("vmkping")
@click.argument("host")
@click.argument("destination", metavar="ADDRESS|NODE/ADAPTER")
@VMK
@click.option("-d", "--dont-fragment", is_flag=True, help="Set Don't Fragment: tests the MTU.")
@click.option("-s", "--size", default=56, show_default=True, help="Payload in bytes.")
@click.option("-c", "--count", default=3, show_default=True)
@click.option("-i", "--interval", default="1s", show_default=True, metavar="TIME")
@click.option("-W", "--timeout", default="1s", show_default=True, metavar="TIME")
@click.option("-S", "--netstack", metavar="NAME", help="Send from this TCP/IP stack: vmotion.")
@click.option("--find-mtu", is_flag=True, help="Search for the largest packet that passes.")
@LAB
def vmkping_command(
    host: str,
    destination: str,
    vmk: str | None,
    dont_fragment: bool,
    size: int,
    count: int,
    interval: str,
    timeout: str,
    netstack: str | None,
    find_mtu: bool,
    lab: str | None,
) -> None:
    """Ping from HOST as ESXi's vmkping does: testbed vmkping esx01 esx02/vmk1 -d -s 8972.

    8972 bytes fill an MTU of 9000 over IPv4 (28 bytes of headers), 8952 over IPv6. Without -I the
    host's routing chooses the adapter. Exit code 1 if an echo was lost.
    """
    from testbed.errors import MeasurementError
    from testbed.measure.ping import MessageTooLongError, PingTest, echo

    test = PingTest(
        count=count,
        interval_ns=duration_ns(interval, "--interval"),
        payload_bytes=size,
        dont_fragment=dont_fragment,
        timeout_ns=duration_ns(timeout, "--timeout"),
    )
    called = f"vmkping {host} {destination}"
    plan, ours, theirs = _ends(lab, host, (vmk, netstack), destination, called)
    address = theirs.address
    click.echo(f"PING {destination} ({address}): {size} data bytes")
    round_trips: dict[int, int] = {}

    def show(reply: Reply) -> None:
        ttl = f" ttl={reply.ttl}" if reply.ttl is not None else ""
        click.echo(
            f"{reply.message_bytes} bytes from {address}: icmp_seq={reply.number}{ttl}"
            f" time={reply.rtt_ns / 1e6:.3f} ms" + (" (DUP!)" * (reply.number in round_trips))
        )
        round_trips.setdefault(reply.number, reply.rtt_ns)

    def search() -> None:
        from testbed.measure.path_mtu import find, payload_of

        most = max(size, payload_of(_adapter(plan, host, ours)[1] or 0, ours.ip_version))
        click.echo(f"the largest packet that passes unfragmented: {find(ours, theirs, most)} bytes")

    try:
        with stopped_by_signals() as stop:
            echoes = echo(ours, theirs, test, stop, on_reply=show)
    except MessageTooLongError as error:
        if find_mtu:
            search()
        raise MeasurementError(
            f"sendto() failed (Message too long): {_why(plan, host, ours, error)}"
        ) from error
    _statistics(address, len(echoes.sent_ns), list(round_trips.values()))
    for cause, times in echoes.errors.items():
        click.echo(f"{cause} ({times} times)", err=True)
    if find_mtu:
        search()
    elif dont_fragment and not round_trips:
        _probe_small(ours, theirs, test)
    if len(round_trips) < len(echoes.sent_ns):
        sys.exit(1)


def _adapter(plan: Plan, node: str, ours: Endpoint) -> tuple[str, int | None]:
    """The adapter that echoes leave by, and its MTU."""
    from pathlib import Path

    from testbed.lab.tool_ends import device_of, mtu_of

    device = ours.device or device_of(plan, node, ours.address) or "the adapter"
    return device, mtu_of(plan, Path(ours.netns_path).name, device)


def _why(plan: Plan, node: str, ours: Endpoint, error: MessageTooLongError) -> str:
    device, own = _adapter(plan, node, ours)
    if error.mtu and own is not None and error.mtu < own:
        who = f"the router {error.reported_by}" if error.reported_by else "a router on the way"
        return f"{who} passes {error.mtu} bytes, though {device} of {node} has MTU {own}; raise it"
    return (
        f"the MTU of {device} of {node} is {own or error.mtu}; send fewer bytes, or raise the MTU"
        " of the adapter, its virtual switch and every physical switch on the way"
    )


def _probe_small(ours: Endpoint, theirs: Endpoint, test: PingTest) -> None:
    """Large echoes were all lost: is it their size?"""
    from dataclasses import replace

    from testbed.measure.ping import PingTest, echo

    least = PingTest(count=1, payload_bytes=56, dont_fragment=True)
    if test.payload_bytes <= least.payload_bytes:
        return
    if echo(ours, theirs, replace(least, timeout_ns=test.timeout_ns)).arrivals:
        click.echo(
            f"echoes of {least.payload_bytes} bytes pass, those of {test.payload_bytes} are lost:"
            " a hop on the way has a smaller MTU and says nothing; --find-mtu searches for it",
            err=True,
        )


def _statistics(address: str, sent: int, round_trips: list[int]) -> None:
    lost = 100 * (sent - len(round_trips)) / sent
    click.echo(
        f"\n--- {address} ping statistics ---\n{sent} packets transmitted,"
        f" {len(round_trips)} packets received, {lost:.3g}% packet loss"
    )
    if round_trips:
        least, most = min(round_trips) / 1e6, max(round_trips) / 1e6
        mean = sum(round_trips) / len(round_trips) / 1e6
        click.echo(f"round-trip min/avg/max = {least:.3f}/{mean:.3f}/{most:.3f} ms")


@click.command("traceroute")
@click.argument("host")
@click.argument("destination", metavar="ADDRESS|NODE/ADAPTER")
@VMK
@click.option("-m", "--max-hops", default=30, show_default=True)
@click.option("-q", "--probes", default=3, show_default=True, help="Datagrams for each hop.")
@click.option("-w", "--wait", default="2s", show_default=True, metavar="TIME")
@LAB
def traceroute_command(
    host: str,
    destination: str,
    vmk: str | None,
    max_hops: int,
    probes: int,
    wait: str,
    lab: str | None,
) -> None:
    """Show the routers between HOST and an address, by their names in the lab.

    Exit code 1 if the destination wasn't reached.
    """
    from testbed.lab.tool_ends import node_of_address
    from testbed.measure.traceroute import PAYLOAD, TraceTest, trace

    test = TraceTest(max_hops, probes, duration_ns(wait, "--wait"))
    plan, ours, theirs = _ends(
        lab, host, (vmk, None), destination, f"traceroute {host} {destination}"
    )
    names = node_of_address(plan)
    headers = 28 if theirs.ip_version == 4 else 48
    click.echo(
        f"traceroute to {destination} ({theirs.address}) from {ours.address},"
        f" {max_hops} hops max, {len(PAYLOAD) + headers} byte packets"
    )
    hops = trace(ours, theirs, test, on_hop=lambda hop: click.echo(_hop_line(hop, names)))
    if not any(probe.arrived for probe in hops[-1].probes):
        sys.exit(1)


def _hop_line(hop: Hop, names: dict[str, str]) -> str:
    """As traceroute writes it: an address once, then a time for each probe."""
    words: list[str] = []
    shown: str | None = None
    for probe in hop.probes:
        words.append(_probe_words(probe, names, new=probe.address != shown))
        shown = probe.address or shown
    return f"{hop.ttl:2}  {'  '.join(words)}"


def _probe_words(probe: Probe, names: dict[str, str], *, new: bool) -> str:
    if probe.rtt_ns is None:
        return probe.mark or "*"
    who = f"{names.get(probe.address or '', probe.address)} ({probe.address})  " if new else ""
    return f"{who}{probe.rtt_ns / 1e6:.3f} ms" + (f" {probe.mark}" if probe.mark else "")


@click.command("nc")
@click.argument("host")
@click.argument("address_and_port", nargs=-1, required=True, metavar="[ADDRESS|NODE/ADAPTER] PORT")
@click.option("-z", "--scan", is_flag=True, help="Only connect; send nothing.")
@click.option("-l", "--listen", "listens", is_flag=True, help="Listen for one connection.")
@click.option("-s", "--source", "vmk", metavar="VMK", help="Connect from this adapter.")
@click.option("-w", "--wait", metavar="TIME", help="Give up after this long without a sign.")
@LAB
def nc_command(
    host: str,
    address_and_port: tuple[str, ...],
    scan: bool,
    listens: bool,
    vmk: str | None,
    wait: str | None,
    lab: str | None,
) -> None:
    """Try a TCP port from HOST: testbed nc esx01 192.168.20.12 8000 -z.

    Without -z standard input is sent and what comes is written to standard output. With -l HOST
    listens, on one address or all. vMotion listens on port 8000 while it migrates.
    """
    from testbed.errors import InputError

    *before, last = address_and_port
    if len(before) > 1 or not last.isdigit() or not 0 < int(last) < 65536:
        raise InputError(
            f"nc {host} {' '.join(address_and_port)}: give an address and a port from 1 to 65535"
        )
    port = int(last)
    wait_ns = None if wait is None else duration_ns(wait, "--wait")
    if listens:
        _listen(lab, host, before[0] if before else None, port, wait_ns)
        return
    if not before:
        raise InputError(f"nc {host} {port}: connect to which address? or give -l to listen")
    from testbed.measure.netcat import connect, exchange

    called = f"nc {host} {before[0]} {port}"
    _, ours, theirs = _ends(lab, host, (vmk, None), before[0], called)
    with connect(ours, theirs.address, port, wait_ns) as connection:
        click.echo(f"Connection to {theirs.address} {port} port [tcp/*] succeeded!", err=not scan)
        if not scan:
            exchange(connection, sys.stdin.fileno(), sys.stdout.fileno(), wait_ns)


def _listen(
    lab: str | None, node: str, address: str | None, port: int, wait_ns: int | None
) -> None:
    from testbed.kernel import netns
    from testbed.lab.enter import netns_of, running_lab
    from testbed.lab.privilege import require_root
    from testbed.lab.tool_ends import destinations
    from testbed.measure.netcat import accept, exchange, listen

    require_root(f"nc {node} -l {port}")
    _, journal = running_lab(lab)
    here = netns.path_of(netns_of(journal, node))
    own = destinations(journal.plan, address)[0][0] if address else None
    with listen(here, own, port) as listening:
        click.echo(f"Listening on {own or 'any address'} {port}", err=True)
        connection, peer, peer_port = accept(listening, wait_ns)
    with connection:
        click.echo(f"Connection from {peer} {peer_port} received!", err=True)
        exchange(connection, sys.stdin.fileno(), sys.stdout.fileno(), wait_ns)
