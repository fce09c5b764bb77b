"""Hosts as steps: virtual switches, uplinks, VMkernel adapters, and the ports of VMs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.plan.allocation import nic_classes, nioc_classes, type_minor, vm_minor
from testbed.plan.network import MAIN_TABLE, gateway_for
from testbed.plan.physical import port_classes
from testbed.plan.policies import Offloads, TrafficClass
from testbed.plan.ports import LocalPort, local_chain, switch_chain, uplink_chain
from testbed.plan.shaping import port_shape
from testbed.plan.steps import Route, Rule
from testbed.topology.traffic import SERVICE_TRAFFIC, VM_TRAFFIC

if TYPE_CHECKING:
    from testbed.plan.network import Network
    from testbed.plan.steps import Address, End, Veth
    from testbed.topology.model import (
        Host,
        Topology,
        Uplink,
        VirtualNic,
        VmkernelAdapter,
        VSwitch,
    )
    from testbed.topology.policy import Nioc

FIRST_VMK_TABLE = 1000
"""vmkN looks in table 1000 + N; 253-255 are the kernel's own."""


def add_host(network: Network, host: Host, topology: Topology) -> None:
    """A host: its virtual switches, its vmnics' cables and its VMkernel adapters."""
    netns = network.add_node(host.name, "host")
    for vswitch in host.vswitches:
        bridge = network.add_bridge(netns, vswitch.name, vswitch.mtu, remembers=True)
        network.ports[netns, bridge] = []
    switch_of = {nic: v for v in host.vswitches for nic in v.uplinks}
    for uplink in host.uplinks:
        _add_uplink(network, host, uplink, switch_of.get(uplink.name), topology)
    # The kernel's own routes to the networks that the host is in.
    in_main = {
        str(address.cidr)
        for vmk in host.vmks
        if vmk.netstack == "default"
        for address in vmk.addresses
    }
    for number, vmk in enumerate(host.vmks):
        adapter = network.end(netns, vmk.name, vmk.mtu, mac=vmk.mac)
        switch = host.vswitch_of(vmk.portgroup)
        assert switch is not None
        port = network.end(
            netns, f"{vmk.name}-port", vmk.mtu, network.bridge(host.name, switch.name)
        )
        traffic = vmk_traffic(vmk)
        minor = type_minor(traffic) if traffic and _has_classes(host, switch) else 0
        plugged = Plugged(vmk.portgroup, vmk.mac, number, traffic, minor)
        wire = add_local_port(network, (adapter, port), switch, plugged)
        default = vmk.netstack == "default"
        addresses = network.add_addresses(
            netns, adapter.name, wire.key, vmk.addresses, connected=default
        )
        _add_routes(network, vmk, addresses, in_main)


def vmk_traffic(vmk: VmkernelAdapter) -> str:
    """The system traffic type of all that a vmk sends; "" if its services are of several."""
    types = {SERVICE_TRAFFIC[service] for service in vmk.services}
    return types.pop() if len(types) == 1 else ""


def _has_classes(host: Host, vswitch: VSwitch) -> bool:
    """Whether any of the switch's uplinks distinguishes traffic types."""
    return vswitch.nioc is not None or any(
        uplink.qos for uplink in host.uplinks if uplink.name in vswitch.uplinks
    )


def add_vm_port(
    network: Network, host: Host, ends: tuple[End, End], nic: VirtualNic, number: int
) -> Veth:
    """A VM's adapter, the `number`th of the lab, plugged into a host's virtual switch."""
    vswitch = host.vswitch_of(nic.portgroup)
    assert vswitch is not None
    minor = 0
    if _has_classes(host, vswitch):
        own = vswitch.nioc is not None and nic.bandwidth is not None
        minor = vm_minor(number) if own else type_minor(VM_TRAFFIC)
    plugged = Plugged(nic.portgroup, nic.mac, len(host.vmks) + number, VM_TRAFFIC, minor)
    return add_local_port(network, ends, vswitch, plugged)


@dataclass(frozen=True, slots=True)
class Plugged:
    """An adapter that is plugged in: where, who it is, and what its traffic is called.

    `number` is its port's on the virtual switch, `minor` its HTB class on the uplinks.
    """

    portgroup: str
    mac: str
    number: int
    traffic: str
    minor: int


def add_local_port(
    network: Network, ends: tuple[End, End], vswitch: VSwitch, plugged: Plugged
) -> Veth:
    """A wire from an adapter to a port of a virtual switch, with the port group's shaping."""
    adapter, port = ends
    port = replace(port, flooding=False)
    group = vswitch.portgroup(plugged.portgroup)
    wire = network.add_wire(adapter, port)
    for end, shaping in ((adapter, group.outgoing), (port, group.incoming)):
        if shaping is not None:
            network.steps.append(port_shape(end.netns, end.name, end.mtu, shaping, wire.key))
    assert port.master is not None
    network.ports[port.netns, port.master].append(
        LocalPort(
            wire=wire,
            end=port,
            group=group,
            uplinks=vswitch.uplinks,
            mac=plugged.mac,
            number=plugged.number,
            traffic=plugged.traffic,
            minor=plugged.minor,
        )
    )
    return wire


