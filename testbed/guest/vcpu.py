"""A vCPU: a process that does its tasks in the guest's memory, and stops when told.

It stops between two steps only, so the memory then holds whole batches and their counters.
Words in the `RunBlock` carry command and answer; the two eventfds only wake whoever waits, so
a wake too many does no harm and none can be lost.
"""

from __future__ import annotations

import errno
import os
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from testbed.guest import layout
from testbed.guest.program import decode
from testbed.guest.run_block import (
    CLAIM,
    GO,
    PROGRAM,
    RUN,
    RUNNING,
    SLEEP,
    STARTING,
    STATE,
    STOPPED,
)
from testbed.guest.task import NEVER_NS
from testbed.guest.tasks.build import build

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.guest.run_block import RunBlock
    from testbed.guest.task import Task, TaskContext

BEAT_NS = 1_000_000  # a vCPU that has something due soon beats at least this often
IDLE_BEAT_NS = 100_000_000  # any other; 128 of them beating each ms would take two cores
SHORTEST_SLEEP_NS = 50_000
SHORTEST_RUN_NS = 1_000_000  # between two sleeps: falling asleep and waking up costs some 50 us
LONGEST_SLEEP_NS = 20_000_000  # a heartbeat in between would cost what the throttle saves
_MOST_CARRIED_NS = 1_000_000_000  # of sleep that was too long or has not been slept yet


@dataclass(frozen=True, slots=True)
class VcpuStart:
    """What a vCPU process is given: its number, memory, words and wakers.

    `kick_fd` wakes the NIC process. `handover` takes the userfaultfd to the VMX. `written` is the
    byte map, if that tracks. `cpus` is where it may run; empty: anywhere.
    """

    number: int
    memory: Memory
    block: RunBlock
    wake_fd: int
    answer_fd: int
    kick_fd: int
    handover: socket.socket
    written: np.ndarray[tuple[int], np.dtype[np.uint8]] | None
    setup: Callable[[], None] | None
    cpus: frozenset[int]


