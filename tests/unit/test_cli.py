"""The command line: exit codes, what needs root, what is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from testbed.cli.main import COMMANDS, cli
from testbed.errors import PrivilegeError

QUICKSTART = "topologies/quickstart.yaml"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", *arguments], capture_output=True, text=True, check=False
    )


def test_help_is_quick_and_names_every_command() -> None:
    start = time.monotonic()
    shown = run("--help")
    assert time.monotonic() - start < 2  # 0.2 s is the aim; ten times that on a busy machine
    assert shown.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"])
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) > 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", QUICKSTART],
        ["apply", QUICKSTART],
        ["down", "quickstart"],
        ["status", "quickstart"],
        ["exec", "quickstart", "esx01", "--", "ip", "addr"],
        ["migrate", "db01", "--to", "esx02"],
        ["iperf", "esx01/vmk1", "esx02/vmk1"],
        ["ping", "esx01/vmk1", "esx02/vmk1"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_what_needs_root_says_so_with_the_command_to_use(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    failed = CliRunner().invoke(cli, arguments)
    assert isinstance(failed.exception, PrivilegeError)
    assert f"'sudo $(command -v testbed) {' '.join(arguments)}'" in str(failed.exception)
    assert failed.exception.exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["validate", QUICKSTART], ["plan", QUICKSTART, "--fresh"], ["schema"]]
)
def test_what_needs_no_root(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert CliRunner().invoke(cli, arguments).exit_code == 0


def test_the_plan_as_json_has_every_step() -> None:
    shown = CliRunner().invoke(cli, ["plan", QUICKSTART, "--fresh", "--json"])
    steps = json.loads(shown.output)["steps"]
    assert [step["node"] for step in steps if step["kind"] == "netns"] == [
        "tor-a",
        "tor-b",
        "esx01",
        "esx02",
        "db01",
    ]


def test_mistakes_are_told_all_at_once_with_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    text = Path(QUICKSTART).read_text().replace("mtu: 9000", "mtu: 70000")
    file.write_text(text.replace("1GiB", "1 parsec"))
    failed = run("validate", str(file))
    assert failed.returncode == 2
    assert f"{file}:" in failed.stderr
    assert "70000" in failed.stderr
    assert "1 parsec" in failed.stderr
    assert "nothing done" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["migrate", "db01"], ["up"], ["up", "/no.yaml"]]
)
def test_wrong_use_is_exit_code_2(arguments: list[str]) -> None:
    failed = run(*arguments)
    assert failed.returncode == 2
    assert failed.stderr.strip()
    assert "Traceback" not in failed.stderr