def _add_routes(
    network: Network, vmk: VmkernelAdapter, made: list[Address], in_main: set[str]
) -> None:
    """A table for what a vmk sends, and what the host's default stack has from it.

    The default stack has one route to each network, and one default route a family: its first
    vmk's. `in_main` is where its routes lead already.
    """
    table = FIRST_VMK_TABLE + int(vmk.name.removeprefix("vmk"))
    own_stack = vmk.netstack != "default"
    for step, address in zip(made, vmk.addresses, strict=True):
        source, family = str(address.ip), address.version
        ways = [
            (str(static.to), str(static.to), str(static.via))
            for static in vmk.routes
            if static.via in address
        ]
        gateway = gateway_for(address, vmk.gateways)
        if gateway is not None:
            ways.append(("default", f"default, IPv{family}", gateway))
        wanted: list[tuple[str, list[int], str | None]] = [(str(address.cidr), [table], None)]
        for to, name, via in ways:
            first = not own_stack and name not in in_main
            in_main |= {name} if first else set()
            wanted.append((to, [table, MAIN_TABLE] if first else [table], via))
        network.steps.append(Rule(step.netns, source, table, family))
        network.steps += [
            Route(step.netns, to, step.dev, where, step.key, family, via, source)
            for to, tables, via in wanted
            for where in tables
        ]


def _add_uplink(
    network: Network, host: Host, uplink: Uplink, vswitch: VSwitch | None, topology: Topology
) -> None:
    """A vmnic and its cable to a port of the physical switch, shaped at both ends."""
    bridge = network.bridge(host.name, vswitch.name) if vswitch else None
    switch = next(s for s in topology.switches if s.name == uplink.switch)
    nic = network.end(
        network.netns(host.name), uplink.name, uplink.mtu, bridge,
        None if bridge else uplink.mac,
    )  # fmt: skip
    if vswitch is not None:
        nic = replace(nic, isolated=True, learning=False)
    port = network.end(
        network.netns(uplink.switch), f"{host.name}-{uplink.name}", uplink.mtu,
        network.bridge(uplink.switch, uplink.switch),
    )  # fmt: skip
    wire = network.add_wire(nic, port)
    network.uplinks[nic.netns, uplink.name] = (wire, nic)
    classes = uplink_classes(uplink, vswitch, topology)
    lends_idle = vswitch is None or vswitch.nioc is None or _lends(vswitch.nioc)
    default = type_minor(VM_TRAFFIC)
    rate_bps, rings = uplink.rate_bps, uplink.rings
    network.shape(wire, nic, rate_bps, classes, default, lends_idle=lends_idle, frames=rings.tx)
    queues = port_classes(switch, rate_bps, uplink.mtu)
    network.shape(wire, port, rate_bps, queues, frames=rings.rx)
    _add_offloads(network, uplink, wire, nic, port)
    network.add_chain(
        switch_chain(
            wire,
            port,
            switch,
            vlans=uplink.vlans,
            shaped=uplink.rate_bps is not None,
            max_size=network.is_narrow(port),
        )
    )


def _lends(nioc: Nioc) -> bool:
    """Without any reservation there is nothing that could be kept back."""
    return nioc.lend_idle or not any(given.reservation_bps for _, given in nioc.allocations)


def _add_offloads(network: Network, uplink: Uplink, wire: Veth, nic: End, port: End) -> None:
    """Without TSO the NIC gets no trains from the kernel, without LRO it hands up none."""
    offloads = uplink.offloads
    if not (offloads.tso and offloads.checksum):
        network.steps.append(
            Offloads(nic.netns, nic.name, wire.key, offloads.tso, offloads.checksum)
        )
    if not offloads.lro:
        network.steps.append(Offloads(port.netns, port.name, wire.key, segmentation=False))


def uplink_classes(
    uplink: Uplink, vswitch: VSwitch | None, topology: Topology
) -> tuple[TrafficClass, ...]:
    """How an uplink divides its rate among traffic types; () if it doesn't."""
    if uplink.rate_bps is None or vswitch is None:
        return ()
    if vswitch.nioc is not None:
        groups = {group.name for group in vswitch.portgroups}
        vms = [
            (number, f"{vm}/{nic.name}", nic.bandwidth)
            for number, (vm, nic) in enumerate(vm_nics(topology))
            if nic.bandwidth is not None and nic.portgroup in groups
        ]
        return nioc_classes(vswitch.nioc, uplink.rate_bps, uplink.mtu, vms)
    return nic_classes(uplink.qos, uplink.rate_bps, uplink.mtu) if uplink.qos else ()


def vm_nics(topology: Topology) -> list[tuple[str, VirtualNic]]:
    """All VMs' adapters, each with its VM's name; the place in the list is the number."""
    return [(vm.name, nic) for vm in topology.vms for nic in vm.nics]


def add_host_chains(network: Network, host: Host) -> None:
    """The chains of a host's virtual switches, once all that is plugged in is known."""
    netns = network.netns(host.name)
    for vswitch in host.vswitches:
        bridge = network.bridge(host.name, vswitch.name)
        ports = network.ports[netns, bridge]
        promiscuous = [port for port in ports if port.group.security.promiscuous]
        for number, name in enumerate(vswitch.uplinks, 1):
            uplink = next(u for u in host.uplinks if u.name == name)
            wire, end = network.uplinks[netns, name]
            network.add_chain(
                uplink_chain(
                    wire,
                    end,
                    vswitch,
                    number,
                    promiscuous,
                    queues=uplink.rate_bps is not None and _has_classes(host, vswitch),
                    max_size=network.is_narrow(end),
                )
            )
        for port in ports:
            network.add_chain(local_chain(port, promiscuous))
