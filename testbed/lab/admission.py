"""Whether a VM may move to a host: questions to the topology alone, all answered at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.traffic import VM_TRAFFIC
from testbed.units import format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from testbed.topology.model import VM, Host, Topology, VSwitch


def _memory_reasons(vm: VM, destination: Host, here: list[VM]) -> list[str]:
    """A host admits reservations; what it holds beyond them is not taken from running VMs.

    What a VM has in its swap file stays there.
    """
    free = destination.memory_bytes - sum(v.resident_bytes for v in here)
    unreserved = destination.memory_bytes - sum(v.reserved_bytes for v in here)
    if vm.resident_bytes <= free:
        return []
    needs = f"{destination.name} has {format_size(max(free, 0))} of memory free and {vm.name} needs"
    remedy = "raise the host's memory or move a VM away"
    if vm.reserved_bytes <= unreserved and free != unreserved:
        remedy += "; it could reserve enough, but running VMs keep the memory that they have"
    return [f"{needs} {format_size(vm.resident_bytes)}; {remedy}"]


def reasons_against(
    topology: Topology,
    placement: Mapping[str, str],
    vm: VM,
    destination: Host,
    arriving: Collection[str] = (),
    *,
    closed: Collection[str] = (),
) -> tuple[str, ...]:
    """Why the VM may not move there; empty if it may. Each reason says what to do.

    `arriving` are VMs on their way there; those that leave are there until they have left.
    `closed` are hosts in maintenance mode.
    """
    source = placement.get(vm.name, vm.host)
    if source == destination.name:
        return (f"{vm.name} runs on {source} already; name another host",)
    here = [
        v
        for v in topology.vms
        if placement.get(v.name, v.host) == destination.name or v.name in arriving
    ]
    reasons = _memory_reasons(vm, destination, here)
    if destination.name in closed:
        reasons.append(
            f"{destination.name} is in maintenance mode; name another host, or end that:"
            f" 'testbed evacuate {destination.name} --exit'"
        )
    if vm.vcpus > destination.cores:
        reasons.append(
            f"{destination.name} has {destination.cores} cores and {vm.name} has {vm.vcpus} vCPUs;"
            " raise cpu.cores of the host"
        )
    mounted = next(s.hosts for s in topology.datastores if s.name == vm.datastore)
    if destination.name not in mounted:
        reasons.append(
            f"{destination.name} does not mount datastore {vm.datastore!r};"
            " add it to the datastore's hosts"
        )
    for nic in vm.nics:
        vswitch = destination.vswitch_of(nic.portgroup)
        if vswitch is None:
            reasons.append(
                f"{destination.name} has no port group {nic.portgroup!r} for {vm.name}'s"
                f" {nic.name}; add it to a virtual switch of the host"
            )
        elif vswitch.mtu < nic.mtu:
            reasons.append(
                f"{destination.name} carries port group {nic.portgroup!r} at MTU {vswitch.mtu},"
                f" less than {nic.name}'s {nic.mtu}; give both virtual switches the same MTU"
            )
    reasons += _bandwidth_reasons(vm, destination, here)
    reasons += [
        f"{name} has no vmk with the vmotion service; add 'services: [vmotion]' to one of its vmks"
        for name in (source, destination.name)
        if not topology.host(name).vmks_for("vmotion")
    ]
    return tuple(reasons)


def _bandwidth_reasons(vm: VM, destination: Host, here: list[VM]) -> list[str]:
    """NIOC guarantees a VM's adapter its reservation, so a host takes no more than it can hold."""
    reasons = []
    for vswitch in destination.vswitches:
        if vswitch.nioc is None:
            continue
        allocations = dict(vswitch.nioc.allocations)
        room = allocations[VM_TRAFFIC].reservation_bps if VM_TRAFFIC in allocations else 0
        taken = sum(_reserved_bps(other, vswitch) for other in here if other.name != vm.name)
        wanted = _reserved_bps(vm, vswitch)
        if wanted and taken + wanted > room:
            reasons.append(
                f"{destination.name} has {format_rate(max(room - taken, 0))} of virtualMachine's"
                f" reservation on {vswitch.name} free and {vm.name} reserves {format_rate(wanted)};"
                " raise nioc.virtualMachine.reservation, or move a VM away"
            )
    return reasons


def _reserved_bps(vm: VM, vswitch: VSwitch) -> int:
    groups = {group.name for group in vswitch.portgroups}
    return sum(
        nic.bandwidth.reservation_bps
        for nic in vm.nics
        if nic.bandwidth is not None and nic.portgroup in groups
    )
