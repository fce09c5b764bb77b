"""What a vCPU writes: batches of pages that are pure functions of their number.

Batch k of a vCPU follows from (specification, vcpu, k) alone, so another process goes on from
k, and the whole memory can be worked out again from the batch counters. Every vCPU has its own
part of the working set, so the order in which vCPUs run does not matter.

The dirty rate asked for is the rate of page writes x 4096 bytes, all vCPUs together. What a
migration finds is the distinct pages among them: sequential writers dirty as many as they
write until the working set is full; n uniform writes to W pages hit W(1 - e^(-n/W)).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.layout import control_pages
from testbed.guest.memory import PAGE_BYTES, WORDS_PER_PAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import GuestMemory
    from testbed.guest.specification import GuestSpec, WorkloadKind

BEAT_NS = 1_000_000  # a vCPU that writes beats at least this often
IDLE_BEAT_NS = 100_000_000  # an idle one; 128 of them beating each ms would take two cores
# First writes to protected pages cost about 1 us each (kernel notes): a batch of these stays
# below 200 us, so that a vCPU reaches the end of its batch that soon.
PAGES_PER_BATCH = 128
_FILL_PAGES = 1024  # 4 MiB at a time stays in the cache


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble words in place (the finaliser of splitmix64) and return them."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _key(*parts: int) -> int:
    """One word from several numbers."""
    # numpy.random would do, but each VMX would load it anew, for 40 ms.
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class VcpuWorkload:
    """One vCPU's writes: its slice of the working set, its batches and their pace.

    `interval_ns` is None for an idle vCPU.
    """

    kind: WorkloadKind
    key: int
    first_page: int
    page_count: int
    pages_per_batch: int
    interval_ns: float | None
    index: NDArray[np.uint64]

    def pages(self, batch: int) -> NDArray[np.int64]:
        """The pages that this batch writes, in order; uniform ones may repeat."""
        count = self.pages_per_batch
        if self.kind == "sequential":
            offset = batch * count % self.page_count
            pages = self.index.astype(np.int64)
            pages += offset
            pages %= self.page_count
        else:
            draws = mix(self.index + np.uint64((self.key + batch * count) % 2**64))
            draws >>= np.uint64(32)
            draws *= np.uint64(self.page_count)
            draws >>= np.uint64(32)
            pages = draws.view(np.int64)
        pages += self.first_page
        return pages

    def write(self, memory: GuestMemory, batch: int) -> NDArray[np.int64]:
        """Do the batch, which may be repeated, and return its pages.

        The word written and its value depend on the batch, the value on the page as well.
        """
        pages = self.pages(batch)
        values = pages * 0x1000003
        values += (self.key ^ batch * 0x9E3779B97F4A7C15) % 2**63
        memory.words[pages, batch * 61 % WORDS_PER_PAGE] = values.view(np.uint64)
        return pages


def vcpu_workload(spec: GuestSpec, vcpu: int) -> VcpuWorkload:
    """What a vCPU of this guest does.

    Raises:
        ValueError: the working set is larger than the memory beside the control pages, or
            there is less than a page of it for each vCPU.
    """
    control = control_pages(spec.vcpus)
    idle = spec.workload == "idle" or spec.dirty_rate_bytes_per_s == 0
    working_set = spec.working_set_bytes // PAGE_BYTES
    spare = spec.memory_bytes // PAGE_BYTES - control
    # All of the memory is a working set that people ask for; the control pages are not in it.
    working_set = min(working_set, spare) if working_set <= spare + control else working_set
    if not idle and not spec.vcpus <= working_set <= spare:
        raise ValueError(
            f"a working set of {spec.working_set_bytes} bytes does not fit {spec.vcpus} vCPUs "
            f"and {spec.memory_bytes} bytes of memory"
        )
    start, end = (control + working_set * n // spec.vcpus for n in (vcpu, vcpu + 1))
    pages_per_s = spec.dirty_rate_bytes_per_s / PAGE_BYTES / spec.vcpus
    count = max(1, min(PAGES_PER_BATCH, end - start, round(pages_per_s * BEAT_NS / 1e9)))
    return VcpuWorkload(
        spec.workload,
        _key(spec.seed, vcpu),
        start,
        end - start,
        count,
        None if idle else count / pages_per_s * 1e9,
        np.arange(count, dtype=np.uint64),
    )


def fill(memory: GuestMemory, spec: GuestSpec) -> None:
    """Give every page its own non-zero content, which follows from the seed."""
    words = np.arange(WORDS_PER_PAGE, dtype=np.uint64) + np.uint64(_key(spec.seed, 1 << 32))
    base = mix(words)
    for first in range(0, memory.page_count, _FILL_PAGES):
        chunk = memory.words[first : first + _FILL_PAGES]
        keys = mix(np.arange(first + 1, first + 1 + len(chunk), dtype=np.uint64))
        np.bitwise_xor(base, keys[:, None], out=chunk)