class Vcpu:
    """The life of a vCPU process."""

    def __init__(self, start: VcpuStart, wake_fd: int) -> None:
        self._start, self._wake_fd = start, wake_fd
        self._line = start.block.words(start.number)
        self._record = layout.vcpu_words(start.memory, start.number)
        self._program = 0
        self._contexts: tuple[TaskContext, ...] = ()
        self._tasks: tuple[Task, ...] = ()
        self._due: list[float] = []
        self._owed_ns = 0.0  # of sleep, to the throttle

    def live(self) -> NoReturn:
        """Stop and run in turn, until killed."""
        self._build()
        while True:
            claimed = self._stand_still()
            if self._line[PROGRAM] != self._program:
                self._build()
            self._begin(claimed=claimed)
            self._answer(RUNNING)
            # What a task needs to start may be a page that is missing still (missing.py).
            for number, task in enumerate(self._tasks):
                self._due[number] = self._do(number, task.start)
            self._run()

    def _stand_still(self) -> bool:
        """Until told to run; whether it was claimed for all that time."""
        claimed = self._line[RUN] == CLAIM
        while True:
            self._answer(STOPPED)
            while (command := self._line[RUN]) != GO:
                claimed = claimed and command == CLAIM
                os.read(self._wake_fd, 8)
            # If it was told to stop anew just now, the VMX may go by the answer from before.
            self._answer(STARTING)
            if self._line[RUN] == GO:
                return claimed

    def _answer(self, state: int) -> None:
        self._line[STATE] = state
        os.eventfd_write(self._start.answer_fd, 1)

    def _build(self) -> None:
        start = self._start
        self._program = self._line[PROGRAM]
        spec = decode(start.block.read_program())
        start.memory.disown()
        mark = None if start.written is None else self._mark
        made = build(
            spec, start.number, start.memory, mark=mark, kick=self._kick, wake_fd=self._wake_fd
        )
        self._contexts = tuple(context for context, _ in made)
        self._tasks = tuple(task for _, task in made)
        self._due = [NEVER_NS] * len(made)

    def _mark(self, pages: NDArray[np.int64]) -> None:
        assert self._start.written is not None
        self._start.written[pages] = 1  # after the write: see bytemap.py

    def _kick(self) -> None:
        os.eventfd_write(self._start.kick_fd, 1)

    def _begin(self, *, claimed: bool) -> None:
        record, now = self._record, time.monotonic_ns()
        self._owed_ns = 0.0
        if claimed:  # a stop like any other pause of this vCPU; the guest was not suspended
            self._account(layout.STOPPED_NS)
        else:
            gap = now - record[layout.BEAT] if record[layout.BEAT] else 0
            record[layout.RESUME_GAP] = gap
            record[layout.STOPPED_NS] += gap
            record[layout.LONGEST_GAP] = record[layout.LONGEST_GAP_AT] = 0
            record[layout.RESUMED_AT] = record[layout.BEAT] = now
            record[layout.RESUMES] += 1

    def _account(self, word: int) -> tuple[int, int]:
        """Book the time since the last heartbeat on a word of the record; a heartbeat itself.

        Returns:
            That time, and the time now.
        """
        record, now = self._record, time.monotonic_ns()
        gap = now - record[layout.BEAT]
        record[word] += gap
        if gap > record[layout.LONGEST_GAP]:
            record[layout.LONGEST_GAP], record[layout.LONGEST_GAP_AT] = gap, now
        record[layout.BEAT] = now
        return gap, now

    def _do(self, number: int, verb: Callable[[int], float]) -> float:
        """Let a task start or make a step. One that fails has ended, which its record says."""
        record = self._contexts[number].record
        if record[layout.FAILED]:
            return NEVER_NS
        try:
            return verb(self._record[layout.BEAT])
        except OSError as error:
            record[layout.FAILED] = error.errno or errno.EIO
            return NEVER_NS

    def _run(self) -> None:
        line, record, due = self._line, self._record, self._due
        now, last = record[layout.BEAT], -1
        while line[RUN] == GO:
            number, at = self._next(last)
            if at > now:
                now = self._idle(at - now)
                continue
            due[number] = self._do(number, self._tasks[number].step)
            record[layout.STEPS] += 1
            ran, now = self._account(layout.RUN_NS)
            # Whoever is due longest goes first, so one that is always due starves no other.
            due[number], last = max(due[number], now), number
            if line[SLEEP]:
                now = self._throttle(ran)
        self._drain()

    def _drain(self) -> None:
        """Let tasks end what is under way, also of those that have failed."""
        for task, context in zip(self._tasks, self._contexts, strict=True):
            try:
                task.drain()
            except OSError as error:
                context.record[layout.FAILED] = error.errno or errno.EIO
        self._account(layout.RUN_NS)

    def _next(self, last: int) -> tuple[int, float]:
        """The task to go on with, and when it is due: what is pending comes before what is due.

        But not twice in a row when others are due.
        """
        number, soonest = -1, NEVER_NS
        for index, at in enumerate(self._due):
            if self._tasks[index].pending() and not self._contexts[index].record[layout.FAILED]:
                at = min(at, self._record[layout.BEAT]) if index == last else 0  # noqa: PLW2901
            if at < soonest:
                number, soonest = index, at
        return number, soonest

    def _idle(self, wait_ns: float) -> int:
        beat_ns = BEAT_NS if wait_ns < IDLE_BEAT_NS else IDLE_BEAT_NS
        self._sleep(min(wait_ns, beat_ns))
        return self._account(layout.IDLE_NS)[1]

    def _throttle(self, ran_ns: int) -> int:
        """Sleep for what is owed for running, exactly on average.

        The CPU time that it takes to fall asleep and wake up is running, too; what is owed for
        that waits until some work has been done.
        """
        line, record = self._line, self._record
        now = record[layout.BEAT]
        self._owed_ns += ran_ns * line[SLEEP] / 1e6
        if self._owed_ns < SHORTEST_RUN_NS * line[SLEEP] / 1e6:
            return now
        left_ns = self._owed_ns
        while left_ns >= SHORTEST_SLEEP_NS and line[RUN] == GO and line[SLEEP]:
            cpu_ns = time.thread_time_ns()
            self._sleep(min(left_ns, LONGEST_SLEEP_NS))
            gap, now = self._account(layout.THROTTLED_NS)
            ran_ns = min(time.thread_time_ns() - cpu_ns, gap)
            record[layout.THROTTLED_NS] -= ran_ns
            record[layout.RUN_NS] += ran_ns
            left_ns -= gap - ran_ns
            self._owed_ns += ran_ns * line[SLEEP] / 1e6 - (gap - ran_ns)
        bounded = min(max(self._owed_ns, -_MOST_CARRIED_NS), _MOST_CARRIED_NS)
        self._owed_ns = bounded if line[SLEEP] else 0.0
        return now

    def _sleep(self, sleep_ns: float) -> None:
        """Until then, or the vCPU is woken."""
        if select.select([self._wake_fd], [], [], sleep_ns / 1e9)[0]:
            os.read(self._wake_fd, 8)
