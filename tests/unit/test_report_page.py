"""The page, its charts and the terminal's table, from results of known figures."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from testbed.report import page, store, svg, table
from testbed.report.charts import pages_chart, throughput_chart
from testbed.report.figures import copying_bps, precopy_ns, throughput_series
from testbed.report.progress import Update, progress
from testbed.report.result import (
    SCHEMA_VERSION,
    EngineReport,
    Failure,
    Guest,
    Iteration,
    MigrationResult,
    Sample,
    StreamReport,
    Verification,
)

if TYPE_CHECKING:
    from pathlib import Path

MS = 10**6
PAGES = 262144

# 1 GiB at 1 GiB/s, then a quarter of it, then 100 pages while the guest is stunned
ENGINE = EngineReport(
    iterations=(
        Iteration(-1, PAGES, 2**30, 2**30 + 2**21, 100 * MS, 1000 * MS, PAGES // 4, False),
        Iteration(0, PAGES // 4, 2**28, 2**28 + 2**19, 1100 * MS, 250 * MS, 100, False),
        Iteration(1, 100, 409600, 410400, 1350 * MS, 5 * MS, 0, True),
    ),
    samples=(
        Sample(100 * MS, "-1", 0, PAGES),
        Sample(600 * MS, "-1", 2**29, PAGES // 2),
        Sample(1100 * MS, "-1", 2**30, 0),
        Sample(1350 * MS, "0", 2**30 + 2**28, 0),
        Sample(1355 * MS, "stun", 2**30 + 2**28 + 410400, 0),
    ),
    streams=(StreamReport("fd00::1", "fd00::2", "cubic", 8948, 7, 200_000, 2**22, 2**22),),
    prepare_ns=100 * MS,
    total_ns=1360 * MS,
    stun_ns=6_120_000,
    guest_gap_ns=7 * MS,
    tracking="PAGEMAP_SCAN",
    source_cpu_ns=400 * MS,
    destination_cpu_ns=500 * MS,
)
RESULT = MigrationResult(
    schema_version=SCHEMA_VERSION,
    kind="migration",
    testbed_version="0.1.0",
    created="2026-01-31T12:00:00+00:00",
    command="testbed migrate db01 --to esx02",
    lab="quickstart",
    topology_file="quickstart.yaml",
    topology_text="name: quickstart",
    scale_divisor=1,
    kernel="Linux 6.18",
    mechanisms={"rate": "HTB"},
    source="esx01",
    destination="esx02",
    guest=Guest("db01", 2**30, 2, "uniform 100 MB/s in 256 MiB"),
    switchover_goal_ns=500 * MS,
    outcome="completed",
    failure=None,
    engine=ENGINE,
    verification=None,
    path_goodput_bps=9_000_000_000,
)
FAILED = replace(RESULT, outcome="failed", failure=Failure("0", "link down"), engine=None)
BROKEN_OFF = replace(
    FAILED, engine=replace(ENGINE, iterations=ENGINE.iterations[:1], samples=ENGINE.samples[:1])
)
HELD = replace(
    RESULT,
    engine=replace(ENGINE, stun_ns=None, guest_gap_ns=None),
    verification=Verification(PAGES, 0),
)


def told(result: MigrationResult) -> str:
    out = io.StringIO()
    Console(file=out, width=110).print(table.render(result))
    return out.getvalue()


def test_the_stunned_round_counts_neither_as_precopy_nor_in_its_throughput() -> None:
    assert precopy_ns(ENGINE) == 1250 * MS
    assert copying_bps(ENGINE) == pytest.approx((2**30 + 2**28) * 8 / 1.25)


def test_the_series_delivers_all_bytes() -> None:
    series = throughput_series(ENGINE)
    delivered = sum(rate * (end - begin) / 8e9 for begin, end, rate in series)
    assert delivered == pytest.approx(ENGINE.samples[-1].acknowledged_bytes, rel=0.01)
    assert all(a[1] == b[0] for a, b in pairwise(series))


def test_the_terminal_says_what_was_achieved() -> None:
    text = told(RESULT)
    assert "Moved db01 from esx01 to esx02 in 1.36 s." in text
    assert re.search(r"-1 +262,144 +1 GiB +1 s +8.59 Gbit/s +65,536 +268 MB/s", text)
    assert re.search(r"1 stun +100 +400 KiB +5 ms", text)
    assert re.search(r"Stun +6.12 ms", text)
    assert re.search(r"Share of the path +95.6% of the 9 Gbit/s", text)


def test_a_run_held_for_verification_reports_no_stun() -> None:
    text = told(HELD)
    assert "0 of 262144 pages differ" in text
    assert "not measured: the guest was held for verification" in text
    assert "6.12 ms" not in page.render(HELD)


def test_pages_that_differ_are_not_told_as_a_success() -> None:
    wrong = replace(HELD, verification=Verification(PAGES, 3))
    assert "But 3 pages differ" in told(wrong)
    assert 'class="verdict bad"' in page.render(wrong)
    assert 'class="verdict bad"' not in page.render(HELD)


def test_a_scaled_lab_shows_the_nominal_figures_beside() -> None:
    text = page.render(replace(RESULT, scale_divisor=10))
    assert "1 GiB (nominal 10 GiB)" in text
    assert "8.59 Gbit/s (nominal 85.9 Gbit/s)" in text
    assert "10 times these" in text


class Outline(HTMLParser):
    """Checks that tags close in order, and collects what the page would load."""

    VOID = frozenset({"meta", "br", "line", "rect", "circle", "polyline", "polygon"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{k}={v}" for k, v in attrs if k in {"src", "href", "srcset", "action"}]
        self.scripts += tag == "script"
        if tag not in self.VOID or (tag == "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("result", [RESULT, FAILED, BROKEN_OFF, HELD])
def test_a_page_is_one_file_and_well_formed(result: MigrationResult, tmp_path: Path) -> None:
    page.write_page(result, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.loads == []
    assert not re.search(r"url\(|@import|https?://", text)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        names = [child.tag for child in ElementTree.fromstring(drawing)]
        assert names[:2] == ["title", "desc"]
    if result.failure:
        assert "failed in phase 0: link down" in text


HOSTILE = "</pre></script><script>alert('1')</script>\"&<b>"


def test_what_the_user_wrote_stays_text() -> None:
    engine = replace(ENGINE, tracking=HOSTILE)
    hostile = replace(
        RESULT,
        topology_text=HOSTILE,
        command=HOSTILE,
        lab=HOSTILE,
        source=HOSTILE,
        kernel=HOSTILE,
        mechanisms={HOSTILE: HOSTILE},
        engine=engine,
    )
    text = page.render(hostile)
    outline = Outline()
    outline.feed(text)
    assert outline.scripts == 1
    assert "<b>" not in text
    assert "&lt;script&gt;alert(&#x27;1&#x27;)" in text


def test_the_failed_table_renders_without_an_engine() -> None:
    assert "failed in phase 0: link down" in told(FAILED)


def test_a_source_that_ended_with_what_it_had_measured_makes_no_result_unreadable() -> None:
    moved = replace(RESULT, engine=None)
    assert store.from_json(json.loads(json.dumps(asdict(moved))), "here") == moved
    assert "the source ended before it could tell" in told(moved)
    assert "What was measured is lost." in page.render(moved)


@given(st.floats(1e-3, 1e12))
def test_ticks_are_round_few_and_reach_the_limit(limit: float) -> None:
    found = svg.ticks(limit)
    step = found[1]
    assert found[0] == 0
    assert found[-1] >= limit * (1 - 1e-9)
    assert found[-2] < limit
    assert 2 <= len(found) <= 8
    assert f"{step:.0e}"[0] in "125"
    labels = [svg.tick_label(value, step) for value in found]
    assert len(set(labels)) == len(labels)
    assert float(labels[1].replace(",", "")) == pytest.approx(step)


def test_what_is_drawn_lies_inside_the_plot() -> None:
    for chart in (throughput_chart(ENGINE, 9 * 10**9), pages_chart(ENGINE)):
        drawing = ElementTree.fromstring(svg.render(chart))
        for line in drawing.iter("polyline"):
            for point in line.attrib["points"].split():
                x, y = map(float, point.split(","))
                assert svg.LEFT <= x <= svg.WIDTH - svg.RIGHT
                assert svg.TOP <= y <= svg.TOP + svg.PLOT_HEIGHT
        assert "stun 6.12 ms" in "".join(drawing.itertext())


def test_the_throughput_is_drawn_at_its_height() -> None:
    chart = throughput_chart(ENGINE, 10**10)
    drawing = ElementTree.fromstring(svg.render(chart))
    line, limit = (
        next(e for e in drawing.iter() if e.attrib.get("class") == name)
        for name in ("line first", "limit")
    )
    floor = svg.TOP + svg.PLOT_HEIGHT
    height = floor - float(line.attrib["points"].split()[0].split(",")[1])
    expected = (floor - float(limit.attrib["y1"])) * 2**29 * 8 / 0.5 / 10**10
    assert height == pytest.approx(expected, abs=0.2)


def test_without_a_terminal_progress_is_one_line_a_phase() -> None:
    out = io.StringIO()
    with progress(out) as show:
        for done in range(0, 1001, 10):
            show(Update("-1", done, 1000, 8e9, 1000 - done))
        show(Update("0", 50, 50, 9e9, 0, 4e8))
    assert out.getvalue().splitlines() == [
        "phase -1: 1,000 of 1,000 pages, 8 Gbit/s, 0 pages left, dirty rate not known yet",
        "phase 0: 50 of 50 pages, 9 Gbit/s, 0 pages left, dirty rate 400 MB/s",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with progress(out) as show:
        show(Update("-1", 500, 1000, 8e9, 500, 4e8))
    assert "50%" in out.getvalue()
    assert "500 pages left, dirty rate 400 MB/s" in out.getvalue()
