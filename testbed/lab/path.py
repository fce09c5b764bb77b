"""The physical path between two hosts' adapters, and what it can carry in theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.measure.theory import tcp_goodput_bps

if TYPE_CHECKING:
    from testbed.topology.model import Topology, Uplink


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


def find_path(topology: Topology, a: tuple[str, str], b: tuple[str, str], mtu: int) -> Path | None:
    """The path from vmk `a` to vmk `b`, each a (host, vmk) pair; None if nothing joins them.

    Switches are joined by links and by routers; the network has no loops, so the first path
    found is the only one of its length.
    """
    ends = [_uplink(topology, *a), _uplink(topology, *b)]
    if ends[0] is None or ends[1] is None:
        return None
    neighbours: dict[str, list[tuple[str, int | None]]] = {}
    for link in topology.links:
        here, there = link.ends
        neighbours.setdefault(here, []).append((there, link.rate_bps))
        neighbours.setdefault(there, []).append((here, link.rate_bps))
    for router in topology.routers:
        for leg in router.interfaces:
            neighbours.setdefault(leg.switch, []).append((router.name, None))
            neighbours.setdefault(router.name, []).append((leg.switch, None))
    start, goal = ends[0].switch, ends[1].switch
    rates: list[int | None] = [ends[0].rate_bps, ends[1].rate_bps]
    frontier: list[tuple[tuple[str, ...], list[int | None]]] = [((start,), rates)]
    seen = {start}
    while frontier:
        nodes, rates = frontier.pop(0)
        if nodes[-1] == goal:
            known = [rate for rate in rates if rate is not None]
            return Path(nodes, min(known, default=None), mtu)
        for node, rate in neighbours.get(nodes[-1], []):
            if node not in seen:
                seen.add(node)
                frontier.append(((*nodes, node), [*rates, rate]))
    return None


def _uplink(topology: Topology, host_name: str, vmk_name: str) -> Uplink | None:
    """The vmnic that a vmk's traffic leaves by."""
    host = topology.host(host_name)
    vmk = next(v for v in host.vmks if v.name == vmk_name)
    vswitch = next(v for v in host.vswitches if v.name == vmk.vswitch)
    return next((u for u in host.uplinks if u.name in vswitch.uplinks), None)
