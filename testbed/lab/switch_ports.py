"""The ports of a lab's virtual switches: who is plugged in, where, and what the kernel counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed import topology as topologies
from testbed.errors import InputError
from testbed.kernel import chain_ports
from testbed.kernel.observation import observe
from testbed.lab.planning import network_here
from testbed.plan.plan import kernel_steps
from testbed.plan.policies import Chain, Shape
from testbed.plan.steps import Netns, Veth
from testbed.report.port_rates import ClassReading, Direction, PortReading
from testbed.report.port_view import UPLINK, VM, VMKERNEL, Port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.kernel.chain_cells import ChainCounters
    from testbed.kernel.chain_cells import Direction as ChainDirection
    from testbed.kernel.observation import Observation
    from testbed.lab.journal import Journal
    from testbed.plan.network import Network
    from testbed.plan.plan import Plan
    from testbed.plan.ports import LocalPort
    from testbed.topology.model import Host

FIRST_PORTSET = 2
FIRST_LOCAL_PORT = 0x40
"""Port numbers are made as ESXi's look: the switch in the upper byte, uplinks first."""
_VMXNET3 = 9
_FILTERS = frozenset({"leave", "team", "untag", "carry"})
"""Stages that drop a bridge's superfluous copies: nothing is lost by them."""


@dataclass(frozen=True, slots=True)
class SwitchPort:
    """A port of a virtual switch: the bridge port `dev` in the host's namespace.

    `adapter` is the link that is plugged in, as (namespace, device), None for an uplink, whose
    port is the vmnic itself. `uplinks` are the switch's vmnics; `chained`: it has an IOChain.
    """

    host: str
    port: Port
    netns: str
    dev: str
    adapter: tuple[str, str] | None
    uplinks: tuple[str, ...]
    chained: bool


def switch_ports(journal: Journal, host: str | None = None) -> list[SwitchPort]:
    """All ports of a host's virtual switches, or of all hosts', uplinks first.

    Raises:
        InputError: there is no such host.
    """
    topology = topologies.loads(journal.topology_text, journal.topology_file)
    hosts = [one for one in topology.hosts if host in (None, one.name)]
    if not hosts:
        names = ", ".join(one.name for one in topology.hosts)
        raise InputError(f"lab {topology.name!r} has no host {host!r}; it has: {names}")
    network = network_here(topology, journal.placement)
    chained = {(s.netns, s.dev) for s in journal.plan.steps if isinstance(s, Chain)}
    nodes = {s.name: s.node for s in journal.plan.steps if isinstance(s, Netns)}
    return [port for one in hosts for port in _of_host(network, one, chained, nodes)]


def _of_host(
    network: Network, host: Host, chained: set[tuple[str, str]], nodes: dict[str, str]
) -> list[SwitchPort]:
    netns = network.netns(host.name)
    found = []
    for place, switch in enumerate(host.vswitches, FIRST_PORTSET):
        for number, name in enumerate(switch.uplinks, 2):
            mac = next(uplink.mac for uplink in host.uplinks if uplink.name == name)
            _, end = network.uplinks[netns, name]
            port = Port(place << 24 | number, UPLINK, 0, switch.name, mac, name)
            has = (netns, end.name) in chained
            found.append(SwitchPort(host.name, port, netns, end.name, None, switch.uplinks, has))
        for local in network.ports[netns, network.bridge(host.name, switch.name)]:
            where, device = local.adapter
            own = where == netns
            port = Port(
                number=place << 24 | FIRST_LOCAL_PORT + local.number,
                kind=VMKERNEL if own else VM,
                subtype=0 if own else _VMXNET3,
                switch=switch.name,
                mac=local.mac,
                client=device if own else f"{nodes[where]}.{device}",
            )
            has = (netns, local.end.name) in chained
            found.append(_local(host.name, port, local, has))
    return found


def _local(host: str, port: Port, local: LocalPort, chained: bool) -> SwitchPort:
    end = local.end
    return SwitchPort(host, port, end.netns, end.name, local.adapter, local.uplinks, chained)


def read_ports(plan: Plan, ports: Sequence[SwitchPort]) -> dict[SwitchPort, PortReading]:
    """The counters of ports now; those that don't stand (a migration is moving them) left out.

    Raises:
        KernelError: the kernel does not answer.
    """
    where = {port.netns for port in ports}
    steps = [
        step
        for step in kernel_steps(plan.steps)
        if isinstance(step, Shape)
        or (isinstance(step, Veth) and {step.a.netns, step.b.netns} & where)
    ]
    names = {
        (step.netns, step.dev): {one.minor: one.name for one in step.classes}
        for step in steps
        if isinstance(step, Shape)
    }
    seen = observe(steps)
    at_ns = time.monotonic_ns()
    found = {}
    for port in ports:
        here = seen.get(f"link {port.netns}/{port.dev}")
        if here is None or here.link.counters is None:
            continue
        chain = chain_ports.counters(port.netns, port.dev) if port.chained else None
        found[port] = _reading(port, here, chain, names.get((port.netns, port.dev), {}), at_ns)
    return found


def _reading(
    port: SwitchPort,
    seen: Observation,
    chain: ChainCounters | None,
    class_names: dict[int, str],
    at_ns: int,
) -> PortReading:
    counters = seen.link.counters
    assert counters is not None
    queue = seen.qdisc.dropped if seen.qdisc is not None else 0
    incoming = Direction(
        counters.rx_packets, counters.rx_bytes, counters.rx_dropped, counters.rx_errors
    )
    outgoing = Direction(
        counters.tx_packets, counters.tx_bytes, counters.tx_dropped + queue, counters.tx_errors
    )
    if chain is not None:  # it counts a train of TCP segments as the packets of a wire
        incoming, outgoing = _chained(incoming, chain.incoming), _chained(outgoing, chain.outgoing)
    if seen.shape is not None:  # what has left the queue
        outgoing = replace(outgoing, packets=seen.shape.sent_packets, bytes=seen.shape.sent_bytes)
    # What the switch's port receives is what the adapter plugged into it sends.
    tx, rx = (outgoing, incoming) if port.adapter is None else (incoming, outgoing)
    classes = {
        name: ClassReading(fact.sent_packets, fact.sent_bytes, fact.dropped, fact.queued_bytes)
        for minor, name in class_names.items()
        if (fact := seen.classes.get(minor)) is not None
    }
    return PortReading(at_ns, tx, rx, seen.link.mtu, seen.link.running, classes)


def _chained(direction: Direction, counted: ChainDirection) -> Direction:
    refused = sum(count for kind, count in counted.drops.items() if kind not in _FILTERS)
    return replace(
        direction,
        packets=counted.packets,
        bytes=counted.bytes,
        dropped=direction.dropped + refused,
    )


def team_uplinks(ports: Sequence[SwitchPort]) -> dict[SwitchPort, str]:
    """The uplink that each local port sends by now: the one in its IOChain, or the only one.

    Raises:
        KernelError: the kernel does not answer.
    """
    found = {}
    for port in ports:
        if port.adapter is None or not port.uplinks:
            continue
        if len(port.uplinks) == 1:
            found[port] = port.uplinks[0]
        elif port.chained:
            number = chain_ports.counters(port.netns, port.dev).uplink
            found[port] = port.uplinks[number - 1] if number else "none"
    return found
