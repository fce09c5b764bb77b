"""What fits: VMs into their hosts and their memory, and all of it after scaling."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING

from testbed.guest.specification import LARGE_PAGE_BYTES
from testbed.topology import machines
from testbed.topology.problems import Path, shown
from testbed.topology.sizes import PAGE_BYTES, Sizes, check_rate, of_scale, own_bytes, size_text

if TYPE_CHECKING:
    from testbed.topology.draft import Draft
    from testbed.topology.machines import Vm

LEAST_MEMORY_BYTES = 2**20


def check(draft: Draft) -> None:
    """Report VMs that don't fit, memory that can't be had, and what scales to no whole number."""
    scale = Fraction(1) if draft.file.scale is None else draft.file.scale
    for number, link in enumerate(draft.file.links):
        check_rate(draft, ("links", number, "rate"), link.rate, scale)
    for name, host in draft.file.hosts.items():
        _memory(draft, ("hosts", name, "memory"), host.memory, scale)
        for vmnic, nic in host.nics.items():
            check_rate(draft, ("hosts", name, "nics", vmnic, "rate"), nic.rate, scale)
    for name, vm in draft.file.vms.items():
        path: Path = ("vms", name)
        _memory(draft, (*path, "memory"), vm.memory, scale)
        if vm.memory is not None:
            _parts_of_memory(draft, path, vm, scale)
            _pages(draft, path, vm, scale)
        _affinity(draft, path, vm)
        _on_host(draft, name, vm)
    _host_memory(draft, scale)


def reserved_bytes(vm: Vm, scale: Fraction) -> int:
    """The memory that the VM surely gets, at the lab's scale."""
    sizes = Sizes(vm, scale)
    return sizes.memory_bytes if vm.reservation is None else sizes.of(vm.reservation)


def resident_bytes(draft: Draft, scale: Fraction) -> dict[str, int]:
    """What each VM has in its host's memory, at the lab's scale; the rest of it is swapped.

    Its reservation, and of what they leave free a part in proportion to what it lacks.
    """
    resident: dict[str, int] = {}
    for host, names in _vms_by_host(draft).items():
        memory = int((draft.file.hosts[host].memory or 0) * scale)
        vms = {name: draft.file.vms[name] for name in names}
        lacks = {
            n: Sizes(vm, scale).memory_bytes - reserved_bytes(vm, scale) for n, vm in vms.items()
        }
        free = memory - sum(reserved_bytes(vm, scale) for vm in vms.values())
        share = min(Fraction(1), Fraction(max(free, 0), max(sum(lacks.values()), 1)))
        for name, vm in vms.items():
            size = reserved_bytes(vm, scale) + int(lacks[name] * share)
            resident[name] = size // PAGE_BYTES * PAGE_BYTES
    return resident


def _vms_by_host(draft: Draft) -> dict[str, list[str]]:
    """The VMs of each host whose memory is known, without those with unknown memory."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, vm in draft.file.vms.items():
        host = draft.file.hosts.get(vm.host or "")
        if host is not None and vm.host and host.memory is not None and vm.memory is not None:
            found[vm.host].append(name)
    return found


def _memory(draft: Draft, path: Path, memory: int | None, scale: Fraction) -> None:
    if memory is None:
        return
    scaled = memory * scale
    if scaled.denominator != 1 or scaled % PAGE_BYTES:
        draft.problems.add(
            path,
            f"{draft.problems.written(path)}{of_scale(scale)} is not a whole number of 4 KiB pages",
            f"use a multiple of {size_text(PAGE_BYTES / scale)}",
        )
    elif scaled < LEAST_MEMORY_BYTES:
        draft.problems.add(
            path,
            f"{draft.problems.written(path)}{of_scale(scale)} is less than 1 MiB",
            f"use at least {size_text(LEAST_MEMORY_BYTES / scale)}",
        )


def _parts_of_memory(draft: Draft, path: Path, vm: Vm, scale: Fraction) -> None:
    """Parts of a VM's memory, which are not more than all of it."""
    sizes = Sizes(vm, scale)
    own = own_bytes(vm) + PAGE_BYTES * (vm.vcpus or 1)
    if LEAST_MEMORY_BYTES <= sizes.memory_bytes < own:
        draft.problems.add(
            (*path, "memory"),
            f"the guest's own pages take {size_text(own)} of its memory with {vm.vcpus} vCPUs",
            f"use at least {size_text(own / scale)}",
        )
    for key, what in (("reservation", "a reservation"), ("memory_in_use", "memory in use")):
        wanted = getattr(vm, key)
        if isinstance(wanted, int) and wanted > (vm.memory or 0):
            draft.problems.add(
                (*path, key),
                f"{what} of {size_text(wanted)} is more than the VM's memory of"
                f" {size_text(vm.memory or 0)}",
                "make it smaller, or write a percentage",
            )


