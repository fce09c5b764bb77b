"""The probe: a process that reads a guest's own counters, wherever the guest runs.

It maps the leading pages of guest memory for reading, so the guest does nothing for it. The
destination's memory is mapped when it is made: of several the one with the newest heartbeat is
the guest's, and nobody has to tell the probe when it resumes.
"""

from __future__ import annotations

import mmap
import os
import select
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import LabError
from testbed.guest import layout
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.lab.lines import LineSocket, Message
from testbed.measure.guest_judge import judge
from testbed.measure.guest_samples import GuestSamples, VcpuSamples, WorkloadSamples, series

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from testbed.guest.workloads import Workload

LEAST_INTERVAL_NS, MOST_INTERVAL_NS = 1_000_000, 1_000_000_000
MOST_SAMPLES = 3_600_000
"""An hour at 1 ms; each second one is let go when there are more, or when they fill MOST_BYTES."""
MOST_BYTES = 512 << 20
MOST_POINTS = 10_000
"""Of a series in a result: it is told in wider intervals beyond that."""
BLOCK_BYTES = 4 << 20
"""Records are kept whole until they are so many, then what is wanted of them: less to do each."""

VCPU_COLUMNS = (
    layout.BEAT,
    layout.LONGEST_GAP,
    layout.LONGEST_GAP_AT,
    layout.RESUME_GAP,
    layout.RESUMED_AT,
    layout.RUN_NS,
    layout.IDLE_NS,
    layout.THROTTLED_NS,
    layout.STOPPED_NS,
)
"""In the order of `VcpuSamples`."""
TIMES = slice(0, 5)
OPERATIONS = {
    "oltp": "commits",
    "iometer": "I/Os",
    "web": "requests",
    "media": "parts",
    "echo": "echoes",
    "bulk": "pieces",
    "sink": "pieces",
    "ping": "replies",
    "allocate": "pages",
}
"""What a workload counts; the others count pages that they write."""
PAGE_WRITERS = frozenset({"uniform", "sequential", "zipf", "replay"})
STEADY = frozenset({"oltp", "iometer", "uniform", "sequential", "zipf"})


