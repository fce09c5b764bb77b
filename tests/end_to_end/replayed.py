"""What a running guest's memory should hold: worked out again from how far its writers are."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest import layout
from testbed.guest.memory import GuestMemory
from testbed.guest.tasks.build import build, fill_key, filled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.guest.specification import GuestSpec


class Replayed:
    """The memory of a guest of writers since it was powered on. A context manager."""

    def __init__(self, spec: GuestSpec) -> None:
        self._spec = spec
        self._memory = GuestMemory("replayed", spec.memory_bytes)
        pages = filled(spec)
        self._memory.fill(pages.start, len(pages), fill_key(spec))
        self._tasks = [
            (task, vcpu)
            for vcpu in range(spec.vcpus)
            for _, task in build(spec, vcpu, self._memory)
        ]
        self._done = [0] * spec.vcpus

    def close(self) -> None:
        self._tasks.clear()
        self._memory.close()

    def different(self, vmx_pid: int, vcpu_pids: Sequence[int]) -> int:
        """How many data pages of the guest are not what its writers have made of them.

        Fails if it has gone back to what it was before.
        """
        with _standing_still(vcpu_pids):
            path = memory_of(vmx_pid, self._spec.memory_bytes)
            words = np.fromfile(path, np.uint64).reshape(-1, 512)
        batches = layout.task_records(memoryview(words).cast("B"), self._spec.vcpus, 1)["batches"]
        data = slice(layout.first_data_page(self._spec.vcpus), None)
        for task, vcpu in self._tasks:
            begun = self._done[vcpu], int(batches[0, vcpu])
            assert begun[0] <= begun[1], (
                f"vCPU {vcpu} went back from batch {begun[0]} to {begun[1]}"
            )
            for batch in range(*begun):
                task.write(self._memory, batch)
            self._done[vcpu] = begun[1]
        wrong = (self._memory.words[data] != words[data]).any(axis=1)
        # Each vCPU may have been stopped within the batch that comes next.
        kept = self._memory.words.copy()
        for task, vcpu in self._tasks:
            task.write(self._memory, self._done[vcpu])
        wrong &= (self._memory.words[data] != words[data]).any(axis=1)
        self._memory.words[:] = kept
        return int(np.count_nonzero(wrong))


def memory_of(vmx_pid: int, size_bytes: int) -> str:
    """Where a VMX has its guest's memory."""
    found = [
        str(fd)
        for fd in Path(f"/proc/{vmx_pid}/fd").iterdir()
        if str(fd.readlink()).startswith("/memfd:guest-") and fd.stat().st_size == size_bytes
    ]
    assert found
    return found[0]


@contextmanager
def _standing_still(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes, and see that they have."""
    deadline = time.monotonic() + 10
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        while any(_state_of(pid) != "T" for pid in pids):
            assert time.monotonic() < deadline
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
