"""Names: one of a kind, and every reference to one leads somewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.problems import Path, shown

if TYPE_CHECKING:
    from testbed.topology.draft import Draft
    from testbed.topology.fabric import RouterInterface
    from testbed.topology.schema import Host, HostNic
    from testbed.topology.vswitches import VSwitch

_NODES = {"switches": "switch", "routers": "router", "hosts": "host", "vms": "VM"}


def check(draft: Draft) -> None:
    """Report names used twice, and references to what doesn't exist."""
    _node_names(draft)
    _sites(draft)
    _links(draft)
    for name, store in draft.file.datastores.items():
        for number, host in enumerate(store.hosts):
            draft.refer(("datastores", name, "hosts", number), host, "hosts", "host")
    for name, router in draft.file.routers.items():
        for switch, legs in router.interfaces.items():
            path = ("routers", name, "interfaces", switch)
            _interfaces(draft, path, legs)
            if switch not in draft.names("switches") and "switches" not in draft.incomplete:
                remedy = draft.problems.did_you_mean(switch, draft.names("switches"))
                message = f"there is no physical switch {shown(switch)}"
                draft.problems.add(path, message, remedy, at_key=True)
    for name, host_file in draft.file.hosts.items():
        _host(draft, name, host_file)
    for name, vm in draft.file.vms.items():
        draft.refer(("vms", name, "host"), vm.host, "hosts", "host")
        draft.refer(("vms", name, "datastore"), vm.datastore, "datastores", "datastore")
        for number, adapter in enumerate(vm.nics):
            if vm.host in draft.file.hosts:
                place: Path = ("vms", name, "nics", number, "portgroup")
                _portgroup(draft, place, adapter.portgroup, vm.host)


def _node_names(draft: Draft) -> None:
    """Switches, routers, hosts and VMs are all nodes of one lab, with one set of names."""
    seen: dict[str, tuple[str, str]] = {}
    for section, what in _NODES.items():
        for name in draft.names(section):
            first = seen.setdefault(name.casefold(), (what, name))
            if first != (what, name):
                draft.problems.add(
                    (section, name),
                    f"the name {shown(name)} is taken by the {first[0]} {shown(first[1])}",
                    "give switches, routers, hosts and VMs names that differ in more than case",
                    at_key=True,
                )


def _sites(draft: Draft) -> None:
    for name, switch in draft.file.switches.items():
        draft.refer(("switches", name, "site"), switch.site, "sites", "site")
    for name, router in draft.file.routers.items():
        draft.refer(("routers", name, "site"), router.site, "sites", "site")


def _links(draft: Draft) -> None:
    for number, link in enumerate(draft.file.links):
        for end, switch in enumerate(link.between):
            path: Path = ("links", number, "between", end)
            draft.refer(path, switch, "switches", "physical switch")


def _interfaces(draft: Draft, path: Path, legs: tuple[RouterInterface, ...]) -> None:
    """A router has one interface in each VLAN of a switch."""
    seen: set[int | None] = set()
    for number, leg in enumerate(legs):
        if draft.is_broken(*path, number):
            continue
        if leg.vlan in seen:
            vlan = "untagged frames" if leg.vlan is None else f"VLAN {leg.vlan}"
            message = f"router {path[1]} has an interface for {vlan} of {path[3]} already"
            remedy = "give each a VLAN of its own, or both addresses to one interface"
            draft.problems.add((*path, number), message, remedy)
        seen.add(leg.vlan)


def _host(draft: Draft, name: str, host: Host) -> None:
    users: dict[str, str] = {}
    for vmnic, nic in host.nics.items():
        path: Path = ("hosts", name, "nics", vmnic)
        draft.refer((*path, "switch"), nic.switch, "switches", "physical switch")
        _uplink(draft, (*path, "uplink"), nic)
        if nic.uplink is not None:
            users[vmnic] = nic.uplink.partition("/")[0]
    for vswitch, of in host.vswitches.items():
        _standard_uplinks(draft, ("hosts", name, "vswitches", vswitch), of, host, users)
    _distributed_switches(draft, name, host)
    seen: dict[str, str] = {}
    for switch in draft.switches[name]:
        for portgroup in switch.portgroups:
            first = seen.setdefault(portgroup, switch.name)
            if first != switch.name:
                draft.problems.add(
                    (*switch.path, "portgroups", portgroup),
                    f"host {name} has the port group {shown(portgroup)} in {first} already",
                    "give the port groups of a host names that differ",
                    at_key=True,
                )
    for vmk, adapter in host.vmks.items():
        _portgroup(draft, ("hosts", name, "vmks", vmk, "portgroup"), adapter.portgroup, name)


def _uplink(draft: Draft, path: Path, nic: HostNic) -> None:
    if nic.uplink is None:
        return
    switch, _, slot = nic.uplink.partition("/")
    if not draft.refer(path, switch, "distributed_switches", "distributed switch"):
        return
    distributed = draft.file.distributed_switches.get(switch)
    if distributed is None or draft.is_broken("distributed_switches", switch):
        return
    if slot not in distributed.uplinks:
        remedy = draft.problems.did_you_mean(slot, distributed.uplinks)
        draft.problems.add(path, f"{shown(nic.uplink)}: {switch} has no uplink {slot}", remedy)


def _standard_uplinks(
    draft: Draft, path: Path, vswitch: VSwitch, host: Host, users: dict[str, str]
) -> None:
    for number, vmnic in enumerate(vswitch.uplinks):
        place = (*path, "uplinks", number)
        if vmnic is None:
            continue
        if vmnic not in host.nics:
            if draft.lacks_vmnic(str(path[1]), vmnic):
                remedy = draft.problems.did_you_mean(vmnic, list(host.nics))
                draft.problems.add(place, f"the host has no {shown(vmnic)}", remedy)
            continue
        if vmnic in users:
            draft.problems.add(
                place,
                f"{vmnic} is an uplink of {users[vmnic]} already",
                "a vmnic belongs to one virtual switch",
            )
            continue
        users[vmnic] = str(path[3])


def _distributed_switches(draft: Draft, name: str, host: Host) -> None:
    for switch in draft.switches[name]:
        if switch.kind != "distributed":
            continue
        if switch.name in host.vswitches:
            draft.problems.add(
                ("hosts", name, "vswitches", switch.name),
                f"the host is in a distributed switch {switch.name} too",
                "rename one of the two",
                at_key=True,
            )


def _portgroup(draft: Draft, path: Path, portgroup: str | None, host: str) -> None:
    if portgroup is None or draft.switch_of(host, portgroup) is not None:
        return
    if not draft.knows_switches_of(host):
        return
    known = [p for switch in draft.switches[host] for p in switch.portgroups]
    remedy = draft.problems.did_you_mean(portgroup, known)
    elsewhere = next(
        (d for d, of in draft.file.distributed_switches.items() if portgroup in of.portgroups), None
    )
    if elsewhere is not None:
        remedy = f"{elsewhere} has it: give a vmnic of {host} the uplink {elsewhere}/..."
    message = f"host {host} has no port group {shown(portgroup)}"
    draft.problems.add(path, message, remedy)
