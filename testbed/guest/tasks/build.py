"""From what a VM is asked to do to the tasks of its vCPUs, and the pages that each of them owns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.guest import draws, layout
from testbed.guest.backing import is_overcommitted
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.task import TaskContext
from testbed.guest.workloads import (
    MOST_WORKLOADS,
    Allocate,
    Bulk,
    Echo,
    Iometer,
    Media,
    Oltp,
    Ping,
    Replay,
    Sink,
    Web,
    Writer,
    of_network,
)
from testbed.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.guest.specification import GuestSpec
    from testbed.guest.task import Task
    from testbed.guest.workloads import Workload

_STEEPEST_ZIPF = 4.0


def regions(spec: GuestSpec) -> list[range]:
    """The pages that each workload has for itself, one after another behind the guest's state.

    A network workload has none, its buffers being the NIC's; a trace is replayed on all data
    pages, whoever owns them. All of the memory may be asked for: then the largest region is
    smaller by the pages of the guest's own state.

    Raises:
        InputError: they do not fit, or are less than a page for each vCPU.
    """
    first, end = layout.first_data_page(spec.vcpus), spec.memory_bytes // SMALL_PAGE_BYTES
    if end <= first:
        raise InputError(
            f"VM {spec.name}: {format_size(spec.memory_bytes)} of memory are too little for "
            f"{spec.vcpus} vCPUs, whose state takes {format_size(first * SMALL_PAGE_BYTES)}; "
            f"give it more"
        )
    if len(spec.workloads) > MOST_WORKLOADS:
        raise InputError(
            f"VM {spec.name}: {len(spec.workloads)} workloads; give it {MOST_WORKLOADS} at most"
        )
    replays = any(isinstance(one, Replay) for one in spec.workloads)
    if replays and is_overcommitted(spec) and spec.vcpus > 1 and len(spec.workloads) > 1:
        raise InputError(
            f"VM {spec.name}: a trace writes other workloads' pages, which in an overcommitted VM "
            f"each have one vCPU; reserve all of its memory, or replay the trace alone"
        )
    counts = [_pages(one, spec.vcpus) for one in spec.workloads]
    for workload, count in zip(spec.workloads, counts, strict=True):
        _check(spec, workload, count)
    if counts and end - first < sum(counts) <= end:
        counts[counts.index(max(counts))] -= sum(counts) - (end - first)
    if sum(counts) > end - first:
        wanted, room = (format_size(n * SMALL_PAGE_BYTES) for n in (sum(counts), end - first))
        raise InputError(
            f"VM {spec.name}: the working sets of its workloads take {wanted}, and there are "
            f"{room}; make them smaller, or the memory larger"
        )
    found, data = [], range(first, end)
    for workload, count in zip(spec.workloads, counts, strict=True):
        found.append(data if isinstance(workload, Replay) else range(first, first + count))
        first += count
    return found


def _pages(workload: Workload, vcpus: int) -> int:
    """How many pages a workload needs for itself."""
    match workload:
        case Writer(dirty_rate_bytes_per_s=0):
            return 0
        case Writer() | Oltp():
            return workload.working_set_bytes // SMALL_PAGE_BYTES
        case Allocate():
            return workload.size_bytes // SMALL_PAGE_BYTES
        case Iometer():  # a buffer for each request outstanding
            each = -(-workload.block_bytes // SMALL_PAGE_BYTES)
            return vcpus * -(-workload.outstanding // vcpus) * each
        case Web() | Media() | Echo() | Bulk() | Sink() | Ping() | Replay():
            return 0


def _check(spec: GuestSpec, workload: Workload, pages: int) -> None:
    name = f"VM {spec.name}: workload {workload.kind}"
    match workload:
        case Writer(dirty_rate_bytes_per_s=rate) if rate < 0:
            raise InputError(f"{name}: a dirty rate of {rate} bytes/s; give 0 or more")
        case Writer(dirty_rate_bytes_per_s=0):
            return
        case Writer() | Oltp() if not 0 <= workload.exponent <= _STEEPEST_ZIPF:
            raise InputError(
                f"{name}: an exponent of {workload.exponent}; give 0 to {_STEEPEST_ZIPF:g}"
            )
        case Allocate(rate_bytes_per_s=rate) if rate < 0:
            raise InputError(f"{name}: a rate of {rate} bytes/s; give 0 or more")
    if isinstance(workload, Writer | Oltp | Allocate) and pages < spec.vcpus:
        raise InputError(
            f"{name}: {pages} pages are less than one for each of {spec.vcpus} vCPUs; "
            f"make its working set larger"
        )
    if isinstance(workload, Replay):
        data = spec.memory_bytes // SMALL_PAGE_BYTES - layout.first_data_page(spec.vcpus)
        last = max((row.first_page + row.pages for row in workload.ranges), default=0)
        if last > data:
            raise InputError(
                f"{name}: the trace reaches data page {last - 1}, and the VM has {data}; "
                f"give it more memory, or another trace"
            )


def part(region: range, vcpu: int, vcpus: int) -> range:
    """A vCPU's part of a region."""
    return region[len(region) * vcpu // vcpus : len(region) * (vcpu + 1) // vcpus]


def filled(spec: GuestSpec) -> range:
    """The pages that are given content when the VM is powered on."""
    first, end = layout.first_data_page(spec.vcpus), spec.memory_bytes // SMALL_PAGE_BYTES
    count = end - first
    if spec.in_use_bytes is not None:
        count = min(count, spec.in_use_bytes // SMALL_PAGE_BYTES)
    elif any(isinstance(one, Allocate) for one in spec.workloads):
        count = 0
    return range(first, first + count)


def fill_key(spec: GuestSpec) -> int:
    """What the content of those pages follows from."""
    return draws.key(spec.seed)


def context(
    spec: GuestSpec,
    number: int,
    vcpu: int,
    memory: Memory,
    *,
    mark: Callable[[NDArray[np.int64]], None] | None = None,
    kick: Callable[[], None] | None = None,
    wake_fd: int = -1,
) -> TaskContext:
    """What workload `number` is given on a vCPU."""
    region = regions(spec)[number]
    if not isinstance(spec.workloads[number], Replay):
        region = part(region, vcpu, spec.vcpus)
    return TaskContext(
        spec,
        number,
        vcpu,
        memory,
        layout.task_words(memory, spec.vcpus, number, vcpu),
        region.start,
        len(region),
        draws.key(spec.seed, number, vcpu),
        mark or _nothing,
        kick or _nothing,
        wake_fd,
    )


def _nothing(*_: object) -> None:
    """No tracking by the guest itself, no NIC."""


def build(
    spec: GuestSpec,
    vcpu: int,
    memory: Memory,
    *,
    mark: Callable[[NDArray[np.int64]], None] | None = None,
    kick: Callable[[], None] | None = None,
    wake_fd: int = -1,
) -> list[tuple[TaskContext, Task]]:
    """The tasks of a vCPU. Reads nothing of the memory, which may not be there yet.

    Raises:
        InputError: the specification contradicts itself.
    """
    found = []
    network = [n for n, one in enumerate(spec.workloads) if one in of_network((one,))]
    for number in range(len(spec.workloads)):
        if number in network and (vcpu or number != network[0]):
            continue  # vCPU 0 serves them all as one task
        given = context(spec, number, vcpu, memory, mark=mark, kick=kick, wake_fd=wake_fd)
        if number in network:
            found.append((given, _network_task(given, network)))
        else:
            found.append((given, _task(given)))
    return found


def check_tasks(spec: GuestSpec, memory: Memory) -> None:
    """Build all tasks, as the vCPUs will: what can't be built is refused here and now.

    Raises:
        InputError, ValueError: something can't.
    """
    for vcpu in range(spec.vcpus):
        build(spec, vcpu, memory)


# Modules of tasks that a VM does not have are not loaded: each vCPU is a process of its own.


def _task(given: TaskContext) -> Task:
    workload = given.spec.workloads[given.number]
    match workload:
        case Writer():
            from testbed.guest.tasks.writer import WriterTask

            return WriterTask(given, workload)
        case Allocate():
            from testbed.guest.tasks.allocate import AllocateTask

            return AllocateTask(given, workload)
        case Oltp():
            from testbed.guest.tasks.oltp import OltpTask

            return OltpTask(given, workload)
        case Iometer():
            from testbed.guest.tasks.iometer import IometerTask

            return IometerTask(given, workload)
        case Replay():
            from testbed.guest.tasks.replay import ReplayTask

            return ReplayTask(given, workload)
        case _:
            raise AssertionError(workload)


def _network_task(given: TaskContext, numbers: list[int]) -> Task:
    from testbed.guest.nic.service import NicTask

    records = [layout.task_words(given.memory, given.spec.vcpus, n, 0) for n in numbers]
    return NicTask(given, of_network(given.spec.workloads), records)
