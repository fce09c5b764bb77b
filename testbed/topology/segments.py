"""Where adapters enter the physical network: the switch, and the VLAN of their frames there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from testbed.topology.ranges import holds, trunk, vlan_of
from testbed.topology.teams import uplinks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress, IPNetwork

    from testbed.topology.draft import Draft, SwitchDraft
    from testbed.topology.fabric import RouterInterface
    from testbed.topology.machines import VmNic
    from testbed.topology.problems import Path
    from testbed.topology.schema import Vmk


@dataclass(frozen=True, slots=True)
class Entry:
    """An adapter at one of the physical switches where its frames enter the network.

    `mtu` is what it sends there; `uplink` the vmnic, "" at a router's interface.
    """

    kind: Literal["vmk", "VM", "router"]
    label: str
    path: Path
    addresses: tuple[IPNetwork, ...]
    gateways: tuple[IPAddress, ...]
    portgroup: str
    switch: str
    vlan: int
    mtu: int | None
    uplink: str = ""
    carried: bool = True
    vmotion: bool = False


def entries(draft: Draft) -> Iterator[Entry]:
    """Every adapter, once for each uplink of its team; those with a mistake are left out."""
    for host in draft.file.hosts:
        yield from _vmks(draft, host)
    for name, vm in draft.file.vms.items():
        for number, nic in enumerate(vm.nics):
            switch = draft.switch_of(vm.host or "", nic.portgroup)
            if switch is not None and vm.host is not None:
                yield from _vm(draft, vm.host, ("vms", name, "nics", number), nic, switch)
    for name, router in draft.file.routers.items():
        for at, legs in router.interfaces.items():
            for number, leg in enumerate(legs):
                path: Path = ("routers", name, "interfaces", at, number)
                if at in draft.file.switches and not draft.is_broken(*path):
                    yield _leg(draft, path, at, leg)


def _vmks(draft: Draft, host: str) -> Iterator[Entry]:
    for name, vmk in draft.file.hosts[host].vmks.items():
        switch = draft.switch_of(host, vmk.portgroup)
        if switch is not None and vmk.portgroup is not None:
            yield from _vmk(draft, host, name, vmk, switch)


def _leg(draft: Draft, path: Path, switch: str, leg: RouterInterface) -> Entry:
    return Entry(
        "router",
        f"router {path[1]}",
        path,
        tuple(a for a in leg.ip if a is not None),
        (),
        "",
        switch,
        leg.vlan or 0,
        draft.file.switches[switch].mtu,
    )


def _vmk(draft: Draft, host: str, name: str, vmk: Vmk, switch: SwitchDraft) -> Iterator[Entry]:
    vlan = vlan_of(switch, vmk.portgroup or "")
    if not isinstance(vlan, int):
        return
    gateways = [*vmk.gateway, *(route.via for route in vmk.routes)]
    for vmnic, at, width, carried in _ways(draft, host, switch, vmk.portgroup or "", vlan):
        yield Entry(
            "vmk",
            f"{name} of {host}",
            ("hosts", host, "vmks", name),
            tuple(a for a in vmk.ip if a is not None),
            tuple(g for g in gateways if g is not None),
            vmk.portgroup or "",
            at,
            vlan,
            _least(vmk.mtu, switch.mtu, width),
            vmnic,
            carried,
            "vmotion" in vmk.services,
        )


def _vm(draft: Draft, host: str, path: Path, nic: VmNic, switch: SwitchDraft) -> Iterator[Entry]:
    vlan = vlan_of(switch, nic.portgroup or "")
    own = vlan if isinstance(vlan, int) else nic.vlan or 0
    if vlan is None:
        return
    for vmnic, at, width, carried in _ways(draft, host, switch, nic.portgroup or "", own):
        yield Entry(
            "VM",
            f"eth{path[3]} of {path[1]}",
            path,
            tuple(a for a in nic.ip if a is not None),
            tuple(g for g in nic.gateway if g is not None),
            nic.portgroup or "",
            at,
            own,
            _least(switch.mtu, width),
            vmnic,
            carried,
        )


def _ways(
    draft: Draft, host: str, switch: SwitchDraft, portgroup: str, vlan: int
) -> Iterator[tuple[str, str, int | None, bool]]:
    """(vmnic, physical switch, MTU, whether its trunk carries the VLAN)."""
    for vmnic in uplinks_of(switch, portgroup):
        nic = draft.nic(host, vmnic)
        if nic is None or nic.switch is None or nic.switch not in draft.file.switches:
            continue
        width = _least(nic.mtu, draft.file.switches[nic.switch].mtu)
        yield vmnic, nic.switch, width, holds(trunk(nic.vlans or None), vlan)


def _least(*mtus: int | None) -> int | None:
    return min((mtu for mtu in mtus if mtu is not None), default=None)
