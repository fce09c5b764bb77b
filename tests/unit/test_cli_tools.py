"""ESXi's tools on the command line: what they refuse, and in which words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from testbed.cli.main import cli
from testbed.cli.reach import duration_ns
from testbed.errors import InputError, PrivilegeError
from testbed.measure.pcapng import Interface, PcapngWriter

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "arguments",
    [
        ["vmkping", "esx01", "192.168.20.12"],
        ["traceroute", "esx01", "192.168.20.12"],
        ["nc", "esx01", "192.168.20.12", "8000"],
        ["net-stats", "esx01", "-l"],
        ["top", "quickstart"],
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
        ["net-stats", "esx01"],
        ["net-stats", "esx01", "-l", "-A"],
        ["net-stats", "esx01", "-A", "-i", "1ms"],
        ["top", "-d", "50ms"],
        ["top", "-n", "0"],
        ["pktcap", "esx01/vmnic0"],
        ["pktcap", "-o", "a.pcapng"],
        ["pktcap", "esx01/vmnic0", "-o", "-", "--decode"],
        ["pktcap", "esx01/vmnic0", "-o", "-", "--vlan", "5000"],
        ["pktcap", "esx01/vmnic0", "-o", "-", "-s", "4"],
        ["pktcap", "-r", "/no/such.pcapng"],
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


def test_a_file_that_is_no_capture_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("not a capture")
    failed = CliRunner().invoke(cli, ["pktcap", "-r", str(file)])
    assert isinstance(failed.exception, InputError)
    assert str(file) in str(failed.exception)


def test_a_file_of_ours_is_decoded_a_line_a_frame(tmp_path: Path) -> None:
    frame = (Ether() / Dot1Q(vlan=20) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP()).build()
    file = tmp_path / "a.pcapng"
    with file.open("wb") as out:
        writer = PcapngWriter(out, "test")
        writer.add_interface(Interface("esx01/vmnic0"))
        writer.packet(0, 123_456_789, frame, length=1500, direction="in")
    (line,) = CliRunner().invoke(cli, ["pktcap", "-r", str(file)]).output.splitlines()
    assert line.split(maxsplit=3)[0].endswith(":00.123456789")
    assert line.split(maxsplit=3)[1:] == [
        "in",
        "1500",
        "Ether / Dot1Q / IP / UDP 10.0.0.1:domain > 10.0.0.2:domain",
    ]
