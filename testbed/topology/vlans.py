"""VLANs at hosts: who tags, and whether the trunks of the physical switches carry them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from testbed.topology.problems import shown
from testbed.topology.ranges import holds, trunk, vlan_of
from testbed.topology.teams import uplinks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.topology.draft import Draft, SwitchDraft
    from testbed.topology.machines import VmNic
    from testbed.topology.policy import Ranges
    from testbed.topology.problems import Path

_MAX_NAMED = 8

_Use: TypeAlias = tuple[str, int]
"""A port group, and the VLAN of a guest that tags its frames itself."""


def check(draft: Draft) -> None:
    """Report VLANs that a port group can't have, an adapter can't use, or a trunk lacks."""
    for name, distributed in draft.file.distributed_switches.items():
        for group, of in distributed.portgroups.items():
            if of.vlan == () and not draft.is_broken(
                "distributed_switches", name, "portgroups", group
            ):
                draft.problems.add(
                    ("distributed_switches", name, "portgroups", group, "vlan"),
                    "a trunk without any VLAN carries nothing",
                    "name some, or write vlan: 0 for untagged frames",
                )
    movers = _movers(draft)
    for host, of_host in draft.file.hosts.items():
        for vmnic, nic in of_host.nics.items():
            if nic.vlans == () and not draft.is_broken("hosts", host, "nics", vmnic):
                draft.problems.add(
                    ("hosts", host, "nics", vmnic, "vlans"),
                    "the switch's port carries no VLAN at all",
                    "name some, or leave vlans out to carry all",
                )
        _vmks(draft, host)
        _trunks(draft, host, movers.get(host, set()))
    for name, vm in draft.file.vms.items():
        for number, adapter in enumerate(vm.nics):
            switch = draft.switch_of(vm.host or "", adapter.portgroup)
            if switch is not None:
                _guest(draft, ("vms", name, "nics", number), adapter, switch)


def _vmks(draft: Draft, host: str) -> None:
    for vmk, adapter in draft.file.hosts[host].vmks.items():
        switch = draft.switch_of(host, adapter.portgroup)
        if switch is None or adapter.portgroup is None:
            continue
        if isinstance(vlan_of(switch, adapter.portgroup), tuple):
            draft.problems.add(
                ("hosts", host, "vmks", vmk, "portgroup"),
                f"in {shown(adapter.portgroup)} guests tag their frames themselves, and a vmk"
                " tags nothing",
                "use a port group with one VLAN",
            )


def _guest(draft: Draft, path: Path, nic: VmNic, switch: SwitchDraft) -> None:
    vlan = vlan_of(switch, nic.portgroup or "")
    if vlan is None or draft.is_broken(*path):
        return
    if isinstance(vlan, int):
        if nic.vlan is not None:
            draft.problems.add(
                (*path, "vlan"),
                f"the port group {shown(nic.portgroup)} tags the frames (VLAN {vlan}), so the"
                " guest doesn't",
                "remove vlan here, or use a port group with guest tagging (4095) or a trunk",
                at_key=True,
            )
    elif not holds(vlan, nic.vlan or 0):
        what = (
            f"VLAN {nic.vlan}" if nic.vlan else "untagged frames, which a guest without vlan sends"
        )
        draft.problems.add(
            path if nic.vlan is None else (*path, "vlan"),
            f"the trunk of port group {shown(nic.portgroup)} doesn't carry {what}",
            f"write vlan: N, one of {_text(vlan)}",
        )


def _text(ranges: Ranges) -> str:
    """Ranges as the file writes them."""
    each = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    more = f" and {len(each) - _MAX_NAMED} more" if len(each) > _MAX_NAMED else ""
    return ", ".join(each[:_MAX_NAMED]) + more


def _movers(draft: Draft) -> dict[str, set[_Use]]:
    """By host: what VMs use that run there, or may come, as it mounts their datastore."""
    found: dict[str, set[_Use]] = defaultdict(set)
    stored: dict[str, set[_Use]] = defaultdict(set)
    for vm in draft.file.vms.values():
        uses = {(nic.portgroup, nic.vlan or 0) for nic in vm.nics if nic.portgroup is not None}
        found[vm.host or ""] |= uses
        stored[vm.datastore or ""] |= uses
    for name, store in draft.file.datastores.items():
        for host in store.hosts:
            found[host or ""] |= stored[name]
    return found


def _needed(draft: Draft, host: str, movers: set[_Use]) -> Iterator[tuple[str, int, str]]:
    """(vmnic, VLAN, port group) of every port group in use on a host."""
    groups = {(vmk.portgroup or "", 0) for vmk in draft.file.hosts[host].vmks.values()}
    for portgroup, tag in sorted(groups | movers):
        switch = draft.switch_of(host, portgroup)
        vlan = None if switch is None else vlan_of(switch, portgroup)
        if switch is None or vlan is None:
            continue
        if isinstance(vlan, tuple) and not holds(vlan, tag):
            continue  # told at the adapter
        for vmnic in uplinks_of(switch, portgroup):
            yield vmnic, vlan if isinstance(vlan, int) else tag, portgroup


def _trunks(draft: Draft, host: str, movers: set[_Use]) -> None:
    lacking: dict[str, dict[int, str]] = defaultdict(dict)
    carried = {
        vmnic: trunk(nic.vlans)
        for vmnic, nic in draft.file.hosts[host].nics.items()
        if nic.vlans and not draft.is_broken("hosts", host, "nics", vmnic)
    }
    for vmnic, vlan, portgroup in _needed(draft, host, movers) if carried else ():
        if vmnic in carried and not holds(carried[vmnic], vlan):
            lacking[vmnic].setdefault(vlan, portgroup)
    for vmnic, vlans in lacking.items():
        some = [*vlans.items()][:_MAX_NAMED]
        named = ", ".join(
            (f"VLAN {vlan}" if vlan else "untagged frames") + f" of port group {group}"
            for vlan, group in some
        )
        draft.problems.add(
            ("hosts", host, "nics", vmnic, "vlans"),
            f"the trunk of {vmnic} doesn't carry {named}, whose uplink it is",
            f"add {', '.join(str(vlan) for vlan, _ in some)} to its vlans",
        )
