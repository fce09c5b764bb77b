"""MTUs: none is larger than what carries it, and none narrows along a path of vMotion."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from testbed.topology.cables import Groups
from testbed.topology.leaves import MAX_MTU

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netaddr import IPAddress, IPNetwork

    from testbed.topology.cables import Cables
    from testbed.topology.draft import Draft, SwitchDraft
    from testbed.topology.problems import Path
    from testbed.topology.segments import Entry

_Segment: TypeAlias = "tuple[IPNetwork, int, str]"
"""A network, a VLAN, and switches that are joined."""


def check(
    draft: Draft, cables: Cables, adapters: Sequence[Entry], routers: Mapping[IPAddress, Entry]
) -> None:
    """Report MTUs that don't fit into what carries them, and paths of vMotion that narrow.

    Args:
        draft: the file.
        cables: between the physical switches.
        adapters: where adapters enter the physical network.
        routers: the router's interface of each of their addresses.
    """
    for host in draft.file.hosts:
        for vswitch in draft.switches[host]:
            _uplinks(draft, host, vswitch)
        _nics(draft, host)
        _vmks(draft, host)
    widths = {name: switch.mtu or MAX_MTU for name, switch in draft.file.switches.items()}
    widest_first = sorted(widths, key=lambda name: -widths[name])
    for entries in _segments(draft, cables, adapters, routers).values():
        if len({entry.switch for entry in entries}) > 1:
            _narrow(draft, cables, entries, widths, widest_first)


def _uplinks(draft: Draft, host: str, vswitch: SwitchDraft) -> None:
    """A virtual switch's MTU fits its vmnics."""
    for vmnic in vswitch.uplinks:
        nic = draft.nic(host, vmnic)
        if nic is None or nic.mtu is None or vswitch.mtu is None or vswitch.mtu <= nic.mtu:
            continue
        draft.problems.add(
            ("hosts", host, "nics", vmnic, "mtu"),
            f"MTU {nic.mtu} of {vmnic} is narrower than {vswitch.mtu} of {vswitch.name},"
            " whose uplink it is",
            f"raise it to {vswitch.mtu}, or lower that of {vswitch.name}",
        )


def _nics(draft: Draft, host: str) -> None:
    """A vmnic's MTU fits the physical switch."""
    for vmnic, nic in draft.file.hosts[host].nics.items():
        switch = draft.file.switches.get(nic.switch or "")
        if switch is None or switch.mtu is None or nic.mtu is None or nic.mtu <= switch.mtu:
            continue
        draft.problems.add(
            ("hosts", host, "nics", vmnic, "mtu"),
            f"MTU {nic.mtu} is more than {switch.mtu} of the physical switch {nic.switch}",
            f"raise that of {nic.switch} to {nic.mtu}, or lower this",
        )


def _vmks(draft: Draft, host: str) -> None:
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


def _segments(
    draft: Draft, cables: Cables, adapters: Sequence[Entry], routers: Mapping[IPAddress, Entry]
) -> dict[_Segment, list[Entry]]:
    """The adapters of vMotion by segment, and the routers' interfaces that are their gateways.

    A router sends "too big" for what it can't forward, but can't for what never reaches it.
    """
    segments: dict[_Segment, list[Entry]] = defaultdict(list)
    for entry in adapters:
        if not entry.vmotion or entry.mtu is None:
            continue
        for address in entry.addresses:
            segment = (address.cidr, entry.vlan, cables.groups.root(entry.switch))
            segments[segment].append(entry)
            for gateway in entry.gateways:
                leg = routers.get(gateway) if gateway in address else None
                if leg is None or leg.mtu is None or not _is_same(cables, leg, entry):
                    continue
                if leg.mtu >= entry.mtu:
                    segments[segment].append(replace(leg, mtu=entry.mtu))
                else:
                    draft.problems.add(
                        ("switches", leg.switch, "mtu"),
                        f"MTU {leg.mtu} of {leg.switch} narrows the path from {entry.label},"
                        f" which sends {entry.mtu}, to its gateway {gateway}, {leg.label}",
                        f"raise it to {entry.mtu}, or lower the MTU of the vmk",
                    )
    return segments


def _is_same(cables: Cables, leg: Entry, entry: Entry) -> bool:
    """Whether both are in one segment, as they should be."""
    joined = cables.groups.root(leg.switch) == cables.groups.root(entry.switch)
    return joined and leg.vlan == entry.vlan


def _narrow(
    draft: Draft,
    cables: Cables,
    entries: list[Entry],
    widths: dict[str, int],
    widest_first: list[str],
) -> None:
    """Report switches that divide adapters with a larger MTU than they have themselves.

    From the largest MTU down, the switches that carry it open; the adapters that send it
    must then be joined by open switches.
    """
    closed = deque(widest_first)
    open_switches: set[str] = set()
    groups = Groups()
    parts: dict[str, Entry] = {}
    for mtu, level in groupby(sorted(entries, key=_width), key=_width):
        while closed and widths[closed[0]] >= -mtu:
            switch = closed.popleft()
            open_switches.add(switch)
            for there in cables.neighbours.get(switch, ()):
                if there in open_switches:
                    groups.join(switch, there)
        before, parts = parts, {}
        for entry in (*before.values(), *level):
            parts.setdefault(groups.root(entry.switch), entry)
        first, *others = parts.values()
        for other in others:
            way = cables.way(first.switch, other.switch)
            narrow = next(s for s in way if widths.get(s, MAX_MTU) < -mtu)
            path: Path = ("switches", narrow, "mtu")
            draft.problems.add(
                path,
                f"MTU {widths[narrow]} of {narrow} narrows the path from {first.label} to"
                f" {other.label}, which send {-mtu}",
                f"raise it to {-mtu}, or lower the MTU of the vmks",
            )
        parts = {groups.root(first.switch): first}


def _width(entry: Entry) -> int:
    """The widest comes first."""
    return -(entry.mtu or 0)
