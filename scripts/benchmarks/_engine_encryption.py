"""What encrypted vMotion takes of a core, beside the same transfer in plain."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

from _pair import pair
from _row import Row, row
from _transfer import Transfer, first_pass, scattered, specification, transfer

from testbed.migration.encrypted import RECORD_BYTES, TAG_BYTES, Sealing
from testbed.migration.handshake import KEY_BYTES, PREFIX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

_RUNS = 5
_SIZE_BYTES = 1 << 30
_SEALED_BYTES = 1 << 28  # by the cipher alone


def encryption(runs: int | None) -> list[Row]:
    """The cipher alone; then memory in plain and encrypted, unshaped: rates, and GB per CPU second.

    CPU time is that of each end's own process, in the kernel too. No bar: nothing is published.
    """
    count = runs or _RUNS
    sealing, opening = zip(*(_cipher() for _ in range(count)), strict=True)
    rows = [
        row("AES-256-GCM, seal, a core", statistics.median(sealing), "GB/s", count),
        row("AES-256-GCM, open, a core", statistics.median(opening), "GB/s", count),
    ]
    with pair() as names:
        for name, prepare in (("first pass", first_pass), ("scattered 4 KB pages", scattered)):
            pairs = []
            for number in range(count):
                order = (True, False) if number % 2 else (False, True)
                found = {
                    encrypted: transfer(
                        names, specification(_SIZE_BYTES, encrypted=encrypted), prepare
                    )
                    for encrypted in order
                }
                pairs.append((found[True], found[False]))
            rows += [
                _beside(f"{name}, encrypted, unshaped", "Gbit/s", pairs, _gbps),
                _beside(f"{name}, encrypted, a core at the source", "GB/s", pairs, _at_source),
                _beside(
                    f"{name}, encrypted, a core at the destination", "GB/s", pairs, _at_destination
                ),
            ]
    return rows


def _cipher() -> tuple[float, float]:
    """GB a second of CPU time, of sealing and of opening records as large as they come."""
    key = os.urandom(KEY_BYTES + PREFIX_BYTES)
    plain = memoryview(bytearray(os.urandom(RECORD_BYTES)))
    record = memoryview(bytearray(4 + RECORD_BYTES + TAG_BYTES))
    seal, unseal = Sealing(key), Sealing(key)
    taken_ns = [0, 0]
    for _ in range(_SEALED_BYTES // RECORD_BYTES):
        began_ns = time.process_time_ns()
        seal.seal(plain, record)
        sealed_ns = time.process_time_ns()
        unseal.unseal(record[4:], plain)
        taken_ns[0] += sealed_ns - began_ns
        taken_ns[1] += time.process_time_ns() - sealed_ns
    return _SEALED_BYTES / taken_ns[0], _SEALED_BYTES / taken_ns[1]


def _gbps(one: Transfer) -> float:
    return one.rate_bps / 1e9


def _at_source(one: Transfer) -> float:
    return one.size_bytes / one.source_cpu_ns


def _at_destination(one: Transfer) -> float:
    return one.size_bytes / one.destination_cpu_ns


def _beside(
    name: str,
    unit: str,
    pairs: list[tuple[Transfer, Transfer]],
    figure: Callable[[Transfer], float],
) -> Row:
    ours, theirs = ([figure(one) for one in side] for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    peer = "in plain", statistics.median(theirs)
    return row(name, statistics.median(ours), unit, len(pairs), peer=peer, ratio=ratio)
