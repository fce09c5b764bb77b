"""The guest's state at the start of its memory: what has to survive a move.

It lives there and nowhere else, so the copy at the destination carries it and goes on from
it. Commands to run and stop are not state of the guest: they are in `RunBlock`, outside its
memory, and are never copied.

    state pages    a header, a record for each vCPU, and one for each workload on each vCPU
    NIC pages      the rings between vCPU 0 and the VM's NIC process (guest/nic)
    data pages     the rest: working sets

State pages are written without being marked, and NIC pages by another process too, as devices
write memory: so these are always sent in the last iteration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import MigrationError
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.workloads import MOST_WORKLOADS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory

MAGIC = 0x74657374_62656432
RECORD_BYTES = 256  # whole cache lines: no vCPU's counters share one with another's
RECORD_WORDS = RECORD_BYTES // 8
NIC_PAGES = 35
"""One page of ring positions, two of connections, 16 for each of the two rings."""

HEADER = np.dtype([("magic", "<i8"), ("vcpus", "<i8")])

# Times are nanoseconds of CLOCK_MONOTONIC. `resume_gap_ns` runs from the last heartbeat before
# the vCPU was stopped to the first after it was resumed, at `resumed_at_ns`; `longest_gap_ns` is
# between two heartbeats since then and ended at `longest_gap_at_ns`. Of its life a vCPU has run
# for `run_ns`, had nothing to do for `idle_ns`, slept for the throttle for `throttled_ns`, and
# stood still for `stopped_ns`.
VCPU_WORDS = (
    "steps",
    "beat_ns",
    "longest_gap_ns",
    "longest_gap_at_ns",
    "resume_gap_ns",
    "resumed_at_ns",
    "resumes",
    "run_ns",
    "idle_ns",
    "throttled_ns",
    "stopped_ns",
)
(
    STEPS,
    BEAT,
    LONGEST_GAP,
    LONGEST_GAP_AT,
    RESUME_GAP,
    RESUMED_AT,
    RESUMES,
    RUN_NS,
    IDLE_NS,
    THROTTLED_NS,
    STOPPED_NS,
) = range(len(VCPU_WORDS))
VCPU = np.dtype(
    {
        "names": list(VCPU_WORDS),
        "formats": ["<i8"] * len(VCPU_WORDS),
        "itemsize": RECORD_BYTES,
    }
)

# What a workload has done on a vCPU. `batches` is how far it is: with the specification, all that
# it needs to go on. An operation is what it counts (a commit, an I/O, a request answered);
# `bytes` what went in or out with them. `failed` is the errno that ended it, 0 while it goes on.
# `latency` counts operations by how long they took: bucket b those of 2^b to 2^(b+1) us, the first
# also quicker ones, the last also slower ones. `spare` is for the workload's own use.
LATENCY_BUCKETS = 22
TASK_WORDS = (
    "batches",
    "pages_written",
    "operations",
    "bytes",
    "failed",
    "last_at_ns",
    "longest_gap_ns",
    "latency_sum_ns",
    "latency_max_ns",
    "spare",
)
(
    BATCHES,
    PAGES_WRITTEN,
    OPERATIONS,
    BYTES,
    FAILED,
    LAST_AT,
    TASK_LONGEST_GAP,
    LATENCY_SUM,
    LATENCY_MAX,
    SPARE,
) = range(len(TASK_WORDS))
LATENCY = len(TASK_WORDS)
TASK = np.dtype(
    {
        "names": [*TASK_WORDS, "latency"],
        "formats": [*["<i8"] * len(TASK_WORDS), ("<i8", (LATENCY_BUCKETS,))],
        "itemsize": RECORD_BYTES,
    }
)


def state_pages(vcpus: int) -> int:
    """How many pages the header and all records take; room for `MOST_WORKLOADS` is kept."""
    return -(-RECORD_BYTES * (1 + vcpus * (1 + MOST_WORKLOADS)) // SMALL_PAGE_BYTES)


def first_data_page(vcpus: int) -> int:
    """The first page that is not the guest's own state."""
    return state_pages(vcpus) + NIC_PAGES


def _vcpu_offset(vcpu: int) -> int:
    return RECORD_BYTES * (1 + vcpu)


def _task_offset(vcpus: int, task: int, vcpu: int) -> int:
    return RECORD_BYTES * (1 + vcpus + task * vcpus + vcpu)


def vcpu_words(memory: Memory, vcpu: int) -> memoryview:
    """A vCPU's record as signed 64-bit words: the quickest way that Python can write them."""
    start = _vcpu_offset(vcpu)
    return memory.state[start : start + RECORD_BYTES].cast("q")


def task_words(memory: Memory, vcpus: int, task: int, vcpu: int) -> memoryview:
    """A workload's record on a vCPU, as signed 64-bit words."""
    start = _task_offset(vcpus, task, vcpu)
    return memory.state[start : start + RECORD_BYTES].cast("q")


def nic_bytes(memory: Memory, vcpus: int) -> memoryview:
    """The NIC pages."""
    start = state_pages(vcpus) * SMALL_PAGE_BYTES
    return memory.state[start : start + NIC_PAGES * SMALL_PAGE_BYTES]


def initialise(memory: Memory, vcpus: int) -> None:
    """Write fresh state and NIC pages."""
    memory.state[: first_data_page(vcpus) * SMALL_PAGE_BYTES] = bytes(
        first_data_page(vcpus) * SMALL_PAGE_BYTES
    )
    header = np.frombuffer(memory.state, HEADER, 1)
    header["magic"], header["vcpus"] = MAGIC, vcpus


def forget_tasks(memory: Memory, vcpus: int) -> None:
    """Zero the records of all workloads and the NIC pages: others begin."""
    start, end = _task_offset(vcpus, 0, 0), first_data_page(vcpus) * SMALL_PAGE_BYTES
    memory.state[start:end] = bytes(end - start)


def vcpu_records(state: memoryview, vcpus: int) -> NDArray[np.void]:
    """A copy of every vCPU's record, as rows of `VCPU`; `state` is the start of the memory."""
    return np.frombuffer(state, VCPU, vcpus, _vcpu_offset(0)).copy()


def task_records(state: memoryview, vcpus: int, tasks: int) -> NDArray[np.void]:
    """A copy of every workload's records, as rows (workload, vCPU) of `TASK`."""
    found = np.frombuffer(state, TASK, tasks * vcpus, _task_offset(vcpus, 0, 0))
    return found.reshape(tasks, vcpus).copy()


def check(memory: Memory, vcpus: int) -> None:
    """Prove that the memory holds this guest.

    Raises:
        MigrationError: it does not.
    """
    header = np.frombuffer(memory.state, HEADER, 1)[0]
    if (header["magic"], header["vcpus"]) != (MAGIC, vcpus):
        raise MigrationError(
            f"guest memory has no header of {vcpus} vCPUs "
            f"(magic {int(header['magic']):#x}, {int(header['vcpus'])} vCPUs)"
        )
