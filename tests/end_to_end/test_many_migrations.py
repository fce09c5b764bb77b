"""Several migrations at a time: none disturbs another, and however they end nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed import topology as topologies
from testbed.errors import LabError
from testbed.kernel import netns, readback
from testbed.lab.accounts import ledger_path
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.journal import Journal
from testbed.lab.up import up
from testbed.ledger import Ledger
from testbed.plan.plan import kernel_steps
from tests.end_to_end.labs import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

TEXT = """\
name: many
switches: {{tor: {{mtu: 9000}}}}
datastores: {{shared01: {{hosts: "esx[01-02]"}}}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1]
    portgroups: {{vMotion: {{}}, VM-Network: {{security: {{promiscuous: accept}}}}}}
hosts:
  esx01:
    cpu: {{cores: 4}}
    memory: 128MiB
    nics: {{vmnic0: {{switch: tor, rate: {rate}, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks:
      vmk1: {{portgroup: vMotion, ip: 192.168.20.11/24, services: [vmotion], mtu: 9000}}
  esx02:
    cpu: {{cores: 2}}
    memory: 128MiB
    nics: {{vmnic0: {{switch: tor, rate: {rate}, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks:
      vmk1: {{portgroup: vMotion, ip: 192.168.20.12/24, services: [vmotion], mtu: 9000}}
vms:
  "db[01-02]":
    host: esx01
    memory: 16MiB
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: "192.168.10.[51-52]/24"}}]
    workload: {{kind: uniform, dirty_rate: 1MB/s, working_set: 25%}}
  wide: {{host: esx01, memory: 16MiB, vcpus: 3, datastore: shared01, nics: []}}
  other:
    host: esx02
    memory: 16MiB
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: 192.168.10.60/24}}]
"""


@pytest.fixture
def many() -> Iterator[Callable[[str], str]]:
    """Brings up a lab of two hosts, with a VM on the first that is too wide for the second."""

    def bring_up(rate: str) -> str:
        up(topologies.loads(TEXT.format(rate=rate), "many.yaml"))
        return "many"

    yield bring_up
    down("many")


def ask(lab: str, command: str, **fields: Any) -> dict[str, Any]:
    """Have the supervisor do something, which is quicker than a command of its own."""
    return request(LabDirectory(lab), {"command": command, **fields}, timeout_s=30)


def status(lab: str) -> dict[str, Any]:
    return ask(lab, "status")


def under_way(lab: str) -> set[str]:
    """The VMs that are being migrated now."""
    return {one["name"] for one in status(lab)["vms"] if one["state"] == "migrating"}


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


def test_several_move_side_by_side_and_one_that_may_not_disturbs_none(
    many: Callable[[str], str], tmp_path: Path
) -> None:
    name = many("100Mbit")
    done = run(
        *("migrate", "db01", "db02", "wide", "--to", "esx02", "--lab", name),
        *("--verify", "--results", tmp_path),
        check=False,
    )
    assert done.returncode == 1
    assert "2 of 3 VMs moved" in done.stdout
    assert "wide: not begun: migrate wide to esx02: esx02 has 2 cores" in done.stderr
    assert hosts(name) == {"db01": "esx02", "db02": "esx02", "wide": "esx01", "other": "esx02"}
    journal = Journal.read(LabDirectory(name).journal)
    assert journal.moves == {}
    # The kernel has all of the plan, the chains that mirror to each VM's port included.
    readback.verify(kernel_steps(journal.plan.steps))
    (whole,) = [json.loads(file.read_text()) for file in tmp_path.glob("*-migrations.json")]
    outcomes = {one["vm"]: one["outcome"] for one in whole["migrations"]}
    assert outcomes == {"db01": "completed", "db02": "completed", "wide": "not begun"}
    results = [
        json.loads(Path(one["result"]).read_text()) for one in whole["migrations"] if one["result"]
    ]
    for result in results:
        assert result["verification"]["pages_different"] == 0
    # Each was under way while the other was: together they took less than one after the other.
    assert whole["elapsed_ns"] < sum(one["engine"]["total_ns"] for one in results)


def test_the_last_room_of_a_host_is_given_to_one_only(many: Callable[[str], str]) -> None:
    name = many("1Gbit")
    text = TEXT.format(rate="1Gbit").replace(
        "cpu: {cores: 2}\n    memory: 128MiB", "cpu: {cores: 2}\n    memory: 40MiB"
    )
    ask(name, "apply", topology_file="many.yaml", topology_text=text, traces={})
    done = run(
        "migrate", "db01", "db02", "--to", "esx02", "--lab", name, "--no-results", check=False
    )
    assert done.returncode == 1
    assert "not begun: migrate" in done.stderr
    assert "esx02 has 8 MiB of memory free" in done.stderr
    assert sorted(hosts(name)[vm] for vm in ("db01", "db02")) == ["esx01", "esx02"]
    assert Journal.read(LabDirectory(name).journal).moves == {}


def test_vms_on_their_way_are_left_alone_and_ctrl_c_leaves_them_where_they_were(
    many: Callable[[str], str],
) -> None:
    name = many("10Mbit")
    with moving(name, "db01", "db02") as process:
        for command, fields in (
            ("workload", {"workloads": []}),
            ("throttle", {"sleep_ns_per_ms": 1000}),
            ("record", {"duration_ns": 10**9, "interval_ns": 10**8}),
        ):
            with pytest.raises(LabError, match="its configuration is locked"):
                ask(name, command, vm="db01", **fields)
        ask(name, "workload", vm="other", workloads=[])
        assert under_way(name) == {"db01", "db02"}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    found = {one["name"]: one for one in status(name)["vms"]}
    assert {found[vm]["host"] for vm in ("db01", "db02")} == {"esx01"}
    assert {one["state"] for one in found.values()} == {"running"}
    assert Journal.read(LabDirectory(name).journal).state == "up"
    ask(name, "workload", vm="db01", workloads=[])


def test_a_host_is_emptied_powered_off_and_taken_back(many: Callable[[str], str]) -> None:
    name = many("1Gbit")
    done = run("evacuate", "esx01", "--lab", name, "--no-results", check=False)
    assert done.returncode == 1
    assert "wide: not begun: no host takes wide: esx02 has 2 cores" in done.stderr
    assert "esx01 is not in maintenance mode: wide remained" in done.stderr
    assert hosts(name) == {"db01": "esx02", "db02": "esx02", "wide": "esx01", "other": "esx02"}
    run("evacuate", "esx02", "--lab", name, "--power-off", "--no-results")
    assert set(hosts(name).values()) == {"esx01"}
    assert status(name)["maintenance"] == ["esx02"]
    assert "in maintenance mode: esx02" in run("status", name).stdout
    assert run("vmkping", "esx01", "192.168.20.12", "--count", "1", check=False).returncode == 1
    refused = run("migrate", "db01", "--to", "esx02", "--lab", name, check=False)
    assert refused.returncode == 1
    assert "'testbed evacuate esx02 --exit'" in refused.stderr
    more = run("evacuate", "esx02", "--exit", "--verify", "--lab", name, check=False)
    assert (more.returncode, "--exit: moves no VM" in more.stderr) == (2, True)
    run("evacuate", "esx02", "--exit", "--lab", name)
    run("vmkping", "esx01", "192.168.20.12", "--count", "1")


TWO_NICS = """\
name: terms
profile: vsphere-7.0
switches: {tor: {mtu: 9000}}
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1, uplink2]
    portgroups:
      Management: {vlan: 5}
      vMotion-1: {teaming: {active: [uplink1]}}
      vMotion-2: {teaming: {active: [uplink2]}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4, mhz: 2260}
    memory: 64MiB
    nics:
      vmnic0: {switch: tor, rate: 100Mbit, mtu: 9000, uplink: DSwitch/uplink1}
      vmnic1: {switch: tor, rate: 100Mbit, mtu: 9000, uplink: DSwitch/uplink2}
    vmks:
      vmk0: {portgroup: Management, ip: "192.168.5.[11-12]/24", services: [management]}
      vmk1: {portgroup: vMotion-1, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}
      vmk2: {portgroup: vMotion-2, ip: "192.168.20.[21-22]/24", services: [vmotion], mtu: 9000}
vms:
  db01: {host: esx01, memory: 16MiB, datastore: shared01, nics: []}
"""


def test_a_move_is_made_on_the_terms_of_the_profile(tmp_path: Path) -> None:
    """Over both NICs, encrypted, charged, announced over the management network, logged."""
    try:
        up(topologies.loads(TWO_NICS, "terms.yaml"))
        directory = LabDirectory("terms")
        run("migrate", "db01", "--to", "esx02", "--results", tmp_path)
        (result,) = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
        engine = result["engine"]
        ways = {(one["source_address"], one["destination_address"]) for one in engine["streams"]}
        assert ways == {("192.168.20.11", "192.168.20.12"), ("192.168.20.21", "192.168.20.22")}
        assert all(one["bytes"] > 1 << 20 for one in engine["streams"])  # of 16 MB
        assert result["path_goodput_bps"] == pytest.approx(198e6, rel=0.01)
        assert "AES" in engine["encryption"]
        assert any("a specification of" in notice for notice in result["notices"])
        for host in ("esx01", "esx02"):
            used = Ledger.join(ledger_path(directory, host)).used()
            assert used["vmotion"] > 16 << 20  # a cycle a byte, at least
            assert used["management"] > 0
        old = ("migrate", "db01", "--to", "esx01", "--profile", "esx-4.0", "--results", tmp_path)
        refused = run(*old, "--encryption", "required", check=False)
        assert "profile esx-4.0 of esx02 has none" in refused.stderr
        run(*old)
        (again,) = [
            one
            for one in (json.loads(file.read_text()) for file in tmp_path.glob("*.json"))
            if one["destination"] == "esx01"
        ]
        (stream,) = again["engine"]["streams"]  # it knows one NIC, and a fixed window
        assert stream["window_bytes"] == 263536
        assert 0 < stream["most_in_flight_bytes"] <= 1.25 * 263536
    finally:
        down("terms")


def hosts(lab: str) -> dict[str, str]:
    """Where each VM runs."""
    return {one["name"]: one["host"] for one in status(lab)["vms"]}


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
