"""Links that are filled by several: one migration over several NICs, several over one."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from _pair import Pair, addresses, child, pair
from _row import Row, row
from _transfer import Transfer, specification, transfer

from testbed.migration.specification import StreamSpec

if TYPE_CHECKING:
    from testbed.migration.specification import MigrationSpec

_RUNS = 3
_RATE_BPS = 10**9
_SIZE_BYTES = 1 << 28  # for each NIC
_SMALL_BYTES = 1 << 26  # of each of many migrations
_AT_ONCE = 8
_DEADLINE_S = 60


def nics(runs: int | None) -> list[Row]:
    """One migration over one, two and four NICs of 1 Gb/s each, a stream on each."""
    count = runs or _RUNS
    wanted = {2: 1.95, 4: 3.9}
    rates: dict[int, list[float]] = {number: [] for number in (1, *wanted)}
    with pair(_RATE_BPS, nics=max(wanted)) as names:
        for _ in range(count):
            for number, found in rates.items():
                streams = tuple(
                    StreamSpec(*addresses(nic), source_device=f"eth{nic}") for nic in range(number)
                )
                spec = specification(number * _SIZE_BYTES, streams=streams)
                found.append(transfer(names, spec).rate_bps / 1e9)
    one = rates[1]
    rows = [row("1 NIC of 1 Gb/s", statistics.median(one), "Gbit/s", count)]
    for number, least in wanted.items():
        ours = rates[number]
        ratio = statistics.median(a / b for a, b in zip(ours, one, strict=True))
        rows.append(
            row(
                f"{number} NICs of 1 Gb/s",
                statistics.median(ours),
                "Gbit/s",
                count,
                peer=("1 NIC", statistics.median(one)),
                ratio=ratio,
                bar=f">= {least}",
                met=ratio >= least,
            )
        )
    return rows


def migrations(runs: int | None) -> list[Row]:
    """Eight migrations at once over a link of 1 Gb/s, from the first's begin to the last's end."""
    count = runs or _RUNS
    together, alone = [], []
    with pair(_RATE_BPS) as names:
        for _ in range(count):
            alone.append(transfer(names, specification(_AT_ONCE * _SMALL_BYTES)).rate_bps / 1e9)
            found = _at_once(names, [specification(_SMALL_BYTES) for _ in range(_AT_ONCE)])
            taken_ns = max(it.ended_ns for it in found) - min(it.began_ns for it in found)
            together.append(sum(it.size_bytes for it in found) * 8 / taken_ns)
    ratio = statistics.median(a / b for a, b in zip(together, alone, strict=True))
    value, peer = statistics.median(together), ("1 migration", statistics.median(alone))
    name, bar = f"{_AT_ONCE} migrations at once, 1 Gb/s", ">= 0.97"
    return [row(name, value, "Gbit/s", count, peer=peer, ratio=ratio, bar=bar, met=ratio >= 0.97)]


def _at_once(names: Pair, specs: list[MigrationSpec]) -> list[Transfer]:
    """Begin to send them at the same time, each between processes of its own."""
    gate = multiprocessing.get_context("fork").Barrier(len(specs), timeout=_DEADLINE_S)
    with ExitStack() as undo:
        told = []
        for number, spec in enumerate(specs):
            read, write = os.pipe()
            undo.callback(os.close, read)
            undo.callback(os.close, write)
            told.append(read)
            own = replace(spec, port=spec.port + number)

            def work(own: MigrationSpec = own, write: int = write) -> None:
                found = transfer(names, own, gate=gate.wait)
                os.write(write, json.dumps(asdict(found)).encode())

            undo.enter_context(child(work))
        return [Transfer(**json.loads(os.read(read, 1 << 12))) for read in told]
