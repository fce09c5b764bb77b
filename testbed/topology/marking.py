"""Marking rules: each marks something, of frames that can be told and can carry it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.problems import shown
from testbed.topology.ranges import group_vlan
from testbed.topology.traffic import SERVICE_TRAFFIC, VM_TRAFFIC

if TYPE_CHECKING:
    from testbed.topology.draft import Draft
    from testbed.topology.problems import Path
    from testbed.topology.vswitches import DistributedPortGroup, DistributedSwitch, MarkingRule

_WITH_PORTS = ("tcp", "udp")
_NO_TAG = "CoS is part of the VLAN tag"


def check(draft: Draft) -> None:
    """Report rules that mark nothing, can match nothing, or put a CoS where no tag is."""
    for name, switch in draft.file.distributed_switches.items():
        path: Path = ("distributed_switches", name)
        for number, rule in enumerate(switch.marking):
            place = (*path, "marking", number)
            _rule(draft, place, rule)
            if rule.cos is not None and _all_untagged(draft, name, switch, rule):
                draft.problems.add(
                    (*place, "cos"),
                    f"the uplinks of {name} send these frames untagged, and {_NO_TAG}",
                    "give the port groups a VLAN, or mark dscp",
                    at_key=True,
                )
        for group, of in switch.portgroups.items():
            for number, rule in enumerate(of.marking):
                place = (*path, "portgroups", group, "marking", number)
                _rule(draft, place, rule)
                if rule.cos is not None and _is_untagged(of):
                    draft.problems.add(
                        (*place, "cos"),
                        f"frames of {shown(group)} leave untagged (VLAN 0), and {_NO_TAG}",
                        "give the port group a VLAN, or mark dscp",
                        at_key=True,
                    )


def _is_untagged(group: DistributedPortGroup) -> bool:
    return group_vlan(group) in (0, ((0, 0),))


def _all_untagged(draft: Draft, name: str, switch: DistributedSwitch, rule: MarkingRule) -> bool:
    """Whether no frame that the rule may mark has a tag."""
    if draft.is_broken("distributed_switches", name):
        return False
    used: set[str] = set()
    for host in draft.file.hosts.values():
        for vmk in host.vmks.values():
            types = {SERVICE_TRAFFIC.get(service or "") for service in vmk.services}
            if rule.traffic is None or rule.traffic in types:
                used.add(vmk.portgroup or "")
    if rule.traffic in (None, VM_TRAFFIC):
        used.update(nic.portgroup or "" for vm in draft.file.vms.values() for nic in vm.nics)
    groups = [group for key, group in switch.portgroups.items() if key in used]
    return all(_is_untagged(group) for group in groups or switch.portgroups.values())


def _rule(draft: Draft, path: Path, rule: MarkingRule) -> None:
    if draft.is_broken(*path):
        return
    if rule.cos is None and rule.dscp is None:
        draft.problems.add(path, "the rule marks nothing", "add cos: 4, dscp: 26 or both")
    for key in ("source_port", "destination_port"):
        if getattr(rule, key) is not None and rule.protocol not in _WITH_PORTS:
            who = "not every protocol has" if rule.protocol is None else f"{rule.protocol} has no"
            draft.problems.add(
                (*path, key),
                f"{who} ports",
                "add protocol: tcp or protocol: udp",
                at_key=True,
            )
    versions = {
        key: net.version for key in ("source", "destination") if (net := getattr(rule, key))
    }
    if len(set(versions.values())) > 1:
        draft.problems.add(
            (*path, "destination"),
            "no frame has an IPv4 address at one end and an IPv6 address at the other",
            "write a rule for each",
        )
    wrong = {"icmp": 6, "icmpv6": 4}.get(rule.protocol or "")
    for key, version in versions.items():
        if version == wrong:
            other = "icmpv6" if wrong == 6 else "icmp"
            draft.problems.add(
                (*path, key),
                f"{rule.protocol} doesn't go to or from IPv{version} addresses",
                f"write protocol: {other}, or another network",
            )
