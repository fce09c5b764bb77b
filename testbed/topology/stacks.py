"""The hosts' TCP/IP stacks and NICs: which vmk carries what, and how it can be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.teams import uplinks_of
from testbed.topology.traffic import SERVICE_TRAFFIC
from testbed.topology.vswitches import DistributedPortGroup, DistributedSwitch

if TYPE_CHECKING:
    from collections.abc import Collection

    from testbed.topology.draft import Draft, SwitchDraft
    from testbed.topology.problems import Path
    from testbed.topology.schema import Vmk

_OWN = ("vmotion", "provisioning")
"""Stacks that carry the service of their name alone; where there is one, no other vmk does."""


def check(draft: Draft) -> None:
    """Report services in the wrong stack, vmks that mix types, and offloads that need others."""
    for host, of in draft.file.hosts.items():
        stacks = {vmk.netstack for vmk in of.vmks.values()}
        for name, vmk in of.vmks.items():
            path: Path = ("hosts", host, "vmks", name)
            if not draft.is_broken(*path):
                _stack(draft, path, vmk, stacks)
                _types(draft, path, host, vmk)
        for vmnic, nic in of.nics.items():
            if nic.offloads.checksum is False and nic.offloads.tso is not False:
                draft.problems.add(
                    ("hosts", host, "nics", vmnic, "offloads", "checksum"),
                    "a NIC that cuts TCP segments (tso) computes their checksums too",
                    "switch tso off as well",
                    at_key=True,
                )


def _stack(draft: Draft, path: Path, vmk: Vmk, stacks: Collection[str | None]) -> None:
    name = path[3]
    if vmk.netstack in _OWN:
        if set(vmk.services) != {vmk.netstack}:
            carried = ", ".join(str(service) for service in vmk.services) or "nothing"
            draft.problems.add(
                (*path, "services"),
                f"{name} is in the {vmk.netstack} stack and carries {carried}",
                f"write services: [{vmk.netstack}], which this stack carries alone",
            )
        return
    for service in vmk.services:
        if service in _OWN and service in stacks:
            draft.problems.add(
                (*path, "services"),
                f"{name} of the default stack carries {service}, but the host has a vmk in the"
                f" {service} stack, which then carries all of it",
                f"remove {service} here, or write netstack: {service}",
            )


def _types(draft: Draft, path: Path, host: str, vmk: Vmk) -> None:
    """Where bandwidth or marks go by system traffic type, a vmk's frames are of one."""
    types = sorted({SERVICE_TRAFFIC[service] for service in vmk.services if service is not None})
    switch = draft.switch_of(host, vmk.portgroup)
    if len(types) < 2 or switch is None or vmk.portgroup is None or vmk.netstack in _OWN:
        return
    why = _told_apart(draft, host, switch, vmk.portgroup)
    if why is not None:
        draft.problems.add(
            (*path, "services"),
            f"{path[3]} carries {' and '.join(types)}, and {why} has to tell them apart",
            "give each of them a vmk of its own",
        )


def _told_apart(draft: Draft, host: str, switch: SwitchDraft, portgroup: str) -> str | None:
    """What has to tell the traffic types of a port group's vmks apart, if anything."""
    group = switch.portgroups[portgroup]
    if isinstance(switch.of, DistributedSwitch):
        rules = list(switch.of.marking)
        if isinstance(group, DistributedPortGroup):
            rules += group.marking
        if switch.of.nioc is not None:
            return f"the Network I/O Control of {switch.name}"
        if any(rule.traffic is not None for rule in rules):
            return f"the marking by traffic in {switch.name}"
    for vmnic in uplinks_of(switch, portgroup):
        nic = draft.nic(host, vmnic)
        if nic is not None and nic.qos:
            return f"the qos of {vmnic}"
    return None
