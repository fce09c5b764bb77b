"""What VMs do: workloads that fit their memory, adapters and ports, and their resolved form."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.guest import trace_file
from testbed.guest import workloads as guest
from testbed.topology import machines as written
from testbed.topology import services
from testbed.topology.problems import Path, shown
from testbed.topology.services import given
from testbed.topology.sizes import PAGE_BYTES, Sizes, check_rate, of_scale, own_bytes, size_text

if TYPE_CHECKING:
    from testbed.topology.draft import Draft
    from testbed.topology.machines import Vm, Workload

_LEAST_OLTP_PAGES = 10
"""A tenth of the working set is the log, which has a page at least."""


def check(draft: Draft) -> None:
    """Report workloads that can't run, or not beside one another."""
    scale = Fraction(1) if draft.file.scale is None else draft.file.scale
    for name, vm in draft.file.vms.items():
        path: Path = ("vms", name, "workload")
        sound = [
            (number, one)
            for number, one in enumerate(vm.workload)
            if one.kind is not None and not draft.is_broken(*path, number)
        ]
        if draft.is_broken("vms", name):
            continue
        _count(draft, path, vm)
        services.check(draft, path, vm, sound)
        for number, one in sound:
            _rates(draft, (*path, number), vm, one, scale)
            if isinstance(one, written.ReplayWorkload):
                _trace(draft, (*path, number, "trace"), vm, one, scale)
        if vm.memory is not None and not draft.is_broken(*path):
            _memory(draft, path, vm, sound, scale)


def _count(draft: Draft, path: Path, vm: Vm) -> None:
    if len(vm.workload) > guest.MOST_WORKLOADS:
        draft.problems.add(
            path,
            f"{len(vm.workload)} workloads are more than a VM runs at a time",
            f"give it at most {guest.MOST_WORKLOADS}",
        )
    idle = [n for n, one in enumerate(vm.workload) if isinstance(one, written.IdleWorkload)]
    if idle and len(vm.workload) > 1:
        draft.problems.add(
            (*path, idle[0]), "an idle workload beside another means nothing", "remove it"
        )
    for kind, what in (
        (written.PingWorkload, "pings of the VM are answered by a workload already"),
        (written.IometerWorkload, "the VM has an iometer workload and its file already"),
    ):
        same = [number for number, one in enumerate(vm.workload) if isinstance(one, kind)]
        if len(same) > 1:
            draft.problems.add((*path, same[1]), what, "remove it")


def _rates(draft: Draft, path: Path, vm: Vm, one: Workload, scale: Fraction) -> None:
    """Rates that are whole after scaling, and one way to say how many commits."""
    for key in ("dirty_rate", "rate"):
        rate = getattr(one, key, None)
        if isinstance(one, written.MediaWorkload | written.BulkWorkload):
            check_rate(draft, (*path, key), rate, scale)
        elif rate is not None and (rate * scale).denominator != 1:
            draft.problems.add(
                (*path, key),
                f"{draft.problems.written((*path, key))}{of_scale(scale)} is not whole",
                f"use a multiple of {1 / scale} B/s",
            )
    if isinstance(one, written.OltpWorkload):
        if one.dirty_rate is None and one.commits is None:
            message = "an oltp workload has neither commits nor dirty_rate"
            draft.problems.add(path, message, "add one, such as commits: 500")
        elif one.dirty_rate is not None and one.commits is not None:
            message = "commits and dirty_rate say the same: the one follows from the other"
            draft.problems.add((*path, "commits"), message, "keep one of them", at_key=True)
    if isinstance(one, written.IometerWorkload):
        _iometer(draft, path, one, vm.vcpus or 1, scale)


def _iometer(
    draft: Draft, path: Path, one: written.IometerWorkload, vcpus: int, scale: Fraction
) -> None:
    default = guest.Iometer(64 << 20)
    file, block = one.file or default.file_bytes, one.block or default.block_bytes
    if int(file * scale) // block < vcpus:
        place = (*path, "file" if one.file is not None else "block")
        draft.problems.add(
            place,
            f"a file of {size_text(file)}{of_scale(scale)} has no room for a block of"
            f" {size_text(block)} for each vCPU",
            "make the file larger, or the block smaller",
        )


def _trace(draft: Draft, path: Path, vm: Vm, one: written.ReplayWorkload, scale: Fraction) -> None:
    """Read a trace; its mistakes have their own places, in its file."""
    try:
        ranges = trace_file.parse(draft.text_of(one.trace or "", "a trace file"), one.trace or "")
    except InputError as error:
        for line in str(error).splitlines():
            message, _, remedy = line.rpartition("; ")
            draft.problems.add(path, message, remedy)
        return
    if vm.memory is None:
        return
    last = max(row.first_page + row.pages for row in ranges)
    room = int(vm.memory * scale - own_bytes(vm)) // PAGE_BYTES
    if int(last * scale) > room:
        draft.problems.add(
            path,
            f"{shown(one.trace)} writes page {last - 1}, but beside the guest's own pages the VM"
            f" has {int(room / scale)}",
            "give the VM more memory, or replay another trace",
        )


