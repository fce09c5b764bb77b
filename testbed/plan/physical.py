"""The physical network as steps: switches, the cables between them, routers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.plan.allocation import queue_classes
from testbed.plan.policies import Delay, DelayLine, Netem
from testbed.plan.ports import switch_chain
from testbed.plan.shaping import delayed_packets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.plan.network import Network
    from testbed.plan.policies import TrafficClass
    from testbed.plan.steps import End, Veth
    from testbed.topology.model import PhysicalLink, PhysicalSwitch, Router
    from testbed.topology.policy import Impairment

WIRE_BRIDGE = "wire"


def add_switch(network: Network, switch: PhysicalSwitch) -> None:
    """A physical switch: a namespace with one bridge."""
    netns = network.add_node(switch.name, "switch")
    network.add_bridge(netns, switch.name, switch.mtu)


def port_classes(
    switch: PhysicalSwitch, rate_bps: int | None, mtu: int
) -> tuple[TrafficClass, ...]:
    """The queues of a physical switch's port, if it has several."""
    if switch.queues is None or rate_bps is None:
        return ()
    return queue_classes(switch.queues, rate_bps, mtu)


def longest_rtt_ns(links: Iterable[PhysicalLink]) -> int:
    """The latency of the longest path between two switches, there and back."""
    neighbours: dict[str, list[tuple[str, int]]] = {}
    for link in links:
        a, b = link.ends
        both_ns = link.there.delay_ns + link.back.delay_ns
        neighbours.setdefault(a, []).append((b, both_ns))
        neighbours.setdefault(b, []).append((a, both_ns))

    def farthest(start: str) -> dict[str, int]:
        """The distance to every switch that is joined; there are no loops."""
        found, waiting = {start: 0}, [start]
        while waiting:
            here = waiting.pop()
            for there, rtt_ns in neighbours[here]:
                if there not in found:
                    found[there] = found[here] + rtt_ns
                    waiting.append(there)
        return found

    longest, seen = 0, set[str]()
    for switch in neighbours:
        if switch not in seen:
            # In a tree the farthest from anywhere is one end of a longest path.
            joined = farthest(switch)
            seen.update(joined)
            end = max(joined, key=lambda name: joined[name])
            longest = max(longest, *farthest(end).values())
    return longest


def wire_node(a: str, b: str) -> str:
    """The node that is the wire between two switches; no name in a file has a plus."""
    return f"{a}+{b}"


def add_link(network: Network, link: PhysicalLink, switches: dict[str, PhysicalSwitch]) -> None:
    """A cable between two physical switches; each port is named after the other switch."""
    a, b = link.ends
    ports = [
        network.end(network.netns(here), there, link.mtu, network.bridge(here, here))
        for here, there in ((a, b), (b, a))
    ]
    if link.there.delays or link.back.delays:
        wires = _add_delayed(network, link, ports)
    else:
        wires = [network.add_wire(*ports)] * 2
    arriving = (link.back, link.there)  # what the first end receives comes from the second
    for name, port, wire, impairment in zip(link.ends, ports, wires, arriving, strict=True):
        switch = switches[name]
        network.shape(wire, port, link.rate_bps, port_classes(switch, link.rate_bps, link.mtu))
        network.add_chain(
            switch_chain(
                wire,
                port,
                switch,
                vlans=link.vlans,
                loss=impairment.loss,
                shaped=link.rate_bps is not None,
                max_size=network.is_narrow(port),
            )
        )


def _add_delayed(network: Network, link: PhysicalLink, ports: list[End]) -> list[Veth]:
    """The wire's own namespace between both ports: it delays, and does nothing else."""
    node = wire_node(*link.ends)
    netns = network.add_node(node, "wire")
    bridge = network.add_bridge(netns, WIRE_BRIDGE, link.mtu)
    inner = [network.end(netns, name, link.mtu, bridge) for name in link.ends]
    wires = [network.add_wire(own, port) for own, port in zip(inner, ports, strict=True)]
    if network.netem:
        # A port delays what it sends: towards the second end it is what the first sent.
        for own, wire, impairment in zip(inner, wires, (link.back, link.there), strict=True):
            limit = delayed_packets(link.rate_bps, impairment.delay_ns + impairment.jitter_ns)
            network.steps.append(
                Netem(netns, own.name, wire.key, impairment.delay_ns, impairment.jitter_ns, limit)
            )
    else:
        network.delay_lines.append(
            DelayLine(
                netns,
                f"{link.ends[0]} - {link.ends[1]}",
                (inner[0].name, inner[1].name),
                (_delay(link.there), _delay(link.back)),
            )
        )
    return wires


def _delay(impairment: Impairment) -> Delay:
    return Delay(impairment.delay_ns, impairment.jitter_ns)


def add_router(network: Network, router: Router, switches: dict[str, PhysicalSwitch]) -> None:
    """A router: a namespace that forwards, with a leg in each of its networks."""
    netns = network.add_node(router.name, "router")
    for leg in router.interfaces:
        inside = network.end(netns, leg.name, leg.mtu, mac=leg.mac)
        name = router.name if leg.name == leg.switch else f"{router.name}-{leg.vlan}"
        port = network.end(
            network.netns(leg.switch), name, leg.mtu, network.bridge(leg.switch, leg.switch)
        )
        wire = network.add_wire(inside, port)
        network.add_addresses(netns, inside.name, wire.key, leg.addresses)
        network.add_chain(
            switch_chain(
                wire,
                port,
                switches[leg.switch],
                vlans=leg.vlan,
                max_size=network.is_narrow(port),
            )
        )
