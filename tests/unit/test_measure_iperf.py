"""The parser, beside outputs of iperf3 3.12 saved from real runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import InputError, MeasurementError
from testbed.measure.iperf_result import IperfResult, IperfTest, parse

OUTPUTS = Path(__file__).parents[1] / "fixtures" / "iperf3"
SECOND = 10**9
ONE_SECOND = IperfTest(duration_s=1)


def parsed(name: str, test: IperfTest = ONE_SECOND) -> IperfResult:
    text = (OUTPUTS / f"{name}.json").read_text()
    return parse(text, test, "iperf3 from a to b", 50 * SECOND, 51 * SECOND + SECOND // 50)


def test_a_completed_run() -> None:
    result = parsed("tcp")
    assert (result.sent_bytes, result.received_bytes) == (2539782144, 2539782144)
    assert result.received_bps == pytest.approx(20287663355.66)
    assert (result.retransmits, result.congestion_control, result.mss_bytes) == (0, "cubic", 1448)
    assert (result.sender, result.receiver) == ("10.9.0.1", "10.9.0.2")
    assert (result.protocol, result.packets, result.streams) == ("tcp", None, 1)


def test_intervals_lie_within_the_time_in_which_the_client_ran() -> None:
    result = parsed("tcp")
    series = result.throughput
    assert len(series) == 10
    assert 50 * SECOND <= series.at_ns[0] <= 50 * SECOND + 2 * result.clock_error_ns
    assert series.at_ns[-1] + SECOND // 10 <= 51 * SECOND + SECOND // 50
    mean_bps = sum(series.values) / len(series)
    assert mean_bps == pytest.approx(result.sent_bps, rel=0.01)


def test_seconds_omitted_are_neither_in_the_figure_nor_in_the_intervals() -> None:
    text = (OUTPUTS / "tcp-omit.json").read_text()  # at 2 Gb/s
    test = IperfTest(duration_s=1, omit_s=1)
    result = parse(text, test, "iperf3 from a to b", 50 * SECOND, 52 * SECOND)
    series = result.throughput
    assert result.received_bps == pytest.approx(2e9, rel=0.01)
    assert sum(series.values) / len(series) == pytest.approx(2e9, rel=0.01)
    assert 51 * SECOND <= series.at_ns[0] < series.at_ns[-1] < 52 * SECOND


def test_parallel_streams_are_one_sum() -> None:
    result = parsed("tcp-parallel", IperfTest(duration_s=1, streams=2))
    assert result.streams == 2
    assert sum(result.throughput.values) / 10 == pytest.approx(result.sent_bps, rel=0.01)


def test_in_reverse_the_destination_is_the_sender() -> None:
    result = parsed("tcp-reverse", IperfTest(duration_s=1, reverse=True))
    assert (result.sender, result.receiver) == ("10.9.0.2", "10.9.0.1")
    found = json.loads((OUTPUTS / "tcp-reverse.json").read_text())["end"]
    assert result.sender_cpu_percent == found["cpu_utilization_percent"]["remote_total"]


def test_a_volume() -> None:
    result = parsed("tcp-bytes", IperfTest(volume_bytes=500_000_000))
    assert result.sent_bytes >= 500_000_000
    assert result.received_bytes > 0.9 * result.sent_bytes


def test_udp_has_packets_and_jitter_and_no_congestion_control() -> None:
    result = parsed("udp", IperfTest(duration_s=1, udp_rate_bps=20_000_000))
    assert (result.protocol, result.packets, result.lost_packets) == ("udp", 1785, 0)
    assert result.jitter_ns == 13035
    assert (result.congestion_control, result.mss_bytes, result.retransmits) == (None, None, None)
    assert result.received_bps == pytest.approx(20e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("refused", "Connection refused"),
        ("interrupted", "the client has terminated"),
        ("server-killed", "Connection reset by peer"),
    ],
)
def test_iperf3_exits_0_on_errors_but_they_are_errors(name: str, cause: str) -> None:
    with pytest.raises(MeasurementError, match=f"from a to b: .*{cause}"):
        parsed(name)


def changed(path: str, value: object) -> str:
    found: Any = json.loads((OUTPUTS / "tcp.json").read_text())
    *parents, last = path.split(".")
    place = found
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "did not print JSON"),
        ("[]", "did not print a result"),
        ((OUTPUTS / "tcp.json").read_text()[:4000], "did not print JSON"),
        (changed("end.sum_received", None), "incomplete"),
        (changed("end.sum_received.bytes", 0), "nothing arrived"),
        (changed("end.sum_sent.seconds", 0.5), "ended after 0.5 of 1 s"),
        (changed("end.sender_tcp_congestion", "bbr"), "asked for .* cubic, bbr was used"),
    ],
)
def test_a_part_of_a_result_is_never_taken_for_one(text: str, cause: str) -> None:
    with pytest.raises(MeasurementError, match=cause):
        parse(text, ONE_SECOND, "iperf3", 0, 2 * SECOND)


def test_a_volume_not_reached_is_no_result() -> None:
    with pytest.raises(MeasurementError, match="500039680 of 600000000 bytes"):
        parsed("tcp-bytes", IperfTest(volume_bytes=600_000_000))


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"duration_s": 1, "volume_bytes": 1},
        {"duration_s": 0.5},  # iperf3 would read it as 0: for ever
        {"duration_s": 0},
        {"duration_s": 1, "streams": 129},
        {"duration_s": 1, "udp_rate_bps": 0},  # iperf3 would read it as: without limit
        {"duration_s": 1, "port": 70000},
        {"duration_s": 1, "omit_s": 61},
    ],
)
def test_what_iperf3_would_misread_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="iperf"):
        replace(IperfTest(**bad))
