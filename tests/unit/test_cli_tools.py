"""ESXi's tools on the command line: what they refuse, and in which words."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from testbed.cli.main import cli
from testbed.cli.reach import duration_ns
from testbed.errors import InputError, PrivilegeError


@pytest.mark.parametrize(
    "arguments",
    [
        ["vmkping", "esx01", "192.168.20.12"],
        ["traceroute", "esx01", "192.168.20.12"],
        ["nc", "esx01", "192.168.20.12", "8000"],
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["vmkping", "esx01", "192.168.20.12", "-s", "70000"],
        ["vmkping", "esx01", "192.168.20.12", "-i", "soon"],
        ["traceroute", "esx01", "192.168.20.12", "-m", "300"],
        ["nc", "esx01", "192.168.20.12", "vmotion"],
        ["nc", "esx01", "192.168.20.12", "70000"],
        ["nc", "esx01", "8000"],
        ["nc", "esx01", "a", "b", "8000"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(arguments: list[str]) -> None:
    failed = CliRunner().invoke(cli, arguments)
    assert isinstance(failed.exception, InputError)
    assert failed.exception.exit_code == 2


def test_a_bare_number_is_seconds_as_esxi_takes_it() -> None:
    assert duration_ns("2", "-w") == duration_ns("2s", "-w") == 2 * 10**9
    assert duration_ns("0.5", "-w") == duration_ns("500ms", "-w") == 5 * 10**8
