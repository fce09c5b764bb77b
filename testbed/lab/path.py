"""The physical path between two hosts' adapters, and what it can carry in theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from testbed.measure.theory import tcp_goodput_bps

if TYPE_CHECKING:
    from netaddr import IPNetwork

    from testbed.topology.model import RouterInterface, Topology, Uplink

Walk: TypeAlias = tuple[tuple[str, ...], tuple[int | None, ...]]
"""Nodes passed, and the rates of the links between them."""

End: TypeAlias = "tuple[str, str, IPNetwork]"
"""A host, a vmk of it, and the vmk's address."""


@dataclass(frozen=True, slots=True)
class Path:
    """Physical switches and routers passed, and the slowest rate; None is unshaped."""

    nodes: tuple[str, ...]
    rate_bps: int | None
    mtu: int

    def goodput_bps(self, ip_version: int) -> int | None:
        """TCP payload per second that the slowest link carries, in theory."""
        if self.rate_bps is None:
            return None
        return int(tcp_goodput_bps(self.rate_bps, self.mtu, ip_version))


def find_path(topology: Topology, a: End, b: End, mtu: int) -> Path | None:
    """The way that frames take from vmk `a` to vmk `b`; None if it isn't known.

    Within one network frames take the links alone; between two, they take the router that
    has a leg in both (a chain of routers isn't followed).
    """
    uplinks = [_uplink(topology, *end[:2]) for end in (a, b)]
    if uplinks[0] is None or uplinks[1] is None:
        return None
    start, goal = uplinks[0].switch, uplinks[1].switch
    found = (
        _walk(topology, start, goal)
        if a[2].cidr == b[2].cidr
        else _routed(topology, (start, a[2]), (goal, b[2]))
    )
    if found is None:
        return None
    nodes, rates = found
    known = [rate for rate in (*rates, *(u.rate_bps for u in uplinks if u)) if rate is not None]
    return Path(nodes, min(known, default=None), mtu)


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
    """The switches from one to another over links, with the links' rates; there are no loops."""
    neighbours: dict[str, list[tuple[str, int | None]]] = {}
    for link in topology.links:
        here, there = link.ends
        neighbours.setdefault(here, []).append((there, link.rate_bps))
        neighbours.setdefault(there, []).append((here, link.rate_bps))
    frontier: list[Walk] = [((start,), ())]
    while frontier:
        nodes, rates = frontier.pop()
        if nodes[-1] == goal:
            return nodes, rates
        frontier += [
            ((*nodes, node), (*rates, rate))
            for node, rate in neighbours.get(nodes[-1], [])
            if node not in nodes
        ]
    return None


def _uplink(topology: Topology, host_name: str, vmk_name: str) -> Uplink | None:
    """The vmnic that a vmk's traffic leaves by."""
    host = topology.host(host_name)
    vmk = next(v for v in host.vmks if v.name == vmk_name)
    vswitch = next(v for v in host.vswitches if v.name == vmk.vswitch)
    return next((u for u in host.uplinks if u.name in vswitch.uplinks), None)
