"""Numbers as ranges: VLANs of a trunk, ports of a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.leaf import One
from testbed.topology.policy import GUEST_TAGGING_VLAN, HIGHEST_VLAN
from testbed.topology.vswitches import PortGroup

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.topology.draft import SwitchDraft
    from testbed.topology.policy import Ranges
    from testbed.topology.vswitches import DistributedPortGroup

EVERY_VLAN: Ranges = ((0, HIGHEST_VLAN),)


def merged(pairs: Iterable[tuple[int, int] | None]) -> Ranges:
    """Ranges in ascending order, those that touch or overlap made one."""
    done: list[tuple[int, int]] = []
    for first, last in sorted(pair for pair in pairs if pair is not None):
        if done and first <= done[-1][1] + 1:
            done[-1] = (done[-1][0], max(last, done[-1][1]))
        else:
            done.append((first, last))
    return tuple(done)


def holds(ranges: Ranges | None, number: int) -> bool:
    """Whether a number is in the ranges; None is all numbers."""
    return ranges is None or any(first <= number <= last for first, last in ranges)


def trunk(given: tuple[tuple[int, int] | None, ...] | None) -> Ranges | None:
    """What a link or a NIC carries; None: everything."""
    return None if given is None else merged(given)


def vlan_of(switch: SwitchDraft, portgroup: str) -> int | Ranges | None:
    """A port group's access VLAN, or the ranges of its trunk; None: it is mistaken."""
    if portgroup not in switch.vlans:
        switch.vlans[portgroup] = group_vlan(switch.portgroups[portgroup])
    return switch.vlans[portgroup]


def group_vlan(group: PortGroup | DistributedPortGroup) -> int | Ranges | None:
    """Likewise, of the port group itself."""
    if isinstance(group, PortGroup):
        return EVERY_VLAN if group.vlan == GUEST_TAGGING_VLAN else group.vlan
    if group.vlan is None:
        return 0
    if not group.vlan or None in group.vlan:
        return None
    ranges = merged(group.vlan)
    (first, last), *_ = ranges
    return first if isinstance(group.vlan, One) and first == last else ranges
