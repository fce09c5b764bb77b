"""The commands on a kernel that has netem: what `up` chooses there, and `link` changes."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from testbed.cli.main import cli
from testbed.measure import ping
from testbed.measure.endpoint import Endpoint
from testbed.measure.ping import PingTest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.needs_feature("netem")]
MS = 10**6
STRETCHED = """
name: tb-cmd
switches: {"tor-[a,b]": {}}
links: [{between: [tor-a, tor-b], rate: 1Gbit, rtt: 10ms}]
distributed_switches:
  DSwitch: {uplinks: [uplink1], portgroups: {vMotion: {vlan: 20}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 8}
    memory: 64GiB
    nics: {vmnic0: {switch: "tor-[a,b]", rate: 1Gbit, uplink: DSwitch/uplink1}}
    vmks: {vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion]}}
"""


def command(*arguments: str) -> str:
    """A command in this process: a process of its own takes four seconds under emulation."""
    done = CliRunner().invoke(cli, arguments)
    assert done.exception is None, f"{done.output}{done.exception}"
    return done.output


def fastest_ms() -> float:
    source = Endpoint("/run/netns/tb.tb-cmd.esx01", "192.168.20.11", "vmk1")
    destination = Endpoint("", "192.168.20.12")
    result = ping.measure(source, destination, PingTest(count=10, interval_ns=10 * MS))
    assert result.received == 10
    return result.minimum_ns / MS


def test_a_lab_with_a_delayed_link_runs_by_netem(tmp_path: Path) -> None:
    file = tmp_path / "stretched.yaml"
    file.write_text(STRETCHED)
    command("up", str(file))
    try:
        assert 10 <= fastest_ms() < 15
        command("link", "tb-cmd", "tor-a", "tor-b", "--rtt", "30ms")
        assert 30 <= fastest_ms() < 35
    finally:
        command("down", "tb-cmd")
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert "tb-cmd" not in found.stdout
