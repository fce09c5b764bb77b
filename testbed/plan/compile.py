"""Topology in, plan out."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from testbed.errors import LabError
from testbed.plan.hosts import add_host, add_host_chains, add_vm_port, vm_nics
from testbed.plan.names import short_name
from testbed.plan.network import MAIN_TABLE, Network, gateway_for
from testbed.plan.physical import add_link, add_router, add_switch, longest_rtt_ns
from testbed.plan.plan import Plan
from testbed.plan.ports import guest_chain
from testbed.plan.steps import DatastoreDirectory, Netns, PowerOn, Route, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.topology.model import VM, Host, Topology


def compile_plan(
    topology: Topology,
    *,
    cpus: int,
    placement: Mapping[str, str] | None = None,
    netem: bool = False,
) -> Plan:
    """The ordered steps that make the lab of a topology.

    Args:
        topology: validated.
        cpus: how many CPUs this machine has; one of them handles the lab's wires.
        placement: the hosts that VMs run on now, where they have moved from the file's.
        netem: whether this kernel has it; otherwise delayed links get delay lines.

    Raises:
        LabError: a VM is placed on a host that lacks its port group.
    """
    network = compile_network(topology, cpus=cpus, placement=placement, netem=netem)
    where = {vm.name: vm.host for vm in topology.vms} | dict(placement or {})
    # Namespaces first: a wire needs both of its ends' and the kernel's helper makes them at once.
    steps: list[Step] = [step for step in network.steps if isinstance(step, Netns)]
    steps += [step for step in network.steps if not isinstance(step, Netns)]
    steps += network.chains
    steps += network.delay_lines
    steps += [DatastoreDirectory(store.name, store.hosts) for store in topology.datastores]
    steps += [_power_on(network, vm, where[vm.name]) for vm in topology.vms]
    return Plan(topology.name, tuple(steps))


def compile_network(
    topology: Topology,
    *,
    cpus: int,
    placement: Mapping[str, str] | None = None,
    netem: bool = False,
) -> Network:
    """The network's part of `compile_plan`, with the ports of its virtual switches.

    Raises:
        LabError: a VM is placed on a host that lacks its port group.
    """
    where = {vm.name: vm.host for vm in topology.vms} | dict(placement or {})
    network = Network(
        topology.name,
        cpus,
        netem=netem,
        longest_mtu=_longest_mtu(topology),
        longest_rtt_ns=longest_rtt_ns(topology.links),
    )
    switches = {switch.name: switch for switch in topology.switches}
    for switch in topology.switches:
        add_switch(network, switch)
    for link in topology.links:
        add_link(network, link, switches)
    for router in topology.routers:
        add_router(network, router, switches)
    for host in topology.hosts:
        add_host(network, host, topology)
    numbers = {(name, nic.name): n for n, (name, nic) in enumerate(vm_nics(topology))}
    for vm in topology.vms:
        _add_vm_network(network, topology.host(where[vm.name]), vm, numbers)
    for host in topology.hosts:
        add_host_chains(network, host)
    return network


def wire_name(nic: str, host: str) -> str:
    """The VM's end of the wire from its NIC to a host's virtual switch."""
    return short_name(f"{nic}-{host}")


def _longest_mtu(topology: Topology) -> int:
    """Of all that sends packets."""
    return max(
        [vmk.mtu for host in topology.hosts for vmk in host.vmks]
        + [nic.mtu for vm in topology.vms for nic in vm.nics]
        + [leg.mtu for router in topology.routers for leg in router.interfaces],
        default=0,
    )


def _add_vm_network(
    network: Network, host: Host, vm: VM, numbers: Mapping[tuple[str, str], int]
) -> None:
    """A VM's namespace; each NIC is a bridge in it with a wire to the host that the VM is on.

    So the NIC, its address and its sockets stay as they are while the VM moves: a migration
    adds a wire to the other host, and opens it when the VM has resumed there.
    """
    netns = network.add_node(vm.name, "vm")
    has_default: set[int] = set()
    for nic in vm.nics:
        vswitch = host.vswitch_of(nic.portgroup)
        if vswitch is None:
            raise LabError(
                f"place {vm.name} on {host.name}: the host has no port group {nic.portgroup!r};"
                " add it to a virtual switch of the host"
            )
        bridge = network.add_bridge(netns, nic.name, nic.mtu, nic.mac)
        wire_end = network.end(netns, wire_name(nic.name, host.name), nic.mtu, bridge)
        port = network.end(
            network.netns(host.name), f"{vm.name}-{nic.name}", nic.mtu,
            network.bridge(host.name, vswitch.name),
        )  # fmt: skip
        wire = add_vm_port(network, host, (wire_end, port), nic, numbers[vm.name, nic.name])
        if nic.vlan is not None:
            network.add_chain(guest_chain(wire, wire_end, nic.vlan))
        link = f"link {netns}/{bridge}"
        addresses = network.add_addresses(netns, bridge, link, nic.addresses)
        for step, address in zip(addresses, nic.addresses, strict=True):
            gateway = gateway_for(address, nic.gateways)
            if gateway is not None and address.version not in has_default:
                has_default.add(address.version)
                network.steps.append(
                    Route(netns, "default", bridge, MAIN_TABLE, step.key, address.version, gateway)
                )


def _power_on(network: Network, vm: VM, host: str) -> PowerOn:
    return PowerOn(
        vm=vm.name,
        netns=network.netns(vm.name),
        host=host,
        host_netns=network.netns(host),
        datastore=vm.datastore,
        memory_bytes=vm.memory_bytes,
        vcpus=vm.vcpus,
        seed=crc32(f"{network.lab}/{vm.name}".encode()),
        workloads=vm.workloads,
        in_use_bytes=vm.in_use_bytes,
        backing=vm.backing,
        page_bytes=vm.page_bytes,
        resident_bytes=vm.resident_bytes if vm.resident_bytes < vm.memory_bytes else None,
        affinity=vm.affinity,
    )
