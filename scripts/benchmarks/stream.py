"""The engine's copy beside iperf3: first pass and scattered pages, one TCP stream, cubic.

Ours is the memory over the time from the first byte until the destination has acknowledged
that all of it is in its memory. iperf3 sends as many bytes over the same path just before or
after; its figure is what its receiver counted. Value and peer value are medians; the ratio is the
median of each pair's own, as a busy machine slows both of a pair.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parent))
from _pair import A, B, Pair, pair
from _transfer import first_pass, scattered, specification, transfer

from testbed.measure.endpoint import Endpoint
from testbed.measure.iperf import measure as iperf
from testbed.measure.iperf_result import IperfTest

if TYPE_CHECKING:
    from collections.abc import Callable

    from _transfer import Send

_GIB = 1 << 30
_RUNS = 7
_DEADLINE_S = 120


@dataclass(frozen=True, slots=True)
class _Case:
    """A row: the link (None: unshaped), the bytes of each run, what is sent, the least ratio.

    `block_bytes` is what iperf3 writes at a time; its default is 128 KiB, ours writes 1 MiB.
    """

    name: str
    rate_bps: int | None
    size_bytes: int
    prepare: Callable[[int], Send]
    bar: float | None
    block_bytes: int | None = None


def run(runs: int | None = None) -> list[dict[str, object]]:
    """Unshaped, 1, 7 and 10 Gb/s; scattered pages; and iperf3 with writes as large as ours."""
    cases = [
        _Case("first pass, unshaped", None, _GIB, first_pass, 1.0),
        _Case("first pass, 1 Gb/s", 10**9, _GIB // 4, first_pass, 0.99),
        _Case("first pass, 7 Gb/s", 7 * 10**9, _GIB, first_pass, 0.99),
        _Case("first pass, 10 Gb/s", 10**10, _GIB, first_pass, 0.99),
        _Case("scattered 4 KB pages, unshaped", None, _GIB, scattered, 0.85),
        # What the size of the writes makes: no bar, but nobody should take it for the engine's.
        _Case("first pass, unshaped", None, _GIB, first_pass, None, 1 << 20),
        _Case("scattered 4 KB pages, unshaped", None, _GIB, scattered, None, 1 << 20),
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
            lambda: ours.append(transfer(names, specification(case.size_bytes), case.prepare)),
            lambda: theirs.append(_iperf3_bps(names, case.size_bytes, case.block_bytes)),
        ]
        for measure in order if number % 2 else reversed(order):
            measure()
    rates = [one.rate_bps for one in ours]
    value, peer_value = statistics.median(rates), statistics.median(theirs)
    ratio = statistics.median(a / b for a, b in zip(rates, theirs, strict=True))
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


def _iperf3_bps(names: Pair, size_bytes: int, block_bytes: int | None) -> float:
    """What iperf3's receiver counted; that it used cubic and was not cut short is checked."""
    ends = (Endpoint(f"/run/netns/{name}", at) for name, at in ((names.a, A), (names.b, B)))
    test = IperfTest(volume_bytes=size_bytes, block_bytes=block_bytes, timeout_s=_DEADLINE_S)
    return iperf(*ends, test).received_bps
