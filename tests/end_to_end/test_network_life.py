"""Lives of labs with all that a network can have: unwound, orphaned, changed to and fro."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from testbed import topology as topologies
from testbed.kernel import netns
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.launch import supervisor_of
from testbed.lab.planning import plan_here
from testbed.lab.up import up
from tests.end_to_end.labs import run, vm
from tests.end_to_end.wires import IPV4, Net, standing, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.plan.steps import Step

pytestmark = pytest.mark.root

PLAIN = """\
name: lived
switches: {"tor-[a,b]": {mtu: 9000}}
links: [{between: [tor-a, tor-b], rate: 1Gbit}]
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1, uplink2]
    portgroups: {Management: {}, vMotion: {}, VM-Network: {}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics:
      vmnic0: {switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}
      vmnic1: {switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink2}
    vmks:
      vmk0: {portgroup: Management, ip: "192.168.5.[11-12]/24", services: [management]}
      vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}
vms:
  db01: {host: esx01, memory: 16MiB, datastore: shared01,
         nics: [{portgroup: VM-Network, ip: 192.168.10.50/24}]}
"""
SHAPING = "{average: 500Mbit, peak: 1Gbit, burst: 1MiB}"
NIOC = "{vmotion: {shares: high, reservation: 200Mbit}, virtualMachine: {reservation: 100Mbit}}"
LEGS = "[{vlan: 5, ip: 192.168.5.1/24}, {vlan: 20, ip: 192.168.20.1/24}]"
ADDED = (
    ('"tor-[a,b]": {', "qos: {by: cos, queues: [{values: 4, weight: 3}]}, "),
    ("{between: [tor-a, tor-b], rate: 1Gbit", ", rtt: 4ms, loss: 0.001%, vlans: [5, 10, 20]"),
    ("uplinks: [uplink1, uplink2]", f"\n    nioc: {NIOC}"),
    ("Management: {", f"vlan: 5, shaping: {{egress: {SHAPING}, ingress: {SHAPING}}}"),
    ("vMotion: {", "vlan: 20, marking: {cos: 4, dscp: 26}, teaming: {policy: explicit}"),
    ("VM-Network: {", "vlan: 10, security: {promiscuous: accept}"),
    ("uplink: DSwitch/uplink2", ", offloads: {tso: off, lro: off}, rings: {tx: 512}"),
    ("ip: 192.168.10.50/24", ", bandwidth: {reservation: 50Mbit}"),
    ("services: [management]", ", gateway: 192.168.5.1"),
    ("services: [vmotion]", ", routes: [{to: 192.168.5.0/24, via: 192.168.20.1}]"),
    ('hosts: "esx[01-02]"}}', f"\nrouters: {{core: {{interfaces: {{tor-a: {LEGS}}}}}}}"),
)
"""After what, and what else a rich lab has."""


def rich() -> str:
    text = PLAIN
    for after, more in ADDED:
        assert text.count(after) == 1, after
        text = text.replace(after, after + more)
    return text


@pytest.fixture
def lab() -> Iterator[str]:
    yield "lived"
    down("lived")


def namespaces() -> list[str]:
    return [name for name in netns.names() if name.startswith("tb.lived.")]


@pytest.mark.slow
def test_a_failure_at_any_step_of_a_rich_lab_leaves_nothing(lab: str) -> None:
    class InjectedError(Exception):
        pass

    found = topologies.loads(rich(), "lived.yaml")
    steps = plan_here(found).steps
    assert {"chain", "shape", "offloads", "route", "rule", "vm"} <= {step.kind for step in steps}
    for step in steps:

        def fail(begun: Step, wanted: str = step.key) -> None:
            if begun.key == wanted:
                raise InjectedError(wanted)

        with pytest.raises(InjectedError):
            up(found, before=fail, batch=1)
        assert not namespaces(), step.key
        assert not LabDirectory(lab).path.exists(), step.key


def works(net: Net, *, rtt_ms: float, vid: int | None) -> None:
    """Pings of vMotion take so long, and cross the link between the racks in that VLAN."""
    net.ping("esx01/vmk1", "esx02/vmk1", 2)
    with net.hear("tor-b/tor-a") as heard:
        found = net.ping("esx01/vmk1", "esx02/vmk1", 20).median_ns / 1e6
    assert rtt_ms - 0.5 < found < rtt_ms * 1.1 + 2
    assert {one.vid for one in heard.at("tor-b/tor-a") if one.kind == IPV4} == {vid}


def test_a_supervisor_killed_and_started_again_serves_the_network(lab: str, tmp_path: Path) -> None:
    """Delay lines, teams and reservations are its own: all are there again."""
    file = tmp_path / "lived.yaml"
    file.write_text(rich())
    run("up", file)
    supervisor = supervisor_of(LabDirectory(lab))
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_until(lambda: not supervisor.alive())
    assert run("status", lab, check=False).returncode == 1
    assert "started it again" in run("up", file).stdout
    net = Net(lab)
    works(net, rtt_ms=4, vid=20)
    assert net.status()["state"] == "up"
    with net.pinging("esx01/vmk1", "esx02/vmk1") as pings:
        net.link("esx01/vmnic0", "tor-a", up=False)
    assert pings.found.outage_ns < 1000e6
    assert net.uplinks_of_ports()["esx01/vmk1-port"] == "vmnic1"
    assert "nothing changed" in run("up", file).stdout


def test_apply_gives_a_plain_lab_all_of_it_and_takes_it_back(lab: str) -> None:
    with standing(PLAIN) as net:
        plain = plan_here(topologies.loads(PLAIN, "plain.yaml"))
        before = vm(lab, "db01")
        works(net, rtt_ms=0, vid=None)
        net.apply(rich())
        works(net, rtt_ms=4, vid=20)
        assert net.status()["state"] == "up"
        assert net.apply(PLAIN)["undone"]
        works(net, rtt_ms=0, vid=None)
        assert net.plan() == plain
        assert net.bps("esx01/vmk0", "esx02/vmk0", duration_s=1) > 0.1 * 941e6
        after = vm(lab, "db01")
        assert after["vmx_pid"] == before["vmx_pid"]  # it ran all the while
        assert {(n["host"], n["nic"], n["switch"]) for n in net.status()["neighbours"]} == {
            (f"esx0{host}", f"vmnic{nic}", f"tor-{tor}")
            for host, tor in ((1, "a"), (2, "b"))
            for nic in (0, 1)
        }


def test_status_shows_the_neighbour_at_the_other_end_of_each_cable() -> None:
    """As LLDP tells it: the switch, its port, MTU and VLANs; nothing where the link is down."""
    vlans = PLAIN.replace(
        "uplink: DSwitch/uplink1", 'uplink: DSwitch/uplink1, vlans: [0, 20, "30-31"]'
    )
    with standing(vlans) as net:
        found = {(n["host"], n["nic"]): n for n in net.status()["neighbours"]}
        assert found["esx02", "vmnic0"] == {
            "host": "esx02", "nic": "vmnic0", "switch": "tor-b", "port": "esx02-vmnic0",
            "mtu": 9000, "vlans": [20, 30, 31],
        }  # fmt: skip
        net.link("esx02/vmnic0", "tor-b", up=False)
        found = {(n["host"], n["nic"]): n for n in net.status()["neighbours"]}
        assert found["esx02", "vmnic0"]["switch"] is None
        assert found["esx02", "vmnic1"]["switch"] == "tor-b"
        # A frame of LLDP ends at the first bridge: no host hears another's.
        with net.hear("esx01/vmk0", "esx02/vmk0", "tor-b/tor-a") as heard:
            net.status()
        assert not [one for one in heard.frames if one.kind == 0x88CC]