class StateView:
    """The records of a guest in another process's memory.

    Raises:
        LabError: there is no such process or memory, or it is too small.
    """

    def __init__(self, pid: int, descriptor: int, vcpus: int, tasks: int) -> None:
        records = 1 + vcpus * (1 + tasks)
        size = layout.state_pages(vcpus) * SMALL_PAGE_BYTES
        try:
            fd = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                block = os.fstat(fd).st_blksize  # large pages are mapped whole
                mapping = mmap.mmap(fd, -(-size // block) * block, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            raise LabError(f"map the guest memory of process {pid}: {error}") from error
        words: NDArray[np.int64] = np.frombuffer(mapping, np.int64, records * layout.RECORD_WORDS)
        self.records = words.reshape(records, layout.RECORD_WORDS)[1:]
        self._beats = self.records[:vcpus, layout.BEAT]

    def newest_beat_ns(self) -> int:
        """When any of its vCPUs last made a step."""
        return int(self._beats.max())


class Recorder:
    """Samples of a guest's records, in memory that is bounded."""

    def __init__(self, vcpus: int, workloads: Sequence[Workload], interval_ns: int) -> None:
        self.interval_ns = interval_ns
        self._vcpus, self._workloads = vcpus, workloads
        records = vcpus * (1 + len(workloads))
        per_block = max(1, min(256, BLOCK_BYTES // (records * layout.RECORD_BYTES)))
        self._block = np.empty((per_block, records, layout.RECORD_WORDS), np.int64)
        self._block_at = np.empty(per_block, np.int64)
        self._pending = 0
        self._vcpu_width = len(VCPU_COLUMNS) * vcpus
        width = 1 + self._vcpu_width + layout.RECORD_WORDS * len(workloads)
        # Untouched pages of it are none: it grows by itself.
        self._rows = np.empty((min(MOST_SAMPLES, MOST_BYTES // (8 * width)), width), np.int64)
        self._count = 0

    def take(self, at_ns: int, records: NDArray[np.int64]) -> None:
        """Note a sample."""
        self._block[self._pending] = records
        self._block_at[self._pending] = at_ns
        self._pending += 1
        if self._pending == len(self._block):
            self._pack()

    def _pack(self) -> None:
        """Move what is wanted of the block's samples into the rows."""
        if not self._pending:
            return
        if self._count + self._pending > len(self._rows):
            kept = self._rows[: self._count : 2].copy()
            self._rows[: len(kept)] = kept
            self._count = len(kept)
            self.interval_ns *= 2
        block, n = self._block[: self._pending], self._pending
        rows = self._rows[self._count : self._count + n]
        rows[:, 0] = self._block_at[:n]
        vcpus, tasks = block[:, : self._vcpus], block[:, self._vcpus :]
        wanted = vcpus[:, :, VCPU_COLUMNS].transpose(0, 2, 1)
        rows[:, 1 : 1 + self._vcpu_width] = wanted.reshape(n, self._vcpu_width)
        shaped = tasks.reshape(n, len(self._workloads), self._vcpus, layout.RECORD_WORDS)
        totals = shaped.sum(axis=2)
        totals[:, :, layout.LAST_AT] = shaped[:, :, :, layout.LAST_AT].max(axis=2)
        rows[:, 1 + self._vcpu_width :] = totals.reshape(n, -1)
        self._count += n
        self._pending = 0

    def samples(self, origin_ns: int) -> GuestSamples:
        """All samples so far, with times counted from `origin_ns` (CLOCK_MONOTONIC)."""
        self._pack()
        rows = self._rows[: self._count]
        vcpus = rows[:, 1 : 1 + self._vcpu_width].reshape(len(rows), len(VCPU_COLUMNS), -1).copy()
        vcpus[:, [0, 2, 4]] -= origin_ns
        words = rows[:, 1 + self._vcpu_width :].reshape(len(rows), -1, layout.RECORD_WORDS)
        return GuestSamples(
            self.interval_ns,
            rows[:, 0] - origin_ns,
            VcpuSamples(*(vcpus[:, number] for number in range(len(VCPU_COLUMNS)))),
            tuple(
                _workload(one, name, words[:, number], origin_ns)
                for number, (one, name) in enumerate(
                    zip(self._workloads, names(self._workloads), strict=True)
                )
            ),
        )


def names(workloads: Sequence[Workload]) -> list[str]:
    """A name for each: its kind, numbered where there are several of it."""
    kinds = [one.kind for one in workloads]
    return [
        kind if kinds.count(kind) == 1 else f"{kind} {kinds[: number + 1].count(kind)}"
        for number, kind in enumerate(kinds)
    ]


def _workload(
    workload: Workload, name: str, words: NDArray[np.int64], origin_ns: int
) -> WorkloadSamples:
    operations, size = words[:, layout.OPERATIONS], words[:, layout.BYTES]
    if workload.kind in PAGE_WRITERS:
        operations = words[:, layout.PAGES_WRITTEN]
        size = operations * SMALL_PAGE_BYTES
    return WorkloadSamples(
        name,
        OPERATIONS.get(workload.kind, "page writes"),
        workload.kind in STEADY,
        operations,
        size,
        words[:, layout.LAST_AT] - origin_ns,
        words[:, layout.LATENCY_SUM],
        words[:, layout.LATENCY : layout.LATENCY + layout.LATENCY_BUCKETS],
    )


class Probe:
    """Samples one guest, at times that are multiples of the interval from the first on."""

    def __init__(self, vcpus: int, workloads: Sequence[Workload], interval_ns: int) -> None:
        self._vcpus, self._tasks = vcpus, len(workloads)
        self._recorder = Recorder(vcpus, workloads, interval_ns)
        self._views: dict[tuple[int, int], StateView] = {}
        self.due_ns = time.monotonic_ns()

    def follow(self, memories: Sequence[tuple[int, int]]) -> None:
        """Read the guest in whichever of these, (pid, descriptor), it runs; let go of others.

        What is mapped already stays so, even if its process has died.
        """
        self._views = {
            place: self._views.get(place) or StateView(*place, self._vcpus, self._tasks)
            for place in memories
        }

    def sample(self) -> None:
        """Read once. What was missed is not made up for."""
        newest = max(self._views.values(), key=StateView.newest_beat_ns)
        at_ns = time.monotonic_ns()
        self._recorder.take(at_ns, newest.records)
        interval_ns = self._recorder.interval_ns
        self.due_ns += max(1, -((self.due_ns - at_ns) // interval_ns)) * interval_ns

    def report(self, from_ns: int, until_ns: int) -> Message:
        """What the guest felt within a window of CLOCK_MONOTONIC, times counted from its begin."""
        self.sample()
        samples = self._recorder.samples(from_ns)
        felt = judge(samples, 0, max(1, until_ns - from_ns))
        told = series(samples.every(-(-len(samples) // MOST_POINTS)))
        return {
            "guest": asdict(felt),
            "series": [asdict(line) for line in told if any(line.values)],
        }


def run(
    control: socket.socket,
    *,
    memory: tuple[int, int],
    vcpus: int,
    workloads: Sequence[Workload],
    interval_ns: int,
) -> None:
    """Sample the guest in `memory`, (pid, descriptor), until the supervisor ends it.

    Says that it samples; then heeds {"command": "follow", "memories": [[pid, descriptor], ...]}
    without a word and answers {"command": "report", "from_ns": .., "until_ns": ..}.
    """
    lines = LineSocket(control)
    probe = Probe(vcpus, workloads, interval_ns)
    try:
        probe.follow([memory])
        probe.sample()
        lines.send({"event": "sampling"})
        while True:
            wait_ns = max(0, probe.due_ns - time.monotonic_ns())
            if lines.pending() or select.select([control], [], [], wait_ns / 1e9)[0]:
                _heed(probe, lines)
            else:
                probe.sample()
    except EOFError:
        pass
    except (LabError, ValueError) as error:
        lines.send({"error": {"type": "LabError", "message": f"the probe ended: {error}"}})


def _heed(probe: Probe, lines: LineSocket) -> None:
    message = lines.receive()
    if message is None:
        return
    if message["command"] == "follow":
        probe.follow([(pid, fd) for pid, fd in message["memories"]])
    else:
        lines.send(probe.report(message["from_ns"], message["until_ns"]))
