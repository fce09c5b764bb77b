"""What was felt, in a line, in figures, as a chart, and through the store."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from testbed.cli.felt import probe_request
from testbed.errors import InputError
from testbed.lab.felt_clients import counted_from, ping_felt, session_felt
from testbed.measure.guest_felt import GuestFelt, VcpuFelt, WorkloadFelt
from testbed.measure.ping import Echoes, PingTest
from testbed.measure.series import Series
from testbed.measure.session_result import EchoResult, Gap
from testbed.measure.tcp_session import SessionTest
from testbed.report import page, store, svg
from testbed.report.felt import Felt, PingFelt, SessionFelt, in_short
from testbed.report.felt_page import felt_chart, felt_figures
from testbed.report.result import (
    SCHEMA_VERSION,
    EngineReport,
    Guest,
    Iteration,
    MigrationResult,
)

if TYPE_CHECKING:
    from pathlib import Path

MS = 10**6
S = 10**9

OLTP = WorkloadFelt(
    name="oltp",
    operation="commits",
    operations=7600,
    bytes=1 << 20,
    usual_per_s=4000.0,
    before=True,
    lowest_per_s=1000.0,
    lowest_over_ns=10 * MS,
    lowest_at_ns=1350 * MS,
    halt_ns=12_345_678,
    halt_at_ns=1351 * MS,
    usual_halt_ns=2 * MS,
    latency_mean_ns=250_000.0,
    latency_p99_ns=900_000.0,
    usual_latency_p99_ns=500_000.0,
)
VCPUS = tuple(
    VcpuFelt(number, 900 * MS, 1000 * MS, 87 * MS, 13 * MS, (12 + number) * MS, 1360 * MS)
    for number in range(2)
)
# 4000/s before and after, 1000/s for 100 ms
COMMITS = Series(
    "oltp commits",
    "commits/s",
    tuple(range(-1 * S, 2 * S + 1, 10 * MS)),
    tuple(1000.0 if 1300 * MS <= at < 1400 * MS else 4000.0
          for at in range(-1 * S, 2 * S + 1, 10 * MS)),
)  # fmt: skip
PING = PingFelt(
    10 * MS, 100 * MS, True, 300, 293, 4, 3, 43 * MS, 200e3, 9e6, 110e6,
    Series("round trip", "ns", (-1 * S, 0), (2e5, 3e5)),
)  # fmt: skip
ECHO = SessionFelt(
    "echo", {"sent": 300, "answered": 299}, 19136, 0, 25 * MS, 1350 * MS,
    Series("round trip", "ns", (0,), (2e5,)),
)  # fmt: skip
FELT = Felt(
    GuestFelt(10 * MS, 300, 13 * MS, 0, 2 * S, (OLTP,), VCPUS),
    (COMMITS,),
    "client",
    PING,
    (ECHO,),
)
ENGINE = EngineReport(
    iterations=(
        Iteration(-1, 100, 409600, 410000, 100 * MS, 1200 * MS, 10, False),
        Iteration(0, 10, 40960, 41000, 1350 * MS, 10 * MS, 0, True),
    ),
    samples=(),
    streams=(),
    prepare_ns=100 * MS,
    total_ns=1360 * MS,
    stun_ns=11 * MS,
    guest_gap_ns=12 * MS,
    tracking="PAGEMAP_SCAN",
    source_cpu_ns=1,
    destination_cpu_ns=1,
)
RESULT = MigrationResult(
    schema_version=SCHEMA_VERSION,
    kind="migration",
    testbed_version="0.1.0",
    created="2026-01-31T12:00:00+00:00",
    command="testbed migrate db01 --to esx02 --from client",
    lab="quickstart",
    topology_file="quickstart.yaml",
    topology_text="name: quickstart",
    scale_divisor=1,
    kernel="Linux 6.18",
    mechanisms={},
    source="esx01",
    destination="esx02",
    guest=Guest("db01", 409600, 2, "oltp"),
    switchover_goal_ns=500 * MS,
    outcome="completed",
    failure=None,
    engine=ENGINE,
    verification=None,
    felt=FELT,
)


def test_the_store_gives_back_what_was_felt(tmp_path: Path) -> None:
    assert store.read(store.write(RESULT, tmp_path)) == RESULT
    assert store.felt_from_json(json.loads(json.dumps(asdict(FELT))), "x") == FELT


def test_what_was_changed_is_refused() -> None:
    with pytest.raises(InputError, match="unknown key 'colour'"):
        store.felt_from_json({"guest": None, "colour": "red"}, "x")


def test_the_line_tells_dip_halt_pings_and_sessions() -> None:
    assert in_short(FELT) == (
        "commits 75% down for 10 ms, none for 12.3 ms; no heartbeat for 13 ms;"
        " 3 of 300 pings lost, 4 late; echo silent for 25 ms"
    )
    broken = replace(ECHO, broken="Connection reset by peer", wrong_bytes=2)
    told = in_short(Felt(None, sessions=(broken,), troubles=("the probe ended",)))
    assert told == (
        "echo silent for 25 ms (2 wrong bytes; broken: Connection reset by peer); the probe ended"
    )


def test_an_idle_guest_has_no_empty_line() -> None:
    assert FELT.guest is not None
    idle = Felt(replace(FELT.guest, workloads=()))
    assert in_short(idle) == "no heartbeat for 13 ms"
    assert felt_chart(idle, ENGINE) is None


def test_the_figures_tell_each_thing_once() -> None:
    told = {figure.name: figure.value for figure in felt_figures(FELT)}
    assert told["Commits of oltp"].startswith("3,800/s; before 4,000/s")
    assert told["Deepest dip of oltp"] == "75.0% down, to 1,000/s, at 1.35 s"
    assert told["Longest halt of oltp"] == "12.3 ms at 1.35 s; before 2 ms"
    assert told["Latency of oltp"] == "99 % within 900 us; before 500 us; mean 250 us"
    assert told["Longest time without a heartbeat"] == "13 ms on vCPU 1"
    assert told["vCPU time"] == "45.0% running, 50.0% idle, 4.3% throttled, 0.7% stopped"
    assert told["Pings from client"].startswith("3 of 300 lost, 4 later than 100 ms;")
    assert "300 sent, 299 answered" in told["Echo session from client"]


def test_the_chart_shows_the_migration_with_its_phases_and_keeps_the_area() -> None:
    chart = felt_chart(FELT, ENGINE)
    assert chart is not None
    (line,) = chart.lines
    assert line.points[0][0] == 0  # what was before is the usual rate, a dashed line
    assert chart.limit is not None
    assert chart.limit.value == 4000
    steps = list(zip(line.points[::2], line.points[1::2], strict=True))
    area = sum((end - begin) * rate for (begin, rate), (end, _) in steps) / 1e9
    assert area == pytest.approx(4000 * 1.9 + 1000 * 0.1)
    assert chart.end_ns == 2 * S
    drawn = ElementTree.fromstring(svg.render(chart))
    assert any(e.attrib.get("class") == "band stun" for e in drawn.iter())


def test_the_page_has_it_and_goes_without_it() -> None:
    assert "What the guest felt" in page.render(RESULT)
    assert "Felt in figures" in page.render(RESULT)
    assert "Felt in figures" not in page.render(replace(RESULT, felt=None))


def test_times_of_clients_count_from_the_migration() -> None:
    begin = 5 * S
    test = PingTest(interval_ns=10 * MS, timeout_ns=100 * MS)
    sent = (begin - S, begin, begin + S)
    echoes = Echoes("x", sent, [(0, begin - S + 5), (1, begin + 7)], {})
    ping = ping_felt(echoes, test, begin, by_guest=False)
    assert ping.rtt.at_ns == (-S, 0)
    assert (ping.sent, ping.lost, ping.late_after_ns) == (3, 1, 100 * MS)
    silent = ping_felt(replace(echoes, arrivals=[]), test, begin, by_guest=True)
    assert (silent.sent, silent.lost, silent.outage_ns, silent.median_ns) == (3, 3, 2 * S, None)
    echo = session_felt(
        EchoResult(
            9, 8, 0, Gap(20 * MS, begin + 50 * MS), Series("r", "ns", (begin,), (1.0,)), None
        ),
        SessionTest(7),
        begin,
    )
    assert (echo.longest_gap_ns, echo.longest_gap_at_ns) == (20 * MS, 30 * MS)
    assert echo.received_bytes == 8 * 64


def test_too_many_points_keep_the_worst() -> None:
    many = Series("r", "ns", tuple(range(25_000)), tuple(float(i == 777) for i in range(25_000)))
    few = counted_from(many, 0)
    assert len(few) <= 10_000
    assert max(few.values) == 1
    assert few.value_at(777) == 1


@pytest.mark.parametrize(
    ("interval", "client", "late", "cause"),
    [
        ("900us", None, None, "1ms to 1s"),
        ("2s", None, None, "1ms to 1s"),
        ("soon", None, None, "not a duration"),
        ("10ms", "client", "0ms", "1ms or more"),
        ("off", "client", "100ms", "one of them only"),
        ("10ms", None, "50ms", "add --from"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(
    interval: str, client: str | None, late: str | None, cause: str
) -> None:
    with pytest.raises(InputError, match=cause):
        probe_request(interval, client, late)


def test_only_who_asks_for_a_probe_waits_for_it() -> None:
    silent = probe_request(None, None, None)
    asked = probe_request("1ms", None, None)
    assert probe_request("off", None, None) is None
    assert silent is not None
    assert asked is not None
    assert (silent["interval_ns"], silent["around_ns"]) == (10 * MS, 0)
    assert (asked["interval_ns"], asked["around_ns"]) == (MS, S)
