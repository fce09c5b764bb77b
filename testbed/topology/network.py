"""The physical network: no loops, and an MTU that doesn't narrow along a path."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netaddr import IPNetwork

    from testbed.topology.draft import Draft, SwitchDraft
    from testbed.topology.problems import Path
    from testbed.topology.schema import Vmk

# vSphere's configuration maximums for vMotion NICs of one host
MAX_1G_VMOTION_NICS, MAX_10G_VMOTION_NICS = 16, 4
_TEN_GBIT = 10**10


@dataclass(frozen=True, slots=True)
class _Vmotion:
    """A vMotion vmk and where it enters the physical network; `mtu` is what it sends."""

    label: str
    path: Path
    switch: str
    mtu: int
    network: IPNetwork


def check(draft: Draft) -> None:
    """Report loops, MTUs that narrow along a path, and too many vMotion NICs."""
    neighbours = _cables(draft)
    for host in draft.file.hosts:
        for vswitch in draft.switches[host]:
            _host_mtus(draft, host, vswitch)
        _nic_mtus(draft, host)
        _vmk_mtus(draft, host)
        _vmotion_nics(draft, host)
    _vmotion_paths(draft, neighbours)


def _cables(draft: Draft) -> dict[str, list[str]]:
    """Who is cabled to whom, without the links that close a loop: those are reported."""
    neighbours: dict[str, list[str]] = defaultdict(list)
    number_of: dict[frozenset[str], int] = {}
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := group.setdefault(name, name)) != name:
            group[name] = group[parent]
            name = group[name]
        return name

    for number, link in enumerate(draft.file.links):
        ends = [end for end in link.between if end is not None]
        if len(ends) != 2 or draft.is_broken("links", number):
            continue
        a, b = ends
        path: Path = ("links", number, "between")
        if a == b:
            message = f"the link joins {a} to itself"
            draft.problems.add(path, message, "name two different switches")
        elif root(a) == root(b):
            way = _way(neighbours, a, b, lambda _: True)
            loop = [number_of[frozenset(pair)] for pair in pairwise(way)]
            links = ", ".join(f"links[{n}]" for n in sorted([*loop, number])[:8])
            draft.problems.add(
                path,
                f"{a} - {b} closes a loop with {' - '.join(way[:8])} ({links})",
                "remove one of these links: physical switches run no spanning tree here",
            )
        else:
            group[root(a)] = root(b)
            neighbours[a].append(b)
            neighbours[b].append(a)
            number_of[frozenset((a, b))] = number
    return neighbours


def _way(
    neighbours: dict[str, list[str]], start: str, goal: str, passes: Callable[[str], bool]
) -> list[str]:
    """The switches from start to goal by those that let pass; empty if there is no way."""
    before: dict[str, str] = {start: start}
    waiting = deque([start])
    while waiting and goal not in before:
        here = waiting.popleft()
        for there in neighbours.get(here, ()):
            if there not in before and passes(there):
                before[there] = here
                waiting.append(there)
    if goal not in before:
        return []
    way = [goal]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


def _host_mtus(draft: Draft, host: str, vswitch: SwitchDraft) -> None:
    """A virtual switch's MTU fits its vmnics, and theirs the physical switch."""
    for vmnic in vswitch.uplinks:
        nic = draft.nic(host, vmnic)
        if nic is None:
            continue
        path: Path = ("hosts", host, "nics", vmnic, "mtu")
        if nic.mtu is not None and vswitch.mtu is not None and vswitch.mtu > nic.mtu:
            draft.problems.add(
                path,
                f"MTU {nic.mtu} of {vmnic} is narrower than {vswitch.mtu} of {vswitch.name},"
                " whose uplink it is",
                f"raise it to {vswitch.mtu}, or lower that of {vswitch.name}",
            )


def _nic_mtus(draft: Draft, host: str) -> None:
    for vmnic, nic in draft.file.hosts[host].nics.items():
        switch = draft.file.switches.get(nic.switch or "")
        if switch is None or switch.mtu is None or nic.mtu is None or nic.mtu <= switch.mtu:
            continue
        draft.problems.add(
            ("hosts", host, "nics", vmnic, "mtu"),
            f"MTU {nic.mtu} is more than {switch.mtu} of the physical switch {nic.switch}",
            f"raise that of {nic.switch} to {nic.mtu}, or lower this",
        )


