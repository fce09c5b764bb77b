"""The physical network: no loops, and an MTU that doesn't narrow along a path."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from testbed.topology.leaves import MAX_MTU

if TYPE_CHECKING:
    from collections.abc import Iterator

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


class _Groups:
    """Switches that are joined, as a union-find."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        """The one that stands for all that are joined with it."""
        parent = self._parent
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    def join(self, a: str, b: str) -> None:
        """Make the groups of both one."""
        self._parent[self.root(a)] = self.root(b)


@dataclass(slots=True)
class _Cables:
    """Who is cabled to whom, without the links that would close a loop.

    `sure` is False when a link has a mistake, so that a cable may only seem to be missing.
    """

    neighbours: dict[str, list[str]]
    groups: _Groups
    sure: bool


def check(draft: Draft) -> None:
    """Report loops, MTUs that narrow along a path, and too many vMotion NICs."""
    cables = _lay_cables(draft)
    for host in draft.file.hosts:
        for vswitch in draft.switches[host]:
            _host_mtus(draft, host, vswitch)
        _nic_mtus(draft, host)
        _vmk_mtus(draft, host)
        _vmotion_nics(draft, host)
    _vmotion_paths(draft, cables)


def _lay_cables(draft: Draft) -> _Cables:
    sure = not {"links", "switches"} & draft.incomplete
    cables = _Cables(defaultdict(list), _Groups(), sure)
    number_of: dict[frozenset[str], int] = {}
    for number, link in enumerate(draft.file.links):
        path: Path = ("links", number, "between")
        if len(link.between) != 2 or None in link.between:
            cables.sure = False
            continue
        a, b = (end or "" for end in link.between)
        cables.sure &= a != b and a in draft.file.switches and b in draft.file.switches
        if a == b:
            message = f"the link joins {a} to itself"
            draft.problems.add(path, message, "name two different switches")
        elif cables.groups.root(a) == cables.groups.root(b):
            way = _way(cables.neighbours, a, b)
            loop = [number_of[frozenset(pair)] for pair in pairwise(way)]
            links = ", ".join(f"links[{n}]" for n in sorted([*loop, number])[:8])
            draft.problems.add(
                path,
                f"{a} - {b} closes a loop with {' - '.join(way[:8])} ({links})",
                "remove one of these links: physical switches run no spanning tree here",
            )
        else:
            cables.groups.join(a, b)
            cables.neighbours[a].append(b)
            cables.neighbours[b].append(a)
            number_of[frozenset((a, b))] = number
    return cables


def _way(neighbours: dict[str, list[str]], start: str, goal: str) -> list[str]:
    """The switches from start to goal, which are joined."""
    before: dict[str, str] = {start: start}
    waiting = deque([start])
    while waiting and goal not in before:
        here = waiting.popleft()
        for there in neighbours.get(here, ()):
            if there not in before:
                before[there] = here
                waiting.append(there)
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


def _vmotion_paths(draft: Draft, cables: _Cables) -> None:
    """Report vMotion vmks of one network that can't reach one another at their MTU."""
    networks: dict[IPNetwork, dict[str, list[_Vmotion]]] = defaultdict(lambda: defaultdict(list))
    for adapter in _vmotion_adapters(draft):
        networks[adapter.network][cables.groups.root(adapter.switch)].append(adapter)
    widths = {name: switch.mtu or MAX_MTU for name, switch in draft.file.switches.items()}
    widest_first = sorted(widths, key=lambda name: -widths[name])
    for network, joined in networks.items():
        first, *others = (adapters[0] for adapters in joined.values())
        for other in others if cables.sure else ():
            draft.problems.add(
                other.path,
                f"{other.label} has no cable to {first.label}, though both are in {network}:"
                f" {other.switch} and {first.switch} are not linked",
                "add a link, or use different networks and a router",
                at_key=True,
            )
        for adapters in joined.values():
            if len({adapter.switch for adapter in adapters}) > 1:
                _narrow(draft, cables, adapters, widths, widest_first)


def _narrow(
    draft: Draft,
    cables: _Cables,
    adapters: list[_Vmotion],
    widths: dict[str, int],
    widest_first: list[str],
) -> None:
    """Report switches that divide adapters with a larger MTU than they have themselves.

    From the largest MTU down, the switches that carry it open; the adapters that send it
    must then be joined by open switches.
    """
    closed = deque(widest_first)
    open_switches: set[str] = set()
    groups = _Groups()
    parts: dict[str, _Vmotion] = {}
    for mtu, level in groupby(sorted(adapters, key=lambda a: -a.mtu), key=lambda a: a.mtu):
        while closed and widths[closed[0]] >= mtu:
            switch = closed.popleft()
            open_switches.add(switch)
            for there in cables.neighbours.get(switch, ()):
                if there in open_switches:
                    groups.join(switch, there)
        before, parts = parts, {}
        for adapter in (*before.values(), *level):
            parts.setdefault(groups.root(adapter.switch), adapter)
        first, *others = parts.values()
        for other in others:
            way = _way(cables.neighbours, first.switch, other.switch)
            narrow = next(s for s in way if widths.get(s, MAX_MTU) < mtu)
            draft.problems.add(
                ("switches", narrow, "mtu"),
                f"MTU {widths[narrow]} of {narrow} narrows the path from {first.label} to"
                f" {other.label}, which send {mtu}",
                f"raise it to {mtu}, or lower the MTU of the two vmks",
            )
        parts = {groups.root(first.switch): first}
