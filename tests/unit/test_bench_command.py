"""scripts/bench: what it takes from a benchmark, and when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "scripts/benchmarks/_command.py"

BENCHMARK = '''"""How fast it is.

More about it.
"""
import json, _shared
def run(runs=None):
    row = json.loads(_shared.ROW)
    return [row | {"runs": runs or 5}]
def half(runs=None):
    return [run(runs)[0] | {"name": "half"}]
PARTS = {"half": half}
'''
ROW = {
    "name": "a",
    "value": 1.5,
    "unit": "Gbit/s",
    "peer": "b",
    "peer_value": 1.0,
    "ratio": 1.5,
    "bar": ">= 1",
    "met": True,
    "runs": 0,
}


def bench(folder: Path, row: dict[str, object], *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a folder of one benchmark, whose name is a standard module's too."""
    (folder / "_command.py").write_text(SOURCE.read_text())
    (folder / "token.py").write_text(BENCHMARK)
    (folder / "_shared.py").write_text(f"ROW = {json.dumps(row)!r}")
    command = [sys.executable, "-P", str(folder / "_command.py"), *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_lists_the_benchmarks(tmp_path: Path) -> None:
    assert bench(tmp_path, ROW).stdout.split(maxsplit=1) == ["token", "How fast it is.\n"]


def test_json_is_the_rows_and_runs_reach_the_benchmark(tmp_path: Path) -> None:
    ended = bench(tmp_path, ROW, "token", "--json", "--runs", "7")
    assert (ended.returncode, json.loads(ended.stdout)) == (0, [ROW | {"runs": 7}])


def test_a_part_alone(tmp_path: Path) -> None:
    ended = bench(tmp_path, ROW, "token", "--json", "--runs", "7", "--only", "half")
    assert json.loads(ended.stdout) == [ROW | {"name": "half", "runs": 7}]


def test_the_table_has_every_figure(tmp_path: Path) -> None:
    ended = bench(tmp_path, ROW, "token")
    assert ended.returncode == 0
    assert {"a", "1.5", "Gbit/s", "b", "1", ">=", "yes", "5"} <= set(ended.stdout.split())


@pytest.mark.parametrize(
    ("change", "words", "code", "message"),
    [
        ({"met": False}, ["token"], 1, "bar missed: a"),
        ({"met": None, "bar": None}, ["token"], 0, ""),
        ({"value": None, "met": None, "bar": None}, ["token"], 0, ""),
        ({"extra": 1}, ["token"], 1, "lacks or adds: extra"),
        ({}, ["tokens"], 2, "there are: token"),
        ({}, ["_shared"], 2, "there are: token"),
        ({}, ["token", "--runs", "0"], 2, "--runs 0"),
        ({}, ["token", "--only", "third"], 2, "there are: half"),
        ({"value": float("nan")}, ["token", "--json"], 1, "JSON compliant"),
    ],
)
def test_exit_codes(
    tmp_path: Path, change: dict[str, object], words: list[str], code: int, message: str
) -> None:
    ended = bench(tmp_path, ROW | change, *words)
    assert (ended.returncode, message in ended.stderr) == (code, True), ended.stderr


@pytest.mark.parametrize("name", ["build", "guest", "network", "stream", "stun"])
def test_each_benchmark_can_be_loaded_and_tells_its_parts(name: str) -> None:
    command = [sys.executable, "-P", str(SOURCE), name, "--only", "nothing"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "no part 'nothing'; there are: " in ended.stderr) == (2, True)
    if name == "guest":
        assert "rates, tracking, tracing, throttle, start" in ended.stderr
