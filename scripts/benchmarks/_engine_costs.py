"""What a migration costs: CPU time for each GB, and the bitmap of a very large VM."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from _pair import A, B, Pair, child, pair
from _row import Row, row
from _transfer import specification, transfer

from testbed.measure.endpoint import Endpoint
from testbed.measure.iperf import measure as iperf
from testbed.measure.iperf_result import IperfTest
from testbed.migration import bitmap
from testbed.migration.handshake import Offering
from testbed.migration.listening import Listening
from testbed.migration.sockets import connect
from testbed.migration.stream import Stream
from testbed.migration.wire import Kind, pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.migration.specification import MigrationSpec

_RUNS = 5
_SIZE_BYTES = 1 << 30
_RATE_BPS = 10**10
_PAGES = (24 << 40) // 4096
_LEFT = 1000  # pages that are still to come
_TIMEOUT_S = 120


def cpu(runs: int | None) -> list[Row]:
    """CPU seconds for each GB, of both ends together, beside iperf3's; one stream, unshaped."""
    count = runs or _RUNS
    ours, theirs = [], []
    with pair() as names:
        for _ in range(count):
            found = transfer(names, specification(_SIZE_BYTES))
            cpu_ns = found.source_cpu_ns + found.destination_cpu_ns
            ours.append(cpu_ns / found.size_bytes)
            theirs.append(_iperf3_s_per_gb(names))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    peer = "iperf3 -C cubic", statistics.median(theirs)
    name = "first pass, unshaped, both ends"
    return [row(name, statistics.median(ours), "CPU s/GB", count, peer=peer, ratio=ratio)]


def _iperf3_s_per_gb(names: Pair) -> float:
    """iperf3 tells each end's CPU time in per cent of the test's."""
    ends = (Endpoint(f"/run/netns/{name}", at) for name, at in ((names.a, A), (names.b, B)))
    found = iperf(*ends, IperfTest(volume_bytes=_SIZE_BYTES, timeout_s=_TIMEOUT_S))
    cpu_ns = (found.sender_cpu_percent + found.receiver_cpu_percent) / 100 * found.duration_ns
    return cpu_ns / found.received_bytes


def bitmaps(runs: int | None) -> list[Row]:
    """The bitmap of a VM of 24 TB of which 1000 pages are left, made, sent and read, at 10 Gb/s.

    Peer of the full one: what its 768 MiB take at that rate.
    """
    count = runs or _RUNS
    pages = np.sort(np.random.default_rng(1).choice(_PAGES, _LEFT, replace=False))
    rows = []
    with pair(_RATE_BPS) as names:
        for compacted in (False, True):
            taken_ms, size_bytes = [], 0
            for _ in range(count):
                taken_ns, size_bytes = _tell(names, pages, compacted=compacted)
                taken_ms.append(taken_ns / 1e6)
            name = f"{'compacted' if compacted else 'full'} bitmap of 24 TB"
            peer = None if compacted else ("768 MiB at 10 Gb/s", (768 << 20) * 8e3 / _RATE_BPS)
            rows += [
                row(name, statistics.median(taken_ms), "ms", count, peer=peer),
                row(f"{name}, its bytes", size_bytes, "bytes", count),
            ]
    return rows


def _tell(names: Pair, pages: NDArray[np.int64], *, compacted: bool) -> tuple[int, int]:
    """How long it takes until the other end knows these pages, and the bitmap's bytes."""
    spec = specification(1 << 20)
    ready_read, ready_write = os.pipe()
    result_read, result_write = os.pipe()

    def destination() -> None:
        names.enter(B)
        listening = Listening(spec)
        os.write(ready_write, b"1")
        (accepted,) = listening.accept(spec)
        stream = Stream(accepted.socket, spec.timeout_ns)
        frame = stream.expect(Kind.BITMAP)
        told = bitmap.decode_parts(frame.count, frame.value, _PAGES, stream.receive)
        ended_ns = time.monotonic_ns()
        if not np.array_equal(told, pages):
            raise RuntimeError("other pages came")
        os.write(result_write, f"{ended_ns} {frame.value}".encode())

    with ExitStack() as undo:
        for fd in (ready_read, ready_write, result_read, result_write):
            undo.callback(os.close, fd)
        began_read, began_write = os.pipe()
        undo.callback(os.close, began_read)
        undo.callback(os.close, began_write)

        def source() -> None:
            names.enter(A)
            os.read(ready_read, 1)
            stream = _connected(spec)
            began_ns = time.monotonic_ns()
            encoding, size_bytes, parts = bitmap.encode_parts(pages, _PAGES, compacted=compacted)
            stream.send(pack(Kind.BITMAP, encoding, size_bytes))
            for part in parts:
                stream.send(part)
            os.write(began_write, str(began_ns).encode())

        with child(destination), child(source):
            ended_ns, size_bytes = map(int, os.read(result_read, 64).split())
            began_ns = int(os.read(began_read, 32))
    return ended_ns - began_ns, size_bytes


def _connected(spec: MigrationSpec) -> Stream:
    stream = Stream(connect(spec, 0, lambda: None), spec.timeout_ns)
    offering = Offering(spec, 0)
    stream.send(offering.hello)
    while offering.wants:
        said = bytearray(offering.wants)
        stream.receive(said)
        if answer := offering.feed(said):
            stream.send(answer)
    return stream
