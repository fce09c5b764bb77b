"""What iperf3 is asked, and its JSON parsed once into what it achieved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from testbed.errors import InputError, MeasurementError
from testbed.measure.series import Series

INTERVAL_S = 0.1
SHORTEST_INTERVAL_S = 0.02
"""A last interval below this holds a few blocks only: its rate says nothing."""
DURATION_KEPT = 0.95
"""A test that ran for a smaller share of the time asked was cut short."""


@dataclass(frozen=True, slots=True)
class IperfTest:
    """One test: for `duration_s`, or until `volume_bytes` are sent; UDP if it has a rate.

    `reverse`: the destination sends. `block_bytes`: one write (`iperf3 -l`). `timeout_s`: own
    limit, as iperf3 waits forever when a link goes down; by default the duration (60 s for a
    volume) and 10 s. `omit_s`: the first seconds, beside the duration, aren't counted: there TCP
    is still finding its rate.

    Raises:
        InputError: not exactly one of duration and volume, or a number out of range.
    """

    duration_s: int | None = None
    volume_bytes: int | None = None
    streams: int = 1
    block_bytes: int | None = None
    reverse: bool = False
    udp_rate_bps: int | None = None
    congestion_control: str = "cubic"
    port: int = 5201
    timeout_s: float | None = None
    omit_s: int = 0

    def __post_init__(self) -> None:
        if (self.duration_s is None) == (self.volume_bytes is None):
            raise InputError("iperf takes a duration or a volume; give exactly one of them")
        bounds = (
            ("duration", self.duration_s, 1, 86400),  # whole seconds: iperf3 reads 0.5 as forever
            ("volume", self.volume_bytes, 1, 1 << 50),
            ("number of streams", self.streams, 1, 128),
            ("block size", self.block_bytes, 1, 1 << 20),
            ("UDP rate", self.udp_rate_bps, 1, 10**12),
            ("port", self.port, 1, 65535),
            ("seconds to omit", self.omit_s, 0, 60),  # iperf3 takes no more
        )
        for name, value, least, most in bounds:
            if value is not None and not (isinstance(value, int) and least <= value <= most):
                raise InputError(f"iperf {name} {value}: give a whole number, {least} to {most}")


@dataclass(frozen=True, slots=True)
class IperfResult:
    """A completed test. Rates are payload in bits per second, CPU in percent of one core.

    `throughput` holds all streams together, as the client saw it, in intervals of 0.1 s;
    iperf3 doesn't say when a test began, so its times may be off by `clock_error_ns` at most.
    For TCP `mss_bytes` and `congestion_control` are what was used (None for UDP), and
    `retransmits` segments; for UDP `lost_packets`, `packets` and `jitter_ns` stand instead.
    """

    protocol: str
    sender: str
    receiver: str
    streams: int
    sent_bytes: int
    received_bytes: int
    sent_bps: float
    received_bps: float
    duration_ns: int
    retransmits: int | None
    congestion_control: str | None
    mss_bytes: int | None
    lost_packets: int | None
    packets: int | None
    jitter_ns: int | None
    sender_cpu_percent: float
    receiver_cpu_percent: float
    throughput: Series
    clock_error_ns: int
    iperf_version: str


def parse(text: str, test: IperfTest, what: str, started_ns: int, ended_ns: int) -> IperfResult:
    """The result in the client's JSON; the client ran from `started_ns` to `ended_ns`.

    iperf3 exits 0 on every error and keeps the intervals until then, so success is read from
    the text alone: no `error`, both ends' totals there, and the asked time or volume reached.

    Raises:
        MeasurementError: it is not the complete result of this test; `what` begins the message.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise MeasurementError(f"{what}: iperf3 did not print JSON: {text[:200]!r}") from error
    if not isinstance(found, dict):
        raise MeasurementError(f"{what}: iperf3 did not print a result: {text[:200]!r}")
    if "error" in found:
        raise MeasurementError(f"{what}: {found['error']}")
    try:
        return _result(found, test, what, started_ns, ended_ns)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise MeasurementError(
            f"{what}: the result of iperf3 is incomplete ({error!r}); testbed reads that of "
            "iperf3 3.12 and later"
        ) from error


def _result(
    found: dict[str, Any], test: IperfTest, what: str, started_ns: int, ended_ns: int
) -> IperfResult:
    start, end = found["start"], found["end"]
    sent, received = end["sum_sent"], end["sum_received"]
    _require_whole(test, what, sent, received)
    udp = test.udp_rate_bps is not None
    used = None if udp else str(end["sender_tcp_congestion"])
    if used is not None and used != test.congestion_control:
        raise MeasurementError(
            f"{what}: asked for congestion control {test.congestion_control}, {used} was used"
        )
    ends = (start["connected"][0]["local_host"], start["connected"][0]["remote_host"])
    cpu = end["cpu_utilization_percent"]
    cpus = (float(cpu["host_total"]), float(cpu["remote_total"]))
    order = -1 if test.reverse else 1
    duration_ns = round(float(sent["seconds"]) * 1e9)
    omitted_ns = test.omit_s * 10**9
    slack_ns = max(0, ended_ns - started_ns - omitted_ns - duration_ns)
    return IperfResult(
        protocol="udp" if udp else "tcp",
        sender=str(ends[::order][0]),
        receiver=str(ends[::order][1]),
        streams=int(start["test_start"]["num_streams"]),
        sent_bytes=int(sent["bytes"]),
        received_bytes=int(received["bytes"]),
        sent_bps=float(sent["bits_per_second"]),
        received_bps=float(received["bits_per_second"]),
        duration_ns=duration_ns,
        retransmits=None if udp else int(sent["retransmits"]),
        congestion_control=used,
        mss_bytes=None if udp else int(start["tcp_mss_default"]),
        lost_packets=int(received["lost_packets"]) if udp else None,
        packets=int(received["packets"]) if udp else None,
        jitter_ns=round(float(received["jitter_ms"]) * 1e6) if udp else None,
        sender_cpu_percent=cpus[::order][0],
        receiver_cpu_percent=cpus[::order][1],
        throughput=_throughput(found["intervals"], started_ns + slack_ns // 2 + omitted_ns),
        clock_error_ns=slack_ns // 2,
        iperf_version=str(start["version"]),
    )


def _require_whole(
    test: IperfTest, what: str, sent: dict[str, Any], received: dict[str, Any]
) -> None:
    if not received["bytes"]:
        raise MeasurementError(f"{what}: nothing arrived")
    if test.volume_bytes is not None and sent["bytes"] < test.volume_bytes:
        raise MeasurementError(f"{what}: only {sent['bytes']} of {test.volume_bytes} bytes sent")
    if test.duration_s is not None and sent["seconds"] < DURATION_KEPT * test.duration_s:
        raise MeasurementError(f"{what}: ended after {sent['seconds']:.3g} of {test.duration_s} s")


def _throughput(intervals: list[dict[str, Any]], begin_ns: int) -> Series:
    sums = [interval["sum"] for interval in intervals]
    # The clock starts anew after the seconds omitted, and the interval in which it does is longer
    # than from its start to its end (iperf3 3.12).
    kept = [
        part
        for part in sums
        if not part.get("omitted")
        and part["end"] - part["start"] > part["seconds"] / 2
        and part["seconds"] >= SHORTEST_INTERVAL_S
    ]
    return Series(
        "throughput",
        "bit/s",
        tuple(begin_ns + round(float(part["start"]) * 1e9) for part in kept),
        tuple(float(part["bits_per_second"]) for part in kept),
    )
