"""A file without mistakes into the topology that the lab is built from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

from testbed.guest.specification import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES
from testbed.topology import model, policies, policy, workloads
from testbed.topology.capacity import reserved_bytes, resident_bytes
from testbed.topology.policies import scaled
from testbed.topology.ranges import trunk
from testbed.topology.sizes import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from fractions import Fraction

    from testbed.topology.draft import Draft
    from testbed.topology.machines import Vm, VmNic

T = TypeVar("T")

# VMware's range for addresses set by hand: it can't collide with what vCenter generates
_VMWARE_MAC, _VMWARE_MACS = 0x00_50_56_00_00_00, 2**22
_LOCAL_MAC, _LOCAL_MACS = 0x02_00_00_00_00_00, 2**40


def _known(value: T | None) -> T:
    """A value that only a mistake leaves unknown, after the mistakes have been raised."""
    assert value is not None
    return value


def _all_known(values: tuple[T | None, ...]) -> tuple[T, ...]:
    return tuple(_known(value) for value in values)


class _Macs:
    """Addresses for the adapters that the file gives none, the same on every run."""

    def __init__(self, draft: Draft) -> None:
        self._lab = draft.file.name
        self._given: dict[tuple[str, str], str] = {}
        wanted: list[tuple[str, str, bool]] = []
        for node, adapter, virtual, mac in _adapters(draft):
            if mac is not None:
                self._given[node, adapter] = mac
            else:
                wanted.append((node, adapter, virtual))
        taken = set(self._given.values())
        for node, adapter, virtual in sorted(wanted):
            mac = self._free(node, adapter, virtual, taken)
            taken.add(mac)
            self._given[node, adapter] = mac

    def of(self, node: str, adapter: str) -> str:
        return self._given[node, adapter]

    def _free(self, node: str, adapter: str, virtual: bool, taken: set[str]) -> str:
        first, count = (_VMWARE_MAC, _VMWARE_MACS) if virtual else (_LOCAL_MAC, _LOCAL_MACS)
        attempt = 0
        while True:
            name = "\0".join((self._lab, node, adapter, str(attempt)))
            number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count
            mac = (first + number).to_bytes(6, "big").hex(":")
            if mac not in taken:
                return mac
            attempt += 1


def _adapters(draft: Draft) -> Iterator[tuple[str, str, bool, str | None]]:
    """(node, adapter, whether it is virtual, its MAC address if given)."""
    for name, router in draft.file.routers.items():
        for switch, legs in router.interfaces.items():
            for leg in legs:
                yield name, leg_name(switch, leg.vlan), False, None
    for name, host in draft.file.hosts.items():
        for vmnic, nic in host.nics.items():
            yield name, vmnic, False, nic.mac
        for vmk, adapter in host.vmks.items():
            yield name, vmk, True, adapter.mac
    for name, vm in draft.file.vms.items():
        for number, eth in enumerate(vm.nics):
            yield name, f"eth{number}", True, eth.mac


def resolve(draft: Draft, text: str) -> model.Topology:
    """The topology of a draft in which no mistake was found."""
    file = draft.file
    scale = _known(file.scale)
    macs = _Macs(draft)
    vswitches = _vswitches(draft, scale)
    mtu = {name: _known(switch.mtu) for name, switch in file.switches.items()}
    divided, resident = _divided(draft), resident_bytes(draft, scale)
    return model.Topology(
        name=file.name,
        scale=scale,
        profile=_known(draft.behaviour).lab.scaled(scale),
        sites=tuple(file.sites),
        switches=tuple(
            model.PhysicalSwitch(name, switch.site, mtu[name], policies.queues(switch))
            for name, switch in file.switches.items()
        ),
        routers=tuple(
            model.Router(
                name,
                tuple(
                    model.RouterInterface(
                        name=leg_name(switch, leg.vlan),
                        switch=switch,
                        addresses=_all_known(leg.ip),
                        mtu=mtu[switch],
                        mac=macs.of(name, leg_name(switch, leg.vlan)),
                        vlan=leg.vlan,
                    )
                    for switch, legs in router.interfaces.items()
                    for leg in legs
                ),
            )
            for name, router in file.routers.items()
        ),
        links=tuple(
            model.PhysicalLink(
                ends=(a, b),
                rate_bps=scaled(link.rate, scale),
                mtu=min(mtu[a], mtu[b]),
                there=policies.impairment(link, a, first=True),
                back=policies.impairment(link, b, first=False),
                vlans=trunk(link.vlans),
            )
            for link in file.links
            for a, b in [_all_known(link.between)]
        ),
        datastores=tuple(
            model.Datastore(name, tuple(dict.fromkeys(_all_known(store.hosts))))
            for name, store in file.datastores.items()
        ),
        hosts=tuple(_host(draft, name, macs, vswitches) for name in file.hosts),
        vms=tuple(_vm(draft, name, macs, divided, resident[name]) for name in file.vms),
        text=text,
        file=draft.problems.file,
        traces=tuple(sorted(draft.traces.items())),
    )


def leg_name(switch: str, vlan: int | None) -> str:
    """The name of a router's interface."""
    return switch if vlan is None else f"{switch}.{vlan}"


