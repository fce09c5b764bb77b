"""What was measured on real hosts beside what was emulated: stored, read, shown."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from rich.console import Console

from testbed.cli.main import cli
from testbed.errors import InputError
from testbed.report import comparison_page, store, svg, table
from testbed.report.comparison import column, rows
from testbed.report.observed import LOG_SCHEMA_VERSION, LogResult, observed
from testbed.report.vmkernel_parse import parse
from tests.unit.test_report_page import FAILED, HOSTILE, RESULT, Outline
from tests.unit.test_vmkernel_log import PAGE_IN, PRECOPY, SENT, STOPPING, STUN

if TYPE_CHECKING:
    from pathlib import Path

(GATHERED,) = parse([PRECOPY, PAGE_IN, SENT.replace("1257781936902648", "1257624621919023")])
MEASURED = LogResult(
    schema_version=LOG_SCHEMA_VERSION,
    kind="esxi-log",
    testbed_version="0.1.0",
    created="2026-01-31T12:00:00+00:00",
    command="testbed log --parse vmkernel.log",
    logs=("vmkernel.log",),
    lines=3,
    observed=GATHERED.observed,
)


def test_a_log_s_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    full = replace(MEASURED, observed=replace(observed(RESULT, 7), began="x"))
    for result in (MEASURED, full):
        path = store.write(result, tmp_path)
        assert store.read_any(path) == result
        with pytest.raises(InputError, match="schema version"):
            store.read(path)
    migration = store.write(RESULT, tmp_path)
    assert store.read_any(migration) == store.read(migration) == RESULT


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [("lines", "3", "result.lines is '3'"), ("schema_version", 9, "schema version 9"),
     ("observed", {"vm": 3}, "result.observed.vm")],
)  # fmt: skip
def test_a_damaged_one_is_refused(tmp_path: Path, key: str, value: object, cause: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**asdict(MEASURED), key: value}))
    with pytest.raises(InputError, match=cause):
        store.read_any(path)


def told(*results: LogResult) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(table.side_by_side(results))
    return out.getvalue()


def test_side_by_side_with_the_difference() -> None:
    slower = replace(RESULT, engine=replace(RESULT.engine, stun_ns=80_000_000))
    cells = {row.name: row.cells for row in rows([column(MEASURED), column(slower)])}
    assert cells["Throughput of pre-copy"][0] == "280.5 MB/s, 2.24 Gbit/s"
    # 1.25 GiB in 1.25 s
    assert cells["Throughput of pre-copy"][1] == "1,073.7 MB/s, 8.59 Gbit/s (+282.8 %)"
    assert cells["Stun"] == ("-", "80 ms")
    assert cells["Hosts"] == ("xxxxxxxx to xxxxxxxx", "esx01 to esx02")
    text = told(MEASURED, slower)
    assert re.search(r"Throughput of all +287.4 MB/s, 2.3 Gbit/s +1,0\d\d\.\d MB/s", text)


def test_a_scaled_lab_is_compared_by_its_nominal_figures() -> None:
    small = column(replace(RESULT, scale_divisor=10))
    cells = {row.name: row.cells[0] for row in rows([small])}
    assert cells["Throughput of pre-copy"] == "10,737.4 MB/s, 85.9 Gbit/s"
    assert cells["Memory"] == "10 GiB"
    assert cells["Pages left"] == "1,000"
    assert cells["Stun"] == "6.12 ms"
    assert cells["Transmitted to dirtied"] == "65,536 %"
    assert "scale 1/10" in small.about


def test_what_none_of_them_tells_has_no_row() -> None:
    names = [row.name for row in rows([column(MEASURED)])]
    assert "Stun" not in names
    assert "VM" not in names


def test_differences_too_small_to_print_have_no_sign_of_their_own() -> None:
    almost = replace(MEASURED.observed, precopy_bytes_per_s=280_494_999)
    cells = {
        row.name: row.cells
        for row in rows([column(MEASURED), column(replace(MEASURED, observed=almost))])
    }
    assert cells["Throughput of pre-copy"][1].endswith("(+0.0 %)")


def test_the_testbed_s_own_log_is_not_told_as_measured() -> None:
    own = replace(MEASURED, observed=observed(RESULT, 7))
    assert column(own).title == "Emulated, from its logs"
    assert column(MEASURED).title == "Measured"


def test_a_failed_migration_compares_too() -> None:
    cells = {row.name: row.cells for row in rows([column(MEASURED), column(FAILED)])}
    assert cells["Outcome"] == ("completed", "failed in phase 0: link down")


def test_the_page_is_one_file_well_formed_and_harmless() -> None:
    hostile = replace(
        MEASURED,
        logs=(HOSTILE,),
        command=HOSTILE,
        observed=replace(MEASURED.observed, vm=HOSTILE, source=HOSTILE),
    )
    text = comparison_page.render([hostile, RESULT])
    outline = Outline()
    outline.feed(text)
    assert (outline.open, outline.loads, outline.scripts) == ([], [], 1)
    assert "<b>" not in text
    assert "280.5 MB/s" in text
    assert 'class="stunned"' in text  # the iterations of the emulation
    assert "measured 280.5 MB/s" in text


def test_the_measured_level_is_drawn_at_the_lab_s_scale() -> None:
    def height(divisor: int) -> float:
        text = comparison_page.render([MEASURED, replace(RESULT, scale_divisor=divisor)])
        (y,) = re.findall(r'class="limit" .*? y1="([0-9.]+)"', text)
        return svg.TOP + svg.PLOT_HEIGHT - float(y)

    assert height(1) == pytest.approx(10 * height(10), abs=1)


def test_a_log_becomes_results_that_are_reported(tmp_path: Path) -> None:
    log = tmp_path / "vmkernel.log"
    log.write_text("\n".join(["noise", STOPPING, STUN]))
    run = CliRunner().invoke
    shown = run(cli, ["log", "--parse", str(log), "--json", "--results", str(tmp_path / "r")])
    assert shown.exit_code == 0
    (one,) = json.loads(shown.stdout)
    assert one["observed"]["stun_ns"] == 80_477_000
    (stored,) = (tmp_path / "r").iterdir()
    emulated = store.write(RESULT, tmp_path / "r")
    shown = run(cli, ["report", str(stored), str(emulated)])
    assert shown.exit_code == 0
    assert "Measured" in shown.output
    assert "Emulated" in shown.output
    html = tmp_path / "x.html"
    assert run(cli, ["report", str(stored), str(emulated), "--html", str(html)]).exit_code == 0
    assert "80.5 ms" in html.read_text()
    assert "Moved db01" in run(cli, ["report", str(emulated)]).output


def test_several_migrations_are_listed(tmp_path: Path) -> None:
    log = tmp_path / "vmkernel.log"
    log.write_text("\n".join([PRECOPY, PAGE_IN, SENT, STOPPING]))
    shown = CliRunner().invoke(cli, ["log", "--parse", str(log)])
    assert shown.exit_code == 0
    for moved in ("1257624621919023", "1257781936902648", "1446046703473901"):
        assert moved in shown.output


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([], "give a host"),
        (["esx01", "--parse", "x"], "give a host"),
        (["--parse", "x", "-f"], "leave -f"),
        (["esx01", "--json"], "are for --parse"),
        (["--parse", "/dev/null"], "nothing of a vMotion"),
    ],
)
def test_wrong_use_says_what_to_give(arguments: list[str], cause: str) -> None:
    failed = CliRunner().invoke(cli, ["log", *arguments])
    assert isinstance(failed.exception, InputError)
    assert cause in str(failed.exception)
