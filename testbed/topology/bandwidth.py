"""Bandwidth: Network I/O Control, QoS on a NIC, and traffic shaping add up."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING

from testbed.topology.problems import shown
from testbed.topology.sizes import check_rate
from testbed.topology.traffic import SYSTEM_TRAFFIC, VM_TRAFFIC
from testbed.topology.vswitches import DistributedPortGroup, DistributedSwitch
from testbed.units import format_rate, format_size

if TYPE_CHECKING:
    from testbed.topology.draft import Draft
    from testbed.topology.machines import Bandwidth
    from testbed.topology.problems import Path
    from testbed.topology.schema import HostNic
    from testbed.topology.vswitches import Nioc, PortGroup, TrafficAllocation

RESERVABLE = Fraction(3, 4)
"""Of the slowest uplink (vmotion-facts.md, row 48)."""

LEAST_BURST_BYTES = 16384
"""With less HTB doesn't reach the rate (kernel-notes.md)."""


def check(draft: Draft) -> None:
    """Report reservations that don't fit, limits below them, and controls without a rate."""
    scale = draft.file.scale or Fraction(1)
    uplinks = _uplinks(draft)
    for name, switch in draft.file.distributed_switches.items():
        path: Path = ("distributed_switches", name)
        if switch.nioc is not None:
            _nioc(draft, name, switch.nioc, uplinks.get(name, []))
        for group, of in switch.portgroups.items():
            _shaping(draft, (*path, "portgroups", group), of, scale)
    for host, of_host in draft.file.hosts.items():
        for name, vswitch in of_host.vswitches.items():
            path = ("hosts", host, "vswitches", name, "portgroups")
            for group, of_group in vswitch.portgroups.items():
                _shaping(draft, (*path, group), of_group, scale)
        for vmnic, nic in of_host.nics.items():
            _qos(draft, ("hosts", host, "nics", vmnic), nic)
    _vms(draft)


def _uplinks(draft: Draft) -> dict[str, list[tuple[str, str, HostNic]]]:
    """By distributed switch: (host, vmnic, the NIC) of its uplinks."""
    found: dict[str, list[tuple[str, str, HostNic]]] = defaultdict(list)
    for host, of in draft.file.hosts.items():
        for vmnic, nic in of.nics.items():
            if nic.uplink is not None:
                found[nic.uplink.partition("/")[0]].append((host, vmnic, nic))
    return found


def _nioc(draft: Draft, name: str, nioc: Nioc, uplinks: list[tuple[str, str, HostNic]]) -> None:
    path: Path = ("distributed_switches", name, "nioc")
    for host, vmnic, nic in uplinks:
        if nic.rate is None and not draft.is_broken("hosts", host, "nics", vmnic):
            draft.problems.add(
                ("hosts", host, "nics", vmnic),
                f"{vmnic} has no rate, and the Network I/O Control of {name} divides it",
                "add rate: 10Gbit or the like",
                at_key=True,
            )
    rated = [(nic.rate, f"{vmnic} of {host}") for host, vmnic, nic in uplinks if nic.rate]
    slowest, where = min(rated, default=(None, ""))
    fastest, _ = max(rated, default=(None, ""))
    total = 0
    fits = True
    for traffic in SYSTEM_TRAFFIC:
        given: TrafficAllocation | None = getattr(nioc, traffic)
        if given is None:
            continue
        place = (*path, traffic)
        _allocation(draft, place, given)
        total += given.reservation or 0
        if slowest is not None and given.reservation and given.reservation > slowest:
            fits = False
            draft.problems.add(
                (*place, "reservation"),
                f"{format_rate(given.reservation)} are more than the link: {where} has"
                f" {format_rate(slowest)}",
                f"reserve at most {format_rate(float(slowest * RESERVABLE))} for all together",
            )
        if fastest is not None and given.limit and given.limit > fastest:
            draft.problems.add(
                (*place, "limit"),
                f"a limit of {format_rate(given.limit)} limits no uplink of {name}: the fastest"
                f" has {format_rate(fastest)}",
                "lower it, or remove it",
            )
    if slowest is not None and fits and total > slowest * RESERVABLE:
        draft.problems.add(
            path,
            f"the reservations of {name} are {format_rate(total)} together, more than 75 % of its"
            f" slowest uplink, {where} with {format_rate(slowest)}",
            f"reserve at most {format_rate(float(slowest * RESERVABLE))} together",
            at_key=True,
        )


def _allocation(draft: Draft, path: Path, given: TrafficAllocation | Bandwidth) -> None:
    scale = draft.file.scale or Fraction(1)
    check_rate(draft, (*path, "reservation"), given.reservation, scale)
    check_rate(draft, (*path, "limit"), given.limit, scale)
    if given.limit is not None and given.limit < (given.reservation or 0):
        draft.problems.add(
            (*path, "limit"),
            f"a limit of {format_rate(given.limit)} is less than the reservation of"
            f" {format_rate(given.reservation or 0)}",
            "raise the limit, or lower the reservation",
        )