def _pages(draft: Draft, path: Path, vm: Vm, scale: Fraction) -> None:
    """Large pages and synthetic memory, and what they can't be had with."""
    large = vm.page_size == "2MiB"
    if large and vm.backing != "synthetic" and (vm.memory or 0) * scale % LARGE_PAGE_BYTES:
        draft.problems.add(
            (*path, "memory"),
            f"{draft.problems.written((*path, 'memory'))}{of_scale(scale)} is not a whole number"
            " of 2 MiB pages",
            f"use a multiple of {size_text(LARGE_PAGE_BYTES / scale)}, or page_size: 4KiB",
        )
    if large and reserved_bytes(vm, scale) < Sizes(vm, scale).memory_bytes:
        draft.problems.add(
            (*path, "reservation"),
            "large pages are never swapped, so all of the VM's memory is reserved",
            "remove it, or use page_size: 4KiB",
            at_key=True,
        )
    if vm.backing != "synthetic":
        return
    if large:
        draft.problems.add(
            (*path, "page_size"),
            "synthetic memory has no large pages: a page of it is a number and a version",
            "use page_size: 4KiB, or backing: real",
        )
    for number, one in enumerate(vm.workload):
        if isinstance(one, machines.IometerWorkload):
            draft.problems.add(
                (*path, "workload", number),
                "synthetic memory holds no blocks of a file, only numbers and versions",
                "remove the iometer workload, or use backing: real",
            )


def _affinity(draft: Draft, path: Path, vm: Vm) -> None:
    for number, cpu in enumerate(vm.affinity):
        if cpu is not None and cpu in vm.affinity[:number]:
            draft.problems.add(
                (*path, "affinity", number), f"CPU {cpu} is named twice", "name every CPU once"
            )


def _on_host(draft: Draft, name: str, vm: Vm) -> None:
    host = draft.file.hosts.get(vm.host or "")
    if host is None or vm.host is None:
        return
    cores = host.cpu.cores
    if cores is not None and vm.vcpus is not None and vm.vcpus > cores:
        draft.problems.add(
            ("vms", name, "vcpus"),
            f"{vm.vcpus} vCPUs are more than the {cores} cores of host {vm.host}",
            f"use at most {cores}",
        )
    store = draft.file.datastores.get(vm.datastore or "")
    if store is None or draft.is_broken("datastores", vm.datastore or ""):
        return
    if vm.host not in store.hosts:
        draft.problems.add(
            ("vms", name, "datastore"),
            f"host {vm.host} does not mount {shown(vm.datastore)}",
            f"add {vm.host} to the hosts of {vm.datastore}",
        )


def _host_memory(draft: Draft, scale: Fraction) -> None:
    """Reservations that a host can keep; what is more than its memory is swapped."""
    resident = resident_bytes(draft, scale)
    for host, names in _vms_by_host(draft).items():
        memory = int((draft.file.hosts[host].memory or 0) * scale)
        used = 0
        for name in names:
            vm, path = draft.file.vms[name], ("vms", name)
            before, used = used, used + reserved_bytes(vm, scale)
            if before <= memory < used:
                place = (*path, "memory" if vm.reservation is None else "reservation")
                what = "have" if vm.reservation is None else "reserve"
                draft.problems.add(
                    place,
                    f"with the {draft.problems.written(place)} of {name} the VMs of host {host}"
                    f" {what} {size_text(used / scale)}, more than its"
                    f" {size_text(memory / scale)}",
                    f"give {host} more memory, or its VMs less",
                )
            elif vm.backing == "synthetic" and resident[name] < Sizes(vm, scale).memory_bytes:
                draft.problems.add(
                    (*path, "backing"),
                    f"host {host} has too little memory for its VMs and would swap pages of"
                    f" {name}, but synthetic memory can't be swapped",
                    f"reserve all of it, give {host} more memory, or use backing: real",
                )