def _vmk_mtus(draft: Draft, host: str) -> None:
    for vmk, adapter in draft.file.hosts[host].vmks.items():
        vswitch = draft.switch_of(host, adapter.portgroup)
        if vswitch is None or vswitch.mtu is None or adapter.mtu is None:
            continue
        if adapter.mtu > vswitch.mtu:
            draft.problems.add(
                ("hosts", host, "vmks", vmk, "mtu"),
                f"MTU {adapter.mtu} is more than {vswitch.mtu} of its virtual switch"
                f" {vswitch.name}",
                f"raise that of {vswitch.name} to {adapter.mtu}, or lower this",
            )


def _vmotion_nics(draft: Draft, host: str) -> None:
    vmks = [v for v in draft.file.hosts[host].vmks.values() if "vmotion" in v.services]
    used = {
        vmnic
        for vmk in vmks
        if (vswitch := draft.switch_of(host, vmk.portgroup)) is not None
        for vmnic in vswitch.uplinks
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


def _vmotion_adapters(draft: Draft) -> Iterator[_Vmotion]:
    for host, of in draft.file.hosts.items():
        for name, vmk in of.vmks.items():
            if "vmotion" in vmk.services:
                yield from _entries(draft, host, name, vmk)


def _entries(draft: Draft, host: str, name: str, vmk: Vmk) -> Iterator[_Vmotion]:
    vswitch = draft.switch_of(host, vmk.portgroup)
    if vswitch is None or vmk.mtu is None:
        return
    for vmnic in vswitch.uplinks[:1]:
        nic = draft.nic(host, vmnic)
        if nic is None or nic.switch not in draft.file.switches:
            return
        # What the ways in narrow is reported there: here only what lies between counts.
        at_switch = draft.file.switches[nic.switch].mtu
        mtu = min(m for m in (vmk.mtu, vswitch.mtu, nic.mtu, at_switch) if m is not None)
        for address in vmk.ip:
            if address is not None:
                path = ("hosts", host, "vmks", name)
                yield _Vmotion(f"{name} of {host}", path, nic.switch, mtu, address.cidr)


def _vmotion_paths(draft: Draft, neighbours: dict[str, list[str]]) -> None:
    """Report vMotion vmks of one network that can't reach one another at their MTU."""
    groups: dict[IPNetwork, list[_Vmotion]] = defaultdict(list)
    for adapter in _vmotion_adapters(draft):
        groups[adapter.network].append(adapter)
    unsure = any(draft.is_broken("links", n) for n in range(len(draft.file.links)))
    unsure |= bool({"links", "switches"} & draft.incomplete)
    for network, adapters in groups.items():
        joined = _join(neighbours, adapters, lambda _: True)
        if len(joined) > 1 and not unsure:
            first, second = joined[0][0], joined[1][0]
            draft.problems.add(
                second.path,
                f"{second.label} has no cable to {first.label}, though both are in {network}:"
                f" {second.switch} and {first.switch} are not linked",
                "add a link, or use different networks and a router",
                at_key=True,
            )
        for group in joined:
            _narrow(draft, neighbours, group)


def _narrow(draft: Draft, neighbours: dict[str, list[str]], adapters: list[_Vmotion]) -> None:
    """Report the switches that divide adapters with a larger MTU than the switches have."""
    for mtu in sorted({a.mtu for a in adapters}):

        def carries(switch: str, mtu: int = mtu) -> bool:
            known = draft.file.switches.get(switch)
            return known is None or known.mtu is None or known.mtu >= mtu

        wide = [a for a in adapters if a.mtu >= mtu]
        parts = _join(neighbours, wide, carries)
        for part in parts[1:]:
            first, other = parts[0][0], part[0]
            way = _way(neighbours, first.switch, other.switch, lambda _: True)
            narrow = next((s for s in way if not carries(s)), None)
            if narrow is None:
                continue
            known = draft.file.switches[narrow].mtu
            draft.problems.add(
                ("switches", narrow, "mtu"),
                f"MTU {known} of {narrow} narrows the path from {first.label} to {other.label},"
                f" which send {mtu}",
                f"raise it to {mtu}, or lower the MTU of the two vmks",
            )


def _join(
    neighbours: dict[str, list[str]], adapters: list[_Vmotion], passes: Callable[[str], bool]
) -> list[list[_Vmotion]]:
    """The adapters in groups, each of which the passing switches connect."""
    part_of: dict[str, int] = {}
    parts: list[list[_Vmotion]] = []
    for adapter in adapters:
        if adapter.switch not in part_of:
            part_of[adapter.switch] = len(parts)
            parts.append([])
            waiting = [adapter.switch]
            while waiting:
                for there in neighbours.get(waiting.pop(), ()):
                    if there not in part_of and passes(there):
                        part_of[there] = len(parts) - 1
                        waiting.append(there)
        parts[part_of[adapter.switch]].append(adapter)
    return parts