def _qos(draft: Draft, path: Path, nic: HostNic) -> None:
    if not nic.qos or draft.is_broken(*path):
        return
    if nic.rate is None:
        draft.problems.add(
            (*path, "qos"),
            "shares of a NIC without a rate mean nothing",
            "add rate: 10Gbit or the like",
            at_key=True,
        )
    distributed = draft.file.distributed_switches.get((nic.uplink or "").partition("/")[0])
    if distributed is not None and distributed.nioc is not None:
        draft.problems.add(
            (*path, "qos"),
            f"the uplink {nic.uplink} has Network I/O Control already",
            "keep one of the two: qos here, or nioc at the distributed switch",
            at_key=True,
        )
    total = Fraction(0)
    for traffic, share in nic.qos.items():
        total += share.guarantee or 0
        if (
            share.limit is not None
            and share.guarantee is not None
            and (share.limit < share.guarantee or not share.limit)
        ):
            draft.problems.add(
                (*path, "qos", traffic or "", "limit"),
                f"a limit of {_percent(share.limit)} is less than the guarantee"
                if share.limit
                else f"a limit of 0% stops {traffic}",
                f"write at least {_percent(max(share.guarantee, Fraction(1, 100)))}",
            )
    if total > 1:
        draft.problems.add(
            (*path, "qos"),
            f"the guarantees are {_percent(total)} of the NIC together",
            "guarantee at most 100%",
            at_key=True,
        )


def _percent(share: Fraction) -> str:
    return f"{float(share * 100):g}%"


def _shaping(
    draft: Draft, path: Path, group: PortGroup | DistributedPortGroup, scale: Fraction
) -> None:
    shaping = group.shaping
    if shaping is None:
        return
    ways = {"egress": shaping.egress}
    if isinstance(group, DistributedPortGroup) and group.shaping is not None:
        ways["ingress"] = group.shaping.ingress
    path = (*path, "shaping")
    if not any(ways.values()) and not draft.is_broken(*path):
        draft.problems.add(path, "it shapes nothing", "add egress or ingress, or remove it")
    for way, given in ways.items():
        if given is None:
            continue
        place = (*path, way)
        check_rate(draft, (*place, "average"), given.average, scale)
        check_rate(draft, (*place, "peak"), given.peak, scale)
        if given.average is not None and given.peak is not None and given.peak < given.average:
            draft.problems.add(
                (*place, "peak"),
                f"a peak of {format_rate(given.peak)} is less than the average of"
                f" {format_rate(given.average)}",
                "write at least the average",
            )
        if given.burst is not None and given.burst * scale < LEAST_BURST_BYTES:
            at = "" if scale == 1 else f" at scale {scale}"
            draft.problems.add(
                (*place, "burst"),
                f"a burst of {format_size(given.burst)}{at} is too small to reach the average",
                f"write at least {format_size(float(LEAST_BURST_BYTES / scale))}",
            )


def _vms(draft: Draft) -> None:
    used: dict[tuple[str, str], int] = defaultdict(int)
    for name, vm in draft.file.vms.items():
        for number, nic in enumerate(vm.nics):
            switch = draft.switch_of(vm.host or "", nic.portgroup)
            if nic.bandwidth is None or switch is None or vm.host is None:
                continue
            path: Path = ("vms", name, "nics", number, "bandwidth")
            nioc = switch.of.nioc if isinstance(switch.of, DistributedSwitch) else None
            if nioc is None:
                if not draft.is_broken(*switch.path):
                    draft.problems.add(
                        path,
                        f"the switch {switch.name} of {shown(nic.portgroup)} has no Network I/O"
                        " Control to divide its bandwidth",
                        "add nioc to the distributed switch, or remove bandwidth",
                        at_key=True,
                    )
                continue
            _allocation(draft, path, nic.bandwidth)
            whole = nioc.virtualMachine.reservation if nioc.virtualMachine else None
            before = used[vm.host, switch.name]
            used[vm.host, switch.name] += nic.bandwidth.reservation or 0
            if before <= (whole or 0) < used[vm.host, switch.name]:
                draft.problems.add(
                    (*path, "reservation"),
                    f"with {name} the VMs of host {vm.host} reserve"
                    f" {format_rate(used[vm.host, switch.name])}, more than {VM_TRAFFIC}'s"
                    f" reservation of {format_rate(whole or 0)} in {switch.name}",
                    f"reserve less, or raise that of {VM_TRAFFIC}",
                )