def _vswitches(draft: Draft, scale: Fraction) -> dict[int, model.VSwitch]:
    """By the identity of the draft's, which hosts share that join a switch alike."""
    drafts = {id(switch): switch for of in draft.switches.values() for switch in of}
    return {
        key: model.VSwitch(
            name=of.name,
            kind=of.kind,
            mtu=_known(of.mtu),
            uplinks=of.uplinks,
            portgroups=tuple(policies.port_group(of, group, scale) for group in of.portgroups),
            nioc=policies.nioc_of(of, scale),
            marking=policies.switch_marking(of),
        )
        for key, of in drafts.items()
    }


def _host(draft: Draft, name: str, macs: _Macs, vswitches: dict[int, model.VSwitch]) -> model.Host:
    host, scale = draft.file.hosts[name], _known(draft.file.scale)
    return model.Host(
        name=name,
        cores=_known(host.cpu.cores),
        mhz=None if host.cpu.mhz is None else float(host.cpu.mhz * scale),
        profile=_known(draft.behaviour).of(name).scaled(scale),
        memory_bytes=int(_known(host.memory) * scale),
        uplinks=tuple(
            model.Uplink(
                vmnic,
                _known(nic.switch),
                scaled(nic.rate, scale),
                _known(nic.mtu),
                macs.of(name, vmnic),
                vlans=trunk(nic.vlans),
                qos=policies.nic_shares(nic),
                offloads=policies.offloads(nic),
                rings=policy.Rings(nic.rings.tx, nic.rings.rx),
            )
            for vmnic, nic in host.nics.items()
        ),
        vswitches=tuple(vswitches[id(switch)] for switch in draft.switches[name]),
        vmks=tuple(
            model.VmkernelAdapter(
                name=vmk,
                vswitch=_known(draft.switch_of(name, of.portgroup)).name,
                portgroup=_known(of.portgroup),
                addresses=_all_known(of.ip),
                gateways=_all_known(of.gateway),
                services=frozenset(_all_known(of.services)),
                mtu=_known(of.mtu),
                mac=macs.of(name, vmk),
                netstack=of.netstack or "default",
                routes=tuple(
                    policy.StaticRoute(_known(route.to), _known(route.via)) for route in of.routes
                ),
            )
            for vmk, of in host.vmks.items()
        ),
    )


def _switch_name(draft: Draft, vm: Vm, nic: VmNic) -> str:
    return _known(draft.switch_of(_known(vm.host), nic.portgroup)).name


def _divided(draft: Draft) -> set[str]:
    """The switches on which some VM's adapter has an allocation of its own."""
    return {
        _switch_name(draft, vm, nic)
        for vm in draft.file.vms.values()
        for nic in vm.nics
        if nic.bandwidth is not None
    }


def _vm(draft: Draft, name: str, macs: _Macs, divided: set[str], resident: int) -> model.VM:
    vm, scale = draft.file.vms[name], _known(draft.file.scale)
    host, sizes = _known(vm.host), Sizes(vm, scale)
    return model.VM(
        name=name,
        host=host,
        memory_bytes=sizes.memory_bytes,
        vcpus=_known(vm.vcpus),
        datastore=_known(vm.datastore),
        nics=tuple(
            model.VirtualNic(
                name=f"eth{number}",
                portgroup=_known(nic.portgroup),
                addresses=_all_known(nic.ip),
                gateways=_all_known(nic.gateway),
                mtu=_known(_known(draft.switch_of(host, nic.portgroup)).mtu),
                mac=macs.of(name, f"eth{number}"),
                vlan=nic.vlan,
                bandwidth=policies.bandwidth(
                    nic.bandwidth,
                    scale,
                    among_allocations=_switch_name(draft, vm, nic) in divided,
                ),
            )
            for number, nic in enumerate(vm.nics)
        ),
        workloads=workloads.resolved(draft, vm, scale),
        in_use_bytes=None if vm.memory_in_use is None else sizes.of(vm.memory_in_use),
        backing=vm.backing or "real",
        page_bytes=LARGE_PAGE_BYTES if vm.page_size == "2MiB" else SMALL_PAGE_BYTES,
        reserved_bytes=reserved_bytes(vm, scale),
        resident_bytes=resident,
        affinity=_all_known(vm.affinity),
    )
