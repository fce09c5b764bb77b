"""Windows against distance: topologies/latency-tolerance.yaml, as `testbed` itself runs it."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from _engine_lab import example, migrated, profiles
from _network_lab import MTU, Lab, lab
from _row import Row, row

from testbed.errors import LabError
from testbed.kernel import netns
from testbed.lab.adapters import adapter
from testbed.lab.link_change import LinkChange
from testbed.measure.endpoint import Endpoint
from testbed.measure.ping import PingTest
from testbed.measure.ping import measure as ping
from testbed.measure.theory import tcp_goodput_bps

if TYPE_CHECKING:
    from testbed.report.result import EngineReport

_RATE_BPS = 10**9
_RTTS_MS = (0, 1, 5, 10, 50, 150)
_MOST_OFF = 0.1
# A VM of some hundred windows, so that the start and the last acknowledgement weigh little.
_CASES = {"263536": "wan-32", "562540": "wan-64", "path": "wan-128"}
_LIMITS_MS = {"old": ("esx-4.0", 5), "new": ("vsphere-5.0", 10), "later": ("vsphere-6.0", 150)}
_VMS = """\
  "wan-[32,64,128]":
    host: later01
    memory: "[32,64,128]MiB"
    datastore: shared01
    nics: [{portgroup: VM-Network, ip: "192.168.10.[60-62]/24"}]
"""


def latency(runs: int | None) -> list[Row]:
    """Throughput of the first pass beside the window over the pinged round trip, or the link.

    And what each generation's profile makes of the round trip.
    """
    count = runs or 1
    text = example("latency-tolerance").replace("128MiB", "8MiB") + _VMS
    texts = {
        window: f"inherits: unlimited\nwindow: {window + 'B' * window.isdigit()}\n"
        for window in _CASES
    }
    rows, longest = [], dict.fromkeys(_LIMITS_MS, 0)
    with profiles(texts) as files, lab("latency", text) as here:
        a, b = (adapter(here.plan, f"later0{number}/vmk1") for number in (1, 2))
        a_end, b_end = (Endpoint(netns.path_of(one.netns), one.addresses[0][0]) for one in (a, b))
        for rtt_ms in _RTTS_MS:
            here.change(LinkChange(("tor-a", "tor-b"), delay_ns=rtt_ms * 500_000))
            pinged_ns = ping(a_end, b_end, PingTest(count=20, interval_ns=20_000_000)).median_ns
            for window, vm in _CASES.items():
                found = [_there_and_back(here, vm, files[window]) for _ in range(count)]
                rows += _rows(rtt_ms, pinged_ns, window, found)
            for host in _LIMITS_MS:
                if _moves(here, host):
                    longest[host] = rtt_ms
        rows += here.troubles("latency")[1:]
    for host, (profile, limit_ms) in _LIMITS_MS.items():
        value = longest[host]
        name = f"longest of these RTTs that {profile} moves over"
        rows.append(
            row(
                name, value, "ms", len(_RTTS_MS), peer=("facts", limit_ms), ratio=value / limit_ms,
                bar="as facts", met=value == limit_ms,
            )
        )  # fmt: skip
    return rows


def _there_and_back(here: Lab, vm: str, profile: str) -> EngineReport:
    """The way there is what is measured."""
    found = migrated(here, vm, "later02", profile=profile, forced=True)
    migrated(here, vm, "later01", forced=True, profile="unlimited")
    return found


def _moves(here: Lab, host: str) -> bool:
    """Whether this pair of hosts lets its VM go there, and if so bring it back."""
    try:
        migrated(here, f"db-{host}", f"{host}02")
    except LabError as error:
        if "round trip" not in str(error):
            raise
        return False
    migrated(here, f"db-{host}", f"{host}01")
    return True


def _rows(rtt_ms: int, pinged_ns: float, window: str, found: list[EngineReport]) -> list[Row]:
    value = statistics.median(one.iterations[0].throughput_bps for one in found)
    link_bps = tcp_goodput_bps(_RATE_BPS, MTU)
    window_bytes = found[0].streams[0].window_bytes or 0
    limit_bps = window_bytes * 8e9 / pinged_ns
    limits = window.isdigit() and limit_bps < link_bps
    ratio = value / min(limit_bps, link_bps)
    name = f"RTT {rtt_ms} ms, window {window}"
    in_flight = max(stream.most_in_flight_bytes for one in found for stream in one.streams)
    return [
        row(
            name, value / 8e6, "MB/s", len(found),
            peer=("window/RTT", limit_bps / 8e6) if limits else ("link", link_bps / 8e6),
            ratio=ratio,
            bar=f"within {_MOST_OFF:.0%}" if limits else None,
            met=abs(ratio - 1) <= _MOST_OFF if limits else None,
        ),
        row(
            f"{name}, most in flight", in_flight, "bytes", len(found),
            peer=("window", window_bytes), ratio=in_flight / window_bytes,
            bar="<= 1", met=in_flight <= window_bytes,
        ),
    ]  # fmt: skip