def _memory(
    draft: Draft, path: Path, vm: Vm, sound: list[tuple[int, Workload]], scale: Fraction
) -> None:
    """Working sets that fit the memory, one beside the other."""
    sizes = Sizes(vm, scale)
    together = sum(_buffers(one, vm.vcpus or 1) for _, one in sound)
    for number, one in sound:
        key, wanted = _wanted(one)
        if key is None:
            continue
        place = (*path, number, key)
        if isinstance(wanted, int) and (wanted * scale) % PAGE_BYTES:
            draft.problems.add(
                place,
                f"{draft.problems.written(place)}{of_scale(scale)} is not a whole number of 4 KiB"
                " pages",
                f"use a multiple of {size_text(PAGE_BYTES / scale)}, or a percentage",
            )
            continue
        size = sizes.of(wanted)
        least = _LEAST_OLTP_PAGES if isinstance(one, written.OltpWorkload) else 1
        if size < PAGE_BYTES * least * (vm.vcpus or 1):
            draft.problems.add(
                place,
                f"{_share(wanted)} of {size_text(vm.memory or 0)}{of_scale(scale)} is less than"
                f" {'one page' if least == 1 else f'{least} pages'} for each vCPU",
                "make it larger, or use kind: idle",
            )
            continue
        before, together = together, together + size
        # All of the memory is what people ask for; the guest's own pages are not in it.
        if before <= sizes.memory_bytes < together:
            draft.problems.add(
                place,
                f"{_what(one, before)} of {size_text(together / scale)} is more than the VM's"
                f" memory of {size_text(vm.memory or 0)}",
                "make it smaller",
            )


def _what(one: Workload, before: int) -> str:
    if isinstance(one, written.AllocateWorkload):
        return "with it what the VM's workloads write" if before else "an allocation"
    return "with it the working sets together" if before else "a working set"


def _buffers(one: Workload, vcpus: int) -> int:
    """The pages of an iometer workload's requests, each vCPU's apart."""
    if not isinstance(one, written.IometerWorkload):
        return 0
    default = guest.Iometer(64 << 20)
    pages = -(-(one.block or default.block_bytes) // PAGE_BYTES)
    return vcpus * -(-(one.outstanding or default.outstanding) // vcpus) * pages * PAGE_BYTES


def _share(wanted: Fraction | int) -> str:
    return size_text(wanted) if isinstance(wanted, int) else f"{float(wanted) * 100:g}%"


def _wanted(one: Workload) -> tuple[str | None, Fraction | int]:
    """The key that says how much memory is a workload's own, and what it says."""
    match one:
        case written.WriterWorkload() | written.ZipfWorkload() | written.OltpWorkload():
            return "working_set", one.working_set or Fraction(1, 5)
        case written.AllocateWorkload():
            return "size", one.size or 0
        case _:
            return None, 0


def resolved(draft: Draft, vm: Vm, scale: Fraction) -> tuple[guest.Workload, ...]:
    """What the VM does, at the lab's scale."""
    sizes = Sizes(vm, scale)
    parts = [sizes.of(_wanted(one)[1]) for one in vm.workload]
    return tuple(
        _resolved(draft, one, part, scale)
        for one, part in zip(vm.workload, parts, strict=True)
        if not isinstance(one, written.IdleWorkload)
    )


def _resolved(draft: Draft, one: Workload, part: int, scale: Fraction) -> guest.Workload:
    match one:
        case written.AllocateWorkload():
            return guest.Allocate(part, int((one.rate or 0) * scale))
        case written.OltpWorkload():
            return _oltp(one, part, scale)
        case written.IometerWorkload():
            default = guest.Iometer(64 << 20)
            block = one.block or default.block_bytes
            return guest.Iometer(
                int((one.file or default.file_bytes) * scale) // block * block,
                block,
                default.read_percent if one.reads is None else one.reads,
                one.outstanding or default.outstanding,
                float((one.iops or 0) * scale),
            )
        case written.ReplayWorkload():
            name = one.trace or ""
            ranges = trace_file.parse(draft.text_of(name, "a trace file"), name)
            rows = tuple(_scaled(row, scale) for row in ranges)
            return guest.Replay(rows, bool(one.repeat), FilePath(name).name)
        case written.WriterWorkload() | written.ZipfWorkload():
            rate = int((one.dirty_rate or 0) * scale)
            exponent = one.exponent if isinstance(one, written.ZipfWorkload) else None
            assert one.kind is not None
            return guest.Writer(one.kind, rate, part, **given(exponent=exponent))
        case _:
            return services.resolved(one, scale)


def _oltp(one: written.OltpWorkload, part: int, scale: Fraction) -> guest.Oltp:
    more = given(pages_per_commit=one.pages_per_commit, exponent=one.exponent)
    pages = guest.Oltp(1, part, **more).pages_per_commit + 1
    commits = one.commits or (one.dirty_rate or 0) / PAGE_BYTES / pages
    return guest.Oltp(float(commits * scale), part, **more)


def _scaled(row: guest.TraceRange, scale: Fraction) -> guest.TraceRange:
    return guest.TraceRange(
        row.at_ns,
        row.until_ns,
        int(row.first_page * scale),
        max(int(row.pages * scale), 1),
        max(int(row.rate_bytes_per_s * scale), 1),
    )
