"""One transfer by the engine's own streams, between processes of two namespaces, and its costs."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from _pair import A, B, Pair, child

from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.migration.incoming import Incoming
from testbed.migration.listening import Listening
from testbed.migration.outgoing import Outgoing
from testbed.migration.specification import MigrationSpec
from testbed.migration.stream import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 10  # of a tenth of the pages each

Send: TypeAlias = "Callable[[Outgoing], None]"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Until when all was in the destination's memory (CLOCK_MONOTONIC), and each end's CPU time."""

    size_bytes: int
    began_ns: int
    ended_ns: int
    source_cpu_ns: int
    destination_cpu_ns: int

    @property
    def rate_bps(self) -> float:
        """Memory over time."""
        return self.size_bytes * 8e9 / (self.ended_ns - self.began_ns)


def specification(size_bytes: int, **fields: object) -> MigrationSpec:
    """A migration of a guest with so much memory from A to B."""
    guest = GuestSpec("bench", size_bytes, 1)
    return MigrationSpec(time.time_ns() // 1000, secrets.token_bytes(32), guest, A, B, **fields)


def first_pass(_: int) -> Send:
    """Send the whole memory."""
    return lambda streams: streams.copy(None, -1)


def scattered(page_count: int) -> Send:
    """Send as many pages as the memory has, a random tenth of them at a time."""
    random = np.random.default_rng(1)
    tenth = page_count // _ROUNDS
    rounds = [np.sort(random.permutation(page_count)[:tenth]) for _ in range(_ROUNDS)]

    def send(streams: Outgoing) -> None:
        for number, pages in enumerate(rounds, -1):
            streams.copy(pages, number)

    return send


def _nothing() -> object:
    return None


def transfer(
    names: Pair,
    spec: MigrationSpec,
    prepare: Callable[[int], Send] = first_pass,
    gate: Callable[[], object] = _nothing,
) -> Transfer:
    """Send what `prepare` makes of the number of pages; both ends' memories are populated.

    `gate` is called when everything else is ready.
    """
    size_bytes = spec.guest.memory_bytes
    ready_read, ready_write = os.pipe()
    result_read, result_write = os.pipe()
    cpu_read, cpu_write = os.pipe()

    def destination() -> None:
        names.enter(B)
        listening = Listening(spec)
        with GuestMemory("bench-b", size_bytes) as memory:
            os.write(ready_write, b"1")
            accepted = listening.accept(spec)
            listening.close()
            cpu_ns = time.process_time_ns()
            # The source closes when it has its last answer, and only then.
            with Incoming(spec, accepted, memory) as streams, suppress(PeerError):
                streams.copy()
            os.write(cpu_write, str(time.process_time_ns() - cpu_ns).encode())

    def source() -> None:
        names.enter(A)
        with GuestMemory("bench-a", size_bytes) as memory:
            memory.words[:] = np.arange(memory.page_count, dtype=np.uint64)[:, None]
            os.read(ready_read, 1)
            with Outgoing(spec, memory, _no_turn) as streams:
                streams.connect()
                send = prepare(memory.page_count)
                gate()
                cpu_ns, began_ns = time.process_time_ns(), time.monotonic_ns()
                send(streams)
                ended_ns = time.monotonic_ns()
                cpu_ns = time.process_time_ns() - cpu_ns
        os.write(result_write, f"{began_ns} {ended_ns} {cpu_ns}".encode())

    with ExitStack() as undo:
        for fd in (ready_read, ready_write, result_read, result_write, cpu_read, cpu_write):
            undo.callback(os.close, fd)
        with child(destination), child(source):
            told = *os.read(result_read, 64).split(), os.read(cpu_read, 32)
    return Transfer(size_bytes, *map(int, told))


def _no_turn() -> None:
    pass
