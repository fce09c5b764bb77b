"""The engine's copy beside iperf3: first pass and scattered pages, one TCP stream, cubic.

Ours is the memory over the time from the first byte until the destination has acknowledged
that all of it is in its memory. iperf3 sends as many bytes over the same path just before or
after; its figure is what its receiver counted. Value and peer value are medians; the ratio is the
median of each pair's own, as a busy machine slows both of a pair.
"""

from __future__ import annotations

import os
import secrets
import statistics
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

sys.path.append(str(Path(__file__).parent))
from _pair import A, B, Pair, child, pair

from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.measure.endpoint import Endpoint
from testbed.measure.iperf import measure as iperf
from testbed.measure.iperf_result import IperfTest
from testbed.migration.incoming import Incoming
from testbed.migration.listening import Listening
from testbed.migration.outgoing import Outgoing
from testbed.migration.specification import MigrationSpec
from testbed.migration.stream import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

_GIB = 1 << 30
_ROUNDS = 10  # of a tenth of the pages each
_RUNS = 7
_DEADLINE_S = 120


_Prepare: TypeAlias = "Callable[[int], Callable[[Outgoing], None]]"


@dataclass(frozen=True, slots=True)
class _Case:
    """A row: the link (None: unshaped), the bytes of each run, what is sent, the least ratio.

    `block_bytes` is what iperf3 writes at a time; its default is 128 KiB, ours writes 1 MiB.
    """

    name: str
    rate_bps: int | None
    size_bytes: int
    prepare: _Prepare
    bar: float | None
    block_bytes: int | None = None


def run(runs: int | None = None) -> list[dict[str, object]]:
    """Unshaped, 1, 7 and 10 Gb/s; scattered pages; and iperf3 with writes as large as ours."""
    cases = [
        _Case("first pass, unshaped", None, _GIB, _first_pass, 1.0),
        _Case("first pass, 1 Gb/s", 10**9, _GIB // 4, _first_pass, 0.99),
        _Case("first pass, 7 Gb/s", 7 * 10**9, _GIB, _first_pass, 0.99),
        _Case("first pass, 10 Gb/s", 10**10, _GIB, _first_pass, 0.99),
        _Case("scattered 4 KB pages, unshaped", None, _GIB, _scattered, 0.85),
        # What the size of the writes makes: no bar, but nobody should take it for the engine's.
        _Case("first pass, unshaped", None, _GIB, _first_pass, None, 1 << 20),
        _Case("scattered 4 KB pages, unshaped", None, _GIB, _scattered, None, 1 << 20),
    ]
    rows = []
    for case in cases:
        with pair(case.rate_bps) as names:
            rows.append(_compare(case, names, runs or _RUNS))
    return rows


def _compare(case: _Case, names: Pair, runs: int) -> dict[str, object]:
    ours, theirs = [], []
    for number in range(runs):
        order = [
            lambda: ours.append(_engine_bps(names, case.size_bytes, case.prepare)),
            lambda: theirs.append(_iperf3_bps(names, case.size_bytes, case.block_bytes)),
        ]
        for measure in order if number % 2 else reversed(order):
            measure()
    value, peer_value = statistics.median(ours), statistics.median(theirs)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "name": case.name,
        "value": value / 1e9,
        "unit": "Gbit/s",
        "peer": "iperf3 -C cubic" + (" -l 1M" if case.block_bytes else ""),
        "peer_value": peer_value / 1e9,
        "ratio": ratio,
        "bar": None if case.bar is None else f">= {case.bar}",
        "met": None if case.bar is None else ratio >= case.bar,
        "runs": runs,
    }


def _first_pass(_: int) -> Callable[[Outgoing], None]:
    """Send the whole memory."""
    return lambda streams: streams.copy(None, -1)


def _scattered(page_count: int) -> Callable[[Outgoing], None]:
    """Send as many pages as the memory has, a random tenth of them at a time."""
    random = np.random.default_rng(1)
    tenth = page_count // _ROUNDS
    rounds = [np.sort(random.permutation(page_count)[:tenth]) for _ in range(_ROUNDS)]

    def send(streams: Outgoing) -> None:
        for number, pages in enumerate(rounds, -1):
            streams.copy(pages, number)

    return send


def _engine_bps(names: Pair, size_bytes: int, prepare: _Prepare) -> float:
    guest = GuestSpec("bench", size_bytes, 1)
    spec = MigrationSpec(time.time_ns() // 1000, secrets.token_bytes(32), guest, A, B)
    ready_read, ready_write = os.pipe()
    result_read, result_write = os.pipe()

    def destination() -> None:
        names.enter(B)
        listening = Listening(spec)
        with GuestMemory("bench-b", size_bytes) as memory:
            os.write(ready_write, b"1")
            # The source closes when it has its last answer, and only then.
            with Incoming(spec, listening.accept(spec), memory) as streams, suppress(PeerError):
                streams.copy()

    def source() -> None:
        names.enter(A)
        with GuestMemory("bench-a", size_bytes) as memory:
            memory.words[:] = np.arange(memory.page_count, dtype=np.uint64)[:, None]
            os.read(ready_read, 1)
            with Outgoing(spec, memory, _nothing) as streams:
                streams.connect()
                send = prepare(memory.page_count)
                began_ns = time.monotonic_ns()
                send(streams)
                taken_ns = time.monotonic_ns() - began_ns
        os.write(result_write, str(taken_ns).encode())

    with ExitStack() as undo:
        for fd in (ready_read, ready_write, result_read, result_write):
            undo.callback(os.close, fd)
        with child(destination), child(source):
            taken_ns = int(os.read(result_read, 32))
    return size_bytes * 8e9 / taken_ns


def _nothing() -> None:
    pass


def _iperf3_bps(names: Pair, size_bytes: int, block_bytes: int | None) -> float:
    """What iperf3's receiver counted; that it used cubic and was not cut short is checked."""
    ends = (Endpoint(f"/run/netns/{name}", at) for name, at in ((names.a, A), (names.b, B)))
    test = IperfTest(volume_bytes=size_bytes, block_bytes=block_bytes, timeout_s=_DEADLINE_S)
    return iperf(*ends, test).received_bps
