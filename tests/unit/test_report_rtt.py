"""The two curves of facts rows 4-14: what the CPU allows, and what the window does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from testbed import profiles
from testbed.report import page, svg
from testbed.report.figures import summary
from testbed.report.hosts import HostReport, host_report
from testbed.report.rtt_chart import Limits, limits_of, rtt_chart
from tests.unit.test_report_page import ENGINE, RESULT

if TYPE_CHECKING:
    from testbed.report.result import MigrationResult

MS = 1_000_000


def host(mhz: float | None, profile: str = "esx-4.0") -> HostReport:
    return host_report("esx01", 8, mhz, profiles.load(profile))


def result(
    mhz: float | None, streams: int = 1, window_bytes: int | None = 263536
) -> MigrationResult:
    one = replace(ENGINE.streams[0], mss_bytes=1448, window_bytes=window_bytes)
    engine = replace(ENGINE, streams=(one,) * streams)
    return replace(RESULT, engine=engine, hosts=(host(mhz), host(mhz)), path_goodput_bps=10**10)


def test_one_core_of_2260_mhz_carries_282_megabytes_a_second() -> None:
    """Rows 13 and 14; as a cap of the host it is the same for two streams."""
    for streams in (1, 2):
        limits = limits_of(result(2260, streams))
        assert limits is not None
        assert limits.cpu_bps == pytest.approx(282.5e6 * 8, rel=0.002)
    half = limits_of(result(1130))
    assert half is not None
    assert half.cpu_bps == pytest.approx(141.2e6 * 8, rel=0.002)


def test_the_window_gives_what_section_6_has() -> None:
    """263536 bytes: 52.7 MB/s at 5 ms and 26.4 at 10."""
    limits = limits_of(result(None))
    assert limits is not None
    assert limits.cpu_bps is None
    assert limits.at(5 * MS) == pytest.approx(52.7e6 * 8, rel=0.001)
    assert limits.at(10 * MS) == pytest.approx(26.4e6 * 8, rel=0.002)
    both = limits_of(result(None, 2))
    assert both is not None
    assert both.window_bytes == 2 * 263536


def test_the_least_of_them_limits() -> None:
    limits = Limits(2.26e9, 263536, 7 * 10**9)
    assert limits.at(0) == 2.26e9
    crossing_ns = 263536 * 8e9 / 2.26e9
    assert limits.at(0.99 * crossing_ns) == 2.26e9
    assert limits.at(2 * crossing_ns) == pytest.approx(1.13e9)


def test_where_nothing_was_modelled_there_is_no_chart() -> None:
    assert limits_of(RESULT) is None
    assert limits_of(replace(result(None, window_bytes=None), engine=None)) is None
    assert limits_of(result(None, window_bytes=None)) is None


def test_both_curves_and_the_point_are_drawn() -> None:
    moved = result(2260)
    limits = limits_of(moved)
    assert limits is not None
    assert moved.engine is not None
    chart = rtt_chart(limits, moved.engine, 300_000)
    assert [line.label for line in chart.lines] == ["CPU", "window / RTT", "measured"]
    drawn = svg.render(chart)
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 1
    assert "Round-trip time, ms" in drawn


def test_the_page_has_them_and_the_figures_tell_the_round_trip() -> None:
    moved = replace(result(2260), rtt_ns=5_100_000)
    assert "What limits it, over the round-trip time" in page.render(moved)
    assert "What limits it" not in page.render(replace(moved, rtt_ns=None))
    (told,) = [one for one in summary(moved) if one.name == "Round trip"]
    assert told.value == "5.1 ms; supported up to 5 ms (esx-4.0)"
    newer = replace(moved, hosts=(host(2260, "vsphere-5.0"), host(2260, "vsphere-7.0")))
    (told,) = [one for one in summary(newer) if one.name == "Round trip"]
    assert told.value.endswith("up to 10 ms (vsphere-5.0)")
