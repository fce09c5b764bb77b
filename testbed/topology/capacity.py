"""What fits: VMs into their hosts, working sets into memory, and all of it after scaling."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING

from testbed.topology.leaves import MIN_RATE_BPS
from testbed.topology.problems import Path, shown
from testbed.units import format_size

if TYPE_CHECKING:
    from testbed.topology.draft import Draft
    from testbed.topology.schema import Vm

PAGE_BYTES = 4096
LEAST_MEMORY_BYTES = 2**20
DEFAULT_WORKING_SET = Fraction(1, 5)


def check(draft: Draft) -> None:
    """Report VMs that don't fit, workloads that can't run, and what scales to no whole number."""
    scale = Fraction(1) if draft.file.scale is None else draft.file.scale
    for number, link in enumerate(draft.file.links):
        check_rate(draft, ("links", number, "rate"), link.rate, scale)
    for name, host in draft.file.hosts.items():
        _memory(draft, ("hosts", name, "memory"), host.memory, scale)
        for vmnic, nic in host.nics.items():
            check_rate(draft, ("hosts", name, "nics", vmnic, "rate"), nic.rate, scale)
    for name, vm in draft.file.vms.items():
        _memory(draft, ("vms", name, "memory"), vm.memory, scale)
        _workload(draft, name, vm, scale)
        _on_host(draft, name, vm)
    _host_memory(draft)


def working_set_bytes(vm: Vm, scale: Fraction) -> int:
    """The working set after scaling, in whole pages; a share is rounded down to them."""
    if vm.workload.kind == "idle" or vm.memory is None:
        return 0
    wanted = vm.workload.working_set or DEFAULT_WORKING_SET
    share = isinstance(wanted, Fraction)
    size = vm.memory * scale * wanted if share else wanted * scale
    return int(size) // PAGE_BYTES * PAGE_BYTES


def _of(scale: Fraction) -> str:
    return "" if scale == 1 else f" at scale {scale}"


def _size(size: Fraction) -> str:
    return format_size(float(size))


def _memory(draft: Draft, path: Path, memory: int | None, scale: Fraction) -> None:
    if memory is None:
        return
    scaled = memory * scale
    if scaled.denominator != 1 or scaled % PAGE_BYTES:
        draft.problems.add(
            path,
            f"{draft.problems.written(path)}{_of(scale)} is not a whole number of 4 KiB pages",
            f"use a multiple of {_size(PAGE_BYTES / scale)}",
        )
    elif scaled < LEAST_MEMORY_BYTES:
        draft.problems.add(
            path,
            f"{draft.problems.written(path)}{_of(scale)} is less than 1 MiB",
            f"use at least {_size(LEAST_MEMORY_BYTES / scale)}",
        )


def check_rate(draft: Draft, path: Path, rate: int | None, scale: Fraction) -> None:
    """Report a rate that is none after scaling."""
    if rate is None:
        return
    scaled = rate * scale
    if scaled.denominator != 1 or scaled < MIN_RATE_BPS:
        draft.problems.add(
            path,
            f"{draft.problems.written(path)}{_of(scale)} is not a whole rate of at least 8 kbit/s",
            f"use a multiple of {1 / scale} bit/s, or another scale",
        )


def _workload(draft: Draft, name: str, vm: Vm, scale: Fraction) -> None:
    path: Path = ("vms", name, "workload")
    workload = vm.workload
    if workload.kind is None or draft.is_broken(*path) or draft.is_broken("vms", name):
        return
    if workload.kind == "idle":
        for key in ("dirty_rate", "working_set"):
            if getattr(workload, key) is not None:
                draft.problems.add(
                    (*path, key),
                    f"an idle workload writes nothing, so its {key} means nothing",
                    "remove it, or use kind: uniform",
                    at_key=True,
                )
        return
    if workload.dirty_rate is None:
        draft.problems.add(
            path,
            f"a {workload.kind} workload has no dirty_rate",
            "add one such as dirty_rate: 400MB/s, or use kind: idle",
        )
    elif (workload.dirty_rate * scale).denominator != 1:
        draft.problems.add(
            (*path, "dirty_rate"),
            f"{draft.problems.written((*path, 'dirty_rate'))}{_of(scale)} is not whole",
            f"use a multiple of {1 / scale} B/s",
        )
    _working_set(draft, path, vm, scale)


def _working_set(draft: Draft, path: Path, vm: Vm, scale: Fraction) -> None:
    if vm.memory is None:
        return
    wanted = vm.workload.working_set
    place = path if wanted is None else (*path, "working_set")
    if isinstance(wanted, int):
        scaled = wanted * scale
        if scaled.denominator != 1 or scaled % PAGE_BYTES:
            draft.problems.add(
                place,
                f"{draft.problems.written(place)}{_of(scale)} is not a whole number of 4 KiB pages",
                f"use a multiple of {_size(PAGE_BYTES / scale)}, or a percentage",
            )
            return
    size = working_set_bytes(vm, scale)
    if size > vm.memory * scale:
        draft.problems.add(
            place,
            f"a working set of {_size(size / scale)} is more than the VM's memory of"
            f" {format_size(vm.memory)}",
            "make it smaller, or write a percentage",
        )
    elif size < PAGE_BYTES * (vm.vcpus or 1):
        draft.problems.add(
            place,
            f"{_share(wanted)} of {format_size(vm.memory)}{_of(scale)} is less than one page for"
            " each vCPU",
            "make it larger, or use kind: idle",
        )


def _share(wanted: Fraction | int | None) -> str:
    if isinstance(wanted, int):
        return format_size(wanted)
    return f"{float(wanted or DEFAULT_WORKING_SET) * 100:g}%"


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


def _host_memory(draft: Draft) -> None:
    used: dict[str, int] = defaultdict(int)
    for name, vm in draft.file.vms.items():
        host = draft.file.hosts.get(vm.host or "")
        if host is None or vm.host is None or host.memory is None or vm.memory is None:
            continue
        before = used[vm.host]
        used[vm.host] += vm.memory
        if before <= host.memory < used[vm.host]:
            path: Path = ("vms", name, "memory")
            draft.problems.add(
                path,
                f"with the {draft.problems.written(path)} of {name} the VMs of host {vm.host} have"
                f" {format_size(used[vm.host])}, more than its {format_size(host.memory)}",
                f"give {vm.host} more memory, or its VMs less",
            )
