"""The physical path between two hosts' adapters, and what it can carry in theory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from testbed.measure.theory import (
    ETHERNET_HEADER_BYTES,
    ETHERNET_OVERHEAD_BYTES,
    tcp_goodput_bps,
)
from testbed.plan.hosts import uplink_classes, vmk_traffic
from testbed.plan.shaping import htb_rate_bytes_per_s
from testbed.plan.teaming import choose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netaddr import IPNetwork

    from testbed.topology.model import RouterInterface, Topology, Uplink

Walk: TypeAlias = tuple[tuple[str, ...], tuple[tuple[int | None, int], ...]]
"""Nodes passed, and (rate, MTU) of the links between them."""

End: TypeAlias = "tuple[str, str, IPNetwork]"
"""A host, a vmk of it, and the vmk's address."""


@dataclass(frozen=True, slots=True)
class Path:
    """Physical switches and routers passed, and (rate, MTU) of each link that has a rate.

    `mtu` is that of the packets, which may be smaller than the links'. `uplinks` are the two ends'
    vmnics.
    """

    nodes: tuple[str, ...]
    links: tuple[tuple[int, int], ...]
    mtu: int
    uplinks: tuple[str, str] = field(default=("", ""), compare=False)

    @property
    def rate_bps(self) -> int | None:
        """The slowest link's; None if none is shaped."""
        return min((rate_bps for rate_bps, _ in self.links), default=None)

    def goodput_bps(self, ip_version: int) -> int | None:
        """TCP payload per second that the path carries, in theory.

        With packets as large as the links', what Ethernet carries; smaller ones get a little
        more, as a link is derated for its own MTU (docs/limits.md).
        """
        each = (
            tcp_goodput_bps(
                rate_bps * (mtu + ETHERNET_HEADER_BYTES) / (mtu + ETHERNET_OVERHEAD_BYTES),
                self.mtu,
                ip_version,
                ETHERNET_HEADER_BYTES,
            )
            for rate_bps, mtu in self.links
        )
        least = min(each, default=None)
        return None if least is None else int(least)


def find_path(
    topology: Topology,
    a: End,
    b: End,
    mtu: int,
    pinned: Mapping[tuple[str, str], str | None] | None = None,
) -> Path | None:
    """The way that frames take from vmk `a` to vmk `b`; None if it isn't known.

    Within one network frames take the links alone; between two, they take the router that
    has a leg in both (a chain of routers isn't followed).

    Args:
        topology: the lab's.
        a: where the data comes from.
        b: where it goes to.
        mtu: of the packets.
        pinned: the vmnics that (host, vmk) leave by now; without one, as if all were alive.
    """
    now = pinned or {}
    uplinks = [_uplink(topology, *end[:2], now.get(end[:2]), sends=end is a) for end in (a, b)]
    if uplinks[0] is None or uplinks[1] is None:
        return None
    start, goal = uplinks[0][0].switch, uplinks[1][0].switch
    found = (
        _walk(topology, start, goal)
        if a[2].cidr == b[2].cidr
        else _routed(topology, (start, a[2]), (goal, b[2]))
    )
    if found is None:
        return None
    nodes, links = found
    links += tuple(
        (rate_bps, uplink[0].mtu) for uplink in uplinks if uplink for rate_bps in uplink[1]
    )
    shaped = tuple((rate_bps, its_mtu) for rate_bps, its_mtu in links if rate_bps is not None)
    return Path(nodes, shaped, mtu, (uplinks[0][0].name, uplinks[1][0].name))


def _routed(
    topology: Topology, start: tuple[str, IPNetwork], goal: tuple[str, IPNetwork]
) -> Walk | None:
    """Over the first router with a leg in both networks."""
    for router in topology.routers:
        near, far = (
            next((leg.switch for leg in router.interfaces if _is_in(leg, end[1])), None)
            for end in (start, goal)
        )
        if near is None or far is None:
            continue
        there, back = _walk(topology, start[0], near), _walk(topology, far, goal[0])
        if there is not None and back is not None:
            return (*there[0], router.name, *back[0]), (*there[1], *back[1])
    return None


def _is_in(leg: RouterInterface, network: IPNetwork) -> bool:
    return any(address.cidr == network.cidr for address in leg.addresses)


def _walk(topology: Topology, start: str, goal: str) -> Walk | None:
    """The switches from one to another over links; there are no loops."""
    neighbours: dict[str, list[tuple[str, tuple[int | None, int]]]] = {}
    for link in topology.links:
        here, there = link.ends
        neighbours.setdefault(here, []).append((there, (link.rate_bps, link.mtu)))
        neighbours.setdefault(there, []).append((here, (link.rate_bps, link.mtu)))
    frontier: list[Walk] = [((start,), ())]
    while frontier:
        nodes, links = frontier.pop()
        if nodes[-1] == goal:
            return nodes, links
        frontier += [
            ((*nodes, node), (*links, link))
            for node, link in neighbours.get(nodes[-1], [])
            if node not in nodes
        ]
    return None


def _uplink(
    topology: Topology, host_name: str, vmk_name: str, pinned: str | None, *, sends: bool
) -> tuple[Uplink, tuple[int | None, ...]] | None:
    """The vmnic of a vmk's traffic, and the rates that data may have there.

    Those are the vmnic's, and for who sends what its traffic type and its port group allow; for
    who receives what its port group lets in.
    """
    host = topology.host(host_name)
    number, vmk = next((n, v) for n, v in enumerate(host.vmks) if v.name == vmk_name)
    vswitch = next(v for v in host.vswitches if v.name == vmk.vswitch)
    group = vswitch.portgroup(vmk.portgroup)
    name = pinned or choose(group.teaming, number, vmk.mac, vswitch.uplinks)
    uplink = next((u for u in host.uplinks if u.name == name), None)
    if uplink is None:
        return None
    allowed = []
    if sends and uplink.rate_bps is not None:
        traffic = vmk_traffic(vmk)
        full = htb_rate_bytes_per_s(uplink.rate_bps, uplink.mtu)
        allowed = [
            uplink.rate_bps * one.ceil_bytes_per_s // full
            for one in uplink_classes(uplink, vswitch, topology)
            if one.name == traffic
        ]
    shaping = group.outgoing if sends else group.incoming
    if shaping is not None:
        allowed.append(shaping.average_bps)
    return uplink, (uplink.rate_bps, *allowed)
