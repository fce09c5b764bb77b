"""The control pages at the start of guest memory: state that has to survive a move.

It lives there and nowhere else, so the copy at the destination carries it and goes on from
it. Commands to run and stop are not state of the guest: they are in `RunBlock`, outside its
memory, and are never copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import MigrationError
from testbed.guest.memory import PAGE_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import GuestMemory

MAGIC = 0x74657374_62656431
RECORD_BYTES = 128  # two cache lines: no vCPU's counters share one with another's

HEADER = np.dtype([("magic", "<i8"), ("vcpus", "<i8")])

# Times are nanoseconds of CLOCK_MONOTONIC. `resume_gap_ns` runs from the last heartbeat before
# the vCPU was stopped to the first after it was resumed, at `resumed_at_ns`; `longest_gap_ns` is
# between two heartbeats since then and ended at `longest_gap_at_ns`.
VCPU = np.dtype(
    {
        "names": [
            "batches",
            "pages_written",
            "beat_ns",
            "longest_gap_ns",
            "longest_gap_at_ns",
            "resume_gap_ns",
            "resumed_at_ns",
            "resumes",
        ],
        "formats": ["<i8"] * 8,
        "itemsize": RECORD_BYTES,
    }
)
BATCHES, PAGES_WRITTEN, BEAT, LONGEST_GAP, LONGEST_GAP_AT, RESUME_GAP, RESUMED_AT, RESUMES = range(
    8
)


def control_pages(vcpus: int) -> int:
    """How many pages the header and the vCPUs' records take."""
    return -(-RECORD_BYTES * (1 + vcpus) // PAGE_BYTES)


def vcpu_words(memory: GuestMemory, vcpu: int) -> memoryview:
    """A vCPU's record as signed 64-bit words: the quickest way that Python can write them."""
    start = RECORD_BYTES * (1 + vcpu)
    return memory.bytes[start : start + RECORD_BYTES].cast("q")


def initialise(memory: GuestMemory, vcpus: int) -> None:
    """Write fresh control pages."""
    memory.words[: control_pages(vcpus)] = 0
    header = np.frombuffer(memory.bytes, HEADER, 1)
    header["magic"], header["vcpus"] = MAGIC, vcpus


def counters(memory: GuestMemory, vcpus: int) -> NDArray[np.void]:
    """A copy of every vCPU's record, as rows of `VCPU`."""
    return np.frombuffer(memory.bytes, VCPU, vcpus, RECORD_BYTES).copy()


def check(memory: GuestMemory, vcpus: int) -> None:
    """Prove that the memory holds this guest.

    Raises:
        MigrationError: it does not.
    """
    header = np.frombuffer(memory.bytes, HEADER, 1)[0]
    if (header["magic"], header["vcpus"]) != (MAGIC, vcpus):
        raise MigrationError(
            f"guest memory has no control page of {vcpus} vCPUs "
            f"(magic {int(header['magic']):#x}, {int(header['vcpus'])} vCPUs)"
        )
