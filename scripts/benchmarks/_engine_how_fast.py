"""How fast can we go? topologies/how-fast-can-we-go.yaml, as `testbed` itself runs it.

Rates are those of what crossed the wire in the first pass: pages of zeros are told, not sent.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from _engine_lab import example, migrated, profiles
from _network_lab import Lab, lab
from _row import Row, row, say

from testbed.kernel import netns
from testbed.lab.adapters import adapter
from testbed.lab.link_change import LinkChange
from testbed.measure.endpoint import Endpoint
from testbed.measure.ping import PingTest
from testbed.measure.ping import measure as ping
from testbed.measure.theory import tcp_goodput_bps

if TYPE_CHECKING:
    from testbed.report.result import EngineReport

_RUNS = 3
_MTU = 1500
_RATE_BPS, _WIDER_BPS = 7 * 10**9, 10**10
_CORE_MB_S = 2260 / 8  # 1000 MHz for 1 Gb/s are 8 cycles a byte (facts row 14)
_MOST_OFF = 0.05
_WINDOW_OFF = 0.1
_LEAST_NS = 200_000_000
_RTTS_MS = (0, 1, 2, 5)
_VMS = "win2003", "win2008"
_UNCAPPED = "inherits: esx-4.0\ncycles_per_byte: 0\ncycles_per_packet: 0\n"


def how_fast(runs: int | None) -> list[Row]:
    """One core beside its theory: alone, shared by two VMs, at half the clock, a wider link.

    The best of some runs: what else the machine does only slows them. Then without the CPU's
    cap, where the window decides, at some distances.
    """
    count = runs or _RUNS
    text = example("how-fast-can-we-go").replace("1GiB", "384MiB")
    halved = text.replace("mhz: 2260", "mhz: 1130")
    one, half, wider = [], [], []
    two: list[float] = []
    with lab("2260", text) as here, lab("1130", halved) as slower:
        for _ in range(count):
            one.append(_alone(here))
            half.append(_alone(slower))
            two += _together(here)
            _set_rate(here, _WIDER_BPS)
            wider.append(_alone(here))
            _set_rate(here, _RATE_BPS)
        if not two:
            raise RuntimeError("two VMs were never in their first pass together for long enough")
        rows = [
            _cap("one core of 2260 MHz, 7 Gb/s", max(one), count, ("theory", _CORE_MB_S)),
            _cap("two VMs at once share it", max(two), count, ("theory", _CORE_MB_S)),
            _cap("half the MHz", max(half), count, ("half of one VM", max(one) / 2)),
            _cap("a link of 10 Gb/s", max(wider), count, ("7 Gb/s", max(one))),
        ]
        with profiles({"uncapped": _UNCAPPED}) as files:
            return [*rows, *_windows(here, files["uncapped"], count)]


def _windows(here: Lab, profile: str, count: int) -> list[Row]:
    a, b = (adapter(here.plan, f"esx0{number}/vmk1") for number in (1, 2))
    a_end, b_end = (Endpoint(netns.path_of(one.netns), one.addresses[0][0]) for one in (a, b))
    link = tcp_goodput_bps(_RATE_BPS, _MTU) / 8e6
    rows = []
    for rtt_ms in _RTTS_MS:
        here.change(LinkChange(("flex-a", "flex-b"), delay_ns=rtt_ms * 500_000))
        pinged_ns = ping(a_end, b_end, PingTest(count=20, interval_ns=20_000_000)).median_ns
        reports = [_there_and_back(here, profile) for _ in range(count)]
        value = max(map(_rate, reports))
        limit = (reports[0].streams[0].window_bytes or 0) * 1e3 / pinged_ns
        limits = rtt_ms > 0
        ratio = value / min(limit, link)
        rows.append(
            row(
                f"no CPU limit, RTT {rtt_ms} ms", value, "MB/s", count,
                peer=("window/RTT", limit) if limit < link else ("link", link),
                ratio=ratio,
                bar=f"within {_WINDOW_OFF:.0%}" if limits else None,
                met=abs(ratio - 1) <= _WINDOW_OFF if limits else None,
            )
        )  # fmt: skip
    return rows


def _cap(name: str, value: float, count: int, peer: tuple[str, float]) -> Row:
    ratio = value / peer[1]
    bar = f"within {_MOST_OFF:.0%}"
    met = abs(ratio - 1) <= _MOST_OFF
    return row(name, value, "MB/s", count, peer=peer, ratio=ratio, bar=bar, met=met)


def _rate(report: EngineReport) -> float:
    first = report.iterations[0]
    return first.wire_bytes * 1e3 / first.duration_ns


def _there_and_back(here: Lab, profile: str | None = None) -> EngineReport:
    """The way there is what is measured."""
    found = migrated(here, _VMS[0], "esx02", profile=profile, forced=True)
    migrated(here, _VMS[0], "esx01", profile="unlimited")
    return found


def _alone(here: Lab) -> float:
    return _rate(_there_and_back(here))


def _together(here: Lab) -> list[float]:
    """What crossed the wire for both while both were in their first pass; none if too short."""

    def timed(vm: str) -> tuple[EngineReport, int]:
        report = migrated(here, vm, "esx02")
        return report, time.monotonic_ns() - report.total_ns  # answers come soon after the end

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(timed, _VMS))
    for vm in _VMS:
        migrated(here, vm, "esx01", profile="unlimited")
    firsts = [(report.iterations[0], began_ns) for report, began_ns in found]
    begin_ns = max(began_ns + first.at_ns for first, began_ns in firsts)
    end_ns = min(began_ns + first.at_ns + first.duration_ns for first, began_ns in firsts)
    if end_ns - begin_ns < _LEAST_NS:
        say(f"two VMs: {max(end_ns - begin_ns, 0) / 1e6:.0f} ms together; not counted")
        return []
    sent = 0.0
    for report, began_ns in found:
        at_ns = [began_ns + sample.at_ns for sample in report.samples]
        bytes_ = [sample.acknowledged_bytes for sample in report.samples]
        sent += float(np.diff(np.interp([begin_ns, end_ns], at_ns, bytes_))[0])
    return [sent * 1e3 / (end_ns - begin_ns)]


def _set_rate(here: Lab, rate_bps: int) -> None:
    for ends in (("flex-a", "flex-b"), ("esx01/vmnic1", "flex-a"), ("esx02/vmnic1", "flex-b")):
        here.change(LinkChange(ends, rate_bps=rate_bps))
