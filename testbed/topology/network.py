"""The physical network: who must reach whom over its cables, in one VLAN."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from testbed.topology import mtu
from testbed.topology.cables import lay_cables
from testbed.topology.segments import entries
from testbed.topology.teams import uplinks_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from netaddr import IPAddress, IPNetwork

    from testbed.topology.cables import Cables
    from testbed.topology.draft import Draft
    from testbed.topology.segments import Entry

# vSphere's configuration maximums for vMotion NICs of one host
MAX_1G_VMOTION_NICS, MAX_10G_VMOTION_NICS = 16, 4
_TEN_GBIT = 10**10
_MAX_NAMED = 8

_Missing: TypeAlias = "dict[int, dict[int, tuple[Entry, Entry]]]"
"""By link and VLAN: two that need it."""


def check(draft: Draft) -> None:
    """Report loops, VLANs and MTUs that a path doesn't carry, and too many vMotion NICs."""
    cables = lay_cables(draft)
    adapters = [entry for entry in entries(draft) if entry.carried]
    routers = {a.ip: entry for entry in adapters if entry.kind == "router" for a in entry.addresses}
    mtu.check(draft, cables, adapters, routers)
    for host in draft.file.hosts:
        _vmotion_nics(draft, host)
    _networks(draft, cables, adapters)
    _gateways(draft, cables, adapters, routers)
    _strangers(draft, cables, adapters)


def _vmotion_nics(draft: Draft, host: str) -> None:
    used = {
        vmnic
        for vmk in draft.file.hosts[host].vmks.values()
        if "vmotion" in vmk.services and vmk.portgroup is not None
        if (vswitch := draft.switch_of(host, vmk.portgroup)) is not None
        for vmnic in uplinks_of(vswitch, vmk.portgroup)
    }
    rates = [nic.rate for u in used if (nic := draft.nic(host, u)) is not None and nic.rate]
    fast = sum(rate >= _TEN_GBIT for rate in rates)
    slow = len(rates) - fast
    for count, most, kind in (
        (fast, MAX_10G_VMOTION_NICS, "10 GbE"),
        (slow, MAX_1G_VMOTION_NICS, "1 GbE"),
    ):
        if count > most:
            draft.problems.add(
                ("hosts", host, "nics"),
                f"{count} x {kind} NICs carry vMotion on host {host}",
                f"vSphere supports at most {most} of them on a host",
                at_key=True,
            )


