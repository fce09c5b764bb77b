"""The physical network and the hosts' virtual one, as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from testbed.plan.names import InterfaceNames, alias, netns_name
from testbed.plan.shaping import shape
from testbed.plan.steps import Address, Bridge, End, Netns, Route, Rule, Step, Veth
from testbed.plan.sysctls import sysctls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress, IPNetwork

    from testbed.topology.model import Host, PhysicalLink, PhysicalSwitch, Router, Uplink

MAIN_TABLE = 254
FIRST_VMK_TABLE = 1000
"""vmkN looks in table 1000 + N; 253-255 are the kernel's own."""


class Network:
    """Collects the steps of a network, giving names as it goes."""

    def __init__(self, lab: str, cpus: int) -> None:
        self.lab = lab
        self.cpu = crc32(lab.encode()) % cpus
        self.names = InterfaceNames()
        self.bridges: dict[tuple[str, str], str] = {}
        self.steps: list[Step] = []

    def netns(self, node: str) -> str:
        """The namespace name of a node of this lab."""
        return netns_name(self.lab, node)

    def add_node(self, node: str, role: str) -> str:
        """A namespace for a node; its name."""
        netns = self.netns(node)
        self.steps.append(Netns(netns, node, role, sysctls(role)))
        return netns

    def add_bridge(self, netns: str, name: str, mtu: int, mac: str | None = None) -> str:
        """A bridge in `netns`; the name that it got."""
        given = self.names.give(netns, name)
        self.steps.append(Bridge(netns, given, mtu, alias(self.lab, name), mac))
        self.bridges[netns, name] = given
        return given

    def end(
        self, netns: str, name: str, mtu: int, master: str | None = None, mac: str | None = None
    ) -> End:
        """One end of a wire, to be given to `add_wire`.

        One CPU handles what all the lab's wires receive (docs/decisions/0007-one-cpu.md).
        """
        given = self.names.give(netns, name)
        return End(netns, given, mtu, alias(self.lab, name), mac, master, self.cpu)

    def add_wire(self, a: End, b: End, rate_bps: int | None = None) -> Veth:
        """A wire, shaped at both sending ends if it has a rate."""
        wire = Veth(a, b)
        self.steps.append(wire)
        if rate_bps is not None:
            self.steps += [
                shape(end.netns, end.name, rate_bps, end.mtu, wire.key) for end in (a, b)
            ]
        return wire

    def add_addresses(
        self, netns: str, dev: str, wire: str, addresses: Iterable[IPNetwork]
    ) -> list[Address]:
        """Addresses on a link, which the step `wire` makes."""
        made = [Address(netns, dev, str(address), wire) for address in addresses]
        self.steps += made
        return made


def add_switch(network: Network, switch: PhysicalSwitch) -> None:
    """A physical switch: a namespace with one bridge."""
    netns = network.add_node(switch.name, "switch")
    network.add_bridge(netns, switch.name, switch.mtu)


def add_link(network: Network, link: PhysicalLink) -> None:
    """A cable between two physical switches; each port is named after the other switch."""
    a, b = link.ends
    ends = [
        network.end(network.netns(here), there, link.mtu, switch_bridge(network, here))
        for here, there in ((a, b), (b, a))
    ]
    network.add_wire(ends[0], ends[1], link.rate_bps)


def switch_bridge(network: Network, switch: str) -> str:
    """The name of a physical switch's bridge."""
    return network.bridges[network.netns(switch), switch]


def add_router(network: Network, router: Router) -> None:
    """A router: a namespace that forwards, with a leg in each of its switches."""
    netns = network.add_node(router.name, "router")
    for leg in router.interfaces:
        inside = network.end(netns, leg.switch, leg.mtu, mac=leg.mac)
        port = network.end(
            network.netns(leg.switch), router.name, leg.mtu, switch_bridge(network, leg.switch)
        )
        wire = network.add_wire(inside, port)
        network.add_addresses(netns, inside.name, wire.key, leg.addresses)


def add_host(network: Network, host: Host) -> None:
    """A host: its virtual switches, its vmnics' cables and its VMkernel adapters."""
    netns = network.add_node(host.name, "host")
    bridges = {v.name: network.add_bridge(netns, v.name, v.mtu) for v in host.vswitches}
    vswitch_of_uplink = {nic: v.name for v in host.vswitches for nic in v.uplinks}
    for uplink in host.uplinks:
        vswitch = vswitch_of_uplink.get(uplink.name)
        add_uplink(network, host, uplink, bridges[vswitch] if vswitch else None)
    has_default: set[int] = set()
    for vmk in host.vmks:
        adapter = network.end(netns, vmk.name, vmk.mtu, mac=vmk.mac)
        port = network.end(netns, f"{vmk.name}-port", vmk.mtu, bridges[vmk.vswitch])
        wire = network.add_wire(adapter, port)
        addresses = network.add_addresses(netns, adapter.name, wire.key, vmk.addresses)
        table = FIRST_VMK_TABLE + int(vmk.name.removeprefix("vmk"))
        for step, address in zip(addresses, vmk.addresses, strict=True):
            source, family = str(address.ip), address.version
            network.steps.append(Rule(netns, source, table, family))
            network.steps.append(
                Route(
                    netns, str(address.cidr), adapter.name, table, step.key, family, source=source
                )
            )
            gateway = gateway_for(address, vmk.gateways)
            if gateway is None:
                continue
            tables = [table] if family in has_default else [table, MAIN_TABLE]
            has_default.add(family)
            network.steps += [
                Route(netns, "default", adapter.name, t, step.key, family, gateway, source)
                for t in tables
            ]


def gateway_for(address: IPNetwork, gateways: Iterable[IPAddress]) -> str | None:
    """The gateway within the address's own network, if one is given."""
    return next((str(gateway) for gateway in gateways if gateway in address), None)


def add_uplink(network: Network, host: Host, uplink: Uplink, bridge: str | None) -> None:
    """A vmnic and its cable to a port of the physical switch, shaped at both ends."""
    nic = network.end(
        network.netns(host.name), uplink.name, uplink.mtu, bridge, None if bridge else uplink.mac
    )
    port = network.end(
        network.netns(uplink.switch),
        f"{host.name}-{uplink.name}",
        uplink.mtu,
        switch_bridge(network, uplink.switch),
    )
    network.add_wire(nic, port, uplink.rate_bps)
