"""Several migrations at a time: none disturbs another, and however they end nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed import topology as topologies
from testbed.kernel import netns
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.journal import Journal
from testbed.lab.up import up
from tests.end_to_end.labs import status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

TEXT = """\
name: many
switches: {{tor: {{mtu: 9000}}}}
datastores: {{shared01: {{hosts: "esx[01-02]"}}}}
distributed_switches:
  DSwitch: {{mtu: 9000, uplinks: [uplink1], portgroups: {{vMotion: {{}}, VM-Network: {{}}}}}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 4}}
    memory: 96MiB
    nics: {{vmnic0: {{switch: tor, rate: {rate}, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks:
      vmk1: {{portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
vms:
  "db[01-02]":
    host: esx01
    memory: 16MiB
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: "192.168.10.[51-52]/24"}}]
    workload: {{kind: uniform, dirty_rate: 1MB/s, working_set: 25%}}
  wide: {{host: esx01, memory: 16MiB, vcpus: 2, datastore: shared01, nics: []}}
  large: {{host: esx02, memory: 64MiB, datastore: shared01, nics: []}}
  other:
    host: esx02
    memory: 16MiB
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: 192.168.10.60/24}}]
"""


@pytest.fixture
def many() -> Iterator[Callable[[str], str]]:
    """Brings up a lab of two hosts, each with VMs that may move, and one too large to."""

    def bring_up(rate: str) -> str:
        up(topologies.loads(TEXT.format(rate=rate), "many.yaml"))
        return "many"

    yield bring_up
    down("many")


def under_way(lab: str) -> set[str]:
    """The VMs that are being migrated now; asked of the supervisor itself, which is quick."""
    found = request(LabDirectory(lab), {"command": "status"}, timeout_s=30)
    return {one["name"] for one in found["vms"] if one["state"] == "migrating"}


def moving(lab: str, *names: str, to: str = "esx02") -> subprocess.Popen[str]:
    """`testbed migrate` of some VMs, all of which are on their way."""
    command = [sys.executable, "-m", "testbed", "migrate", *names, "--no-results"]
    process = subprocess.Popen(
        [*command, "--to", to, "--lab", lab], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not set(names) <= under_way(lab):
        assert time.monotonic() < deadline
    return process


def test_a_supervisor_killed_with_two_under_way_leaves_nothing_for_down(
    many: Callable[[str], str],
) -> None:
    name = many("10Mbit")
    inside = [netns.identity(f"tb.{name}.{host}") for host in ("esx01", "esx02")]
    with moving(name, "db01") as there, moving(name, "other", to="esx01") as back:
        assert under_way(name) == {"db01", "other"}
        journal = Journal.read(LabDirectory(name).journal)
        assert {vm: move.to for vm, move in journal.moves.items()} == {
            "db01": "esx02",
            "other": "esx01",
        }
        assert journal.state == "changing"
        # What was made for them is in the plan: the journal alone tells all that there is.
        made = [step for move in journal.moves.values() for step in move.made]
        assert {step.key for step in made} < {step.key for step in journal.plan.steps}
        os.kill(status(name)["supervisor_pid"], signal.SIGKILL)
        assert there.wait(20) == back.wait(20) == 1
    down(name)
    assert not LabDirectory(name).path.exists()
    assert [n for n in netns.names() if n.startswith(f"tb.{name}.")] == []
    assert [pid for pid in Path("/proc").glob("[0-9]*") if _netns_of(pid) in inside] == []


def _netns_of(process: Path) -> int | None:
    try:
        return (process / "ns/net").stat().st_ino
    except OSError:
        return None