def _networks(draft: Draft, cables: Cables, adapters: Iterable[Entry]) -> None:
    """Report adapters of one network that are divided by links, VLANs or missing cables."""
    networks: dict[IPNetwork, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in adapters:
        for address in entry.addresses:
            networks[address.cidr][entry.vlan].append(entry)
    missing: _Missing = defaultdict(dict)
    for network, by_vlan in networks.items():
        for vlan, members in by_vlan.items():
            _trunks(cables, vlan, members, missing)
        vmotion = [e for members in by_vlan.values() for e in members if e.vmotion]
        if len({entry.path for entry in vmotion}) > 1:
            _vmotion(draft, cables, network, vmotion)
    for number, vlans in sorted(missing.items()):
        needed = ", ".join(
            f"{_vlan(vlan)} ({a.label} to {b.label})"
            for vlan, (a, b) in [*vlans.items()][:_MAX_NAMED]
        )
        ends = " - ".join(end or "" for end in draft.file.links[number].between)
        draft.problems.add(
            ("links", number, "vlans"),
            f"the link {ends} doesn't carry {needed}",
            f"add {', '.join(str(vlan) for vlan in [*vlans][:_MAX_NAMED])} to its vlans",
        )


def _vlan(vlan: int) -> str:
    return f"VLAN {vlan}" if vlan else "untagged frames"


def _trunks(cables: Cables, vlan: int, members: Sequence[Entry], missing: _Missing) -> None:
    """Note the links that don't carry a VLAN between members of one network."""
    joined = cables.in_vlan(vlan)
    first: dict[str, Entry] = {}  # by what cables join
    for entry in members:
        start = first.setdefault(cables.groups.root(entry.switch), entry)
        if joined.root(start.switch) != joined.root(entry.switch):
            number = cables.without(cables.way(start.switch, entry.switch), vlan)
            if number is not None:
                missing[number].setdefault(vlan, (start, entry))


def _vmotion(draft: Draft, cables: Cables, network: IPNetwork, members: list[Entry]) -> None:
    """Report vMotion's adapters of one network that no cable joins, or in different VLANs."""
    first = members[0]
    roots = {cables.groups.root(first.switch)}
    vlans = {first.vlan}
    for entry in members[1:]:
        root = cables.groups.root(entry.switch)
        if entry.vlan not in vlans:
            vlans.add(entry.vlan)
            draft.problems.add(
                (*entry.path, "portgroup"),
                f"{entry.label} is in {_named(entry)}, {first.label} in {_named(first)}, though"
                f" both are in {network}",
                "use one VLAN in one network, or different networks and a router",
            )
        elif root not in roots and cables.sure:
            roots.add(root)
            apart = f"{entry.switch} and {first.switch} are not linked"
            message = f"{entry.label} has no cable to {first.label}, though both are in {network}"
            if entry.path == first.path:
                message = f"the team of {entry.label} has uplinks in two networks"
            remedy = "add a link, or use different networks and a router"
            draft.problems.add(entry.path, f"{message}: {apart}", remedy, at_key=True)


def _named(entry: Entry) -> str:
    return f"VLAN {entry.vlan}" if entry.vlan else "no VLAN"


def _gateways(
    draft: Draft, cables: Cables, adapters: Iterable[Entry], routers: Mapping[IPAddress, Entry]
) -> None:
    """Report gateways that are in another VLAN, or that no cable leads to."""
    for entry in adapters:
        for gateway in entry.gateways:
            leg = routers.get(gateway)
            if leg is None or not any(gateway in address for address in entry.addresses):
                continue
            if leg.vlan != entry.vlan:
                draft.problems.add(
                    (*entry.path, "portgroup"),
                    f"{entry.label} is in {_named(entry)}, its gateway {gateway} of {leg.label} in"
                    f" {_named(leg)}",
                    "use the same VLAN at both",
                )
            elif cables.sure and cables.groups.root(leg.switch) != cables.groups.root(entry.switch):
                draft.problems.add(
                    entry.path,
                    f"{entry.label} has no cable to its gateway {gateway}: {entry.switch} and"
                    f" {leg.switch} of {leg.label} are not linked",
                    "add a link, or move the router's interface",
                    at_key=True,
                )


def _strangers(draft: Draft, cables: Cables, adapters: Sequence[Entry]) -> None:
    """Report a vmk that is alone in its network, in a segment where its like are in another.

    Several networks in one VLAN are legal, so each has to have a second member, or the vmk a
    gateway. Its like are the vmks of other hosts in the same port group with the same services.
    """
    members: dict[tuple[IPNetwork, int, str], set[tuple[str | int, ...]]] = defaultdict(set)
    everywhere: dict[IPNetwork, set[tuple[str | int, ...]]] = defaultdict(set)
    groups: dict[tuple[str, int, str, frozenset[str | None], int], dict[IPNetwork, Entry]]
    groups = defaultdict(dict)
    for entry in adapters:
        root = cables.groups.root(entry.switch)
        for address in entry.addresses:
            members[address.cidr, entry.vlan, root].add(entry.path)
            everywhere[address.cidr].add(entry.path)
            if entry.kind != "vmk":
                continue
            vmk = draft.file.hosts[str(entry.path[1])].vmks[str(entry.path[3])]
            like = (entry.portgroup, entry.vlan, root, frozenset(vmk.services), address.version)
            groups[like].setdefault(address.cidr, entry)
    for (_, vlan, root, _, _), networks in groups.items():
        usual = max(networks, key=lambda n: len(members[n, vlan, root]))
        for network, entry in networks.items():
            other = networks[usual]
            alone = len(members[network, vlan, root]) == 1 and not any(
                gateway in network for gateway in entry.gateways
            )
            if entry.vmotion and len(everywhere[network]) > 1:
                continue  # `_vmotion` tells what divides them
            if network == usual or not alone or entry.path[1] == other.path[1]:
                continue
            number = next(n for n, a in enumerate(entry.addresses) if a.cidr == network)
            draft.problems.add(
                (*entry.path, "ip", number),
                f"{entry.addresses[number]} is of another network than {other.label}"
                f" ({usual}) in the same port group {entry.portgroup}",
                f"give it an address in {usual}, or a gateway and a router in {network}",
            )
