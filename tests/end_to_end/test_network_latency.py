"""Latency on the links of a lab: how long frames take, changed, cut and spoilt while it runs."""

from __future__ import annotations

import os
import signal
import statistics
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed import topology as topologies
from testbed.lab.up import up
from tests.end_to_end.labs import run, vm
from tests.end_to_end.wires import IPV4, MS, Net, standing, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

TEXT = """\
name: {name}
switches: {{"tor-[a,b]": {{mtu: 9000}}}}
links: [{{between: [tor-a, tor-b], rate: 1Gbit, {link}}}]
datastores: {{shared01: {{hosts: "esx[01-02]"}}}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1]
    portgroups: {{Management: {{}}, vMotion: {{vlan: 20}}, VM-Network: {{vlan: 10}}}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 4}}
    memory: 1GiB
    nics: {{vmnic0: {{switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks:
      vmk0: {{portgroup: Management, ip: "192.168.5.[11-12]/24", services: [management]}}
      vmk1: {{portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
"""
GUEST = """\
vms:
  db01:
    host: esx01
    memory: 96MiB
    datastore: shared01
    nics: [{portgroup: VM-Network, ip: 192.168.10.50/24}]
"""
VMKS = ("vmk0", "vmk1")  # untagged and tagged
NEVER_EARLY_MS = 0.5  # a frame may go with one that is due a moment earlier


def topology(name: str, link: str = "rtt: 10ms", guest: str = "") -> str:
    return TEXT.format(name=name, link=link) + guest


@pytest.fixture(scope="module")
def distant() -> Iterator[Net]:
    with standing(topology("distant", "latency: {tor-a: 8ms, tor-b: 2ms}")) as net:
        yield net


def line_of(net: Net, wire: str = "tor-a+tor-b") -> int:
    """The process id of a wire's delay line, a child of the lab's supervisor."""
    pid = net.status()["supervisor_pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    inside = Path(net.path(wire)).stat().st_ino
    (line,) = [c for c in children if Path(f"/proc/{c}/ns/net").stat().st_ino == inside]
    return int(line)


def about(rtt_ms: float, wanted_ms: float) -> bool:
    """Not too early, and not so late that a busy machine would be no excuse."""
    return wanted_ms - NEVER_EARLY_MS < rtt_ms < wanted_ms * 1.1 + 2


@pytest.mark.parametrize("vmk", VMKS)
def test_a_round_trip_takes_what_the_link_says(distant: Net, vmk: str) -> None:
    assert about(distant.rtt_ms(f"esx01/{vmk}", f"esx02/{vmk}"), 10)
    # Within a rack nothing is delayed.
    assert distant.ping(f"esx01/{vmk}", f"esx02/{vmk}", 40).lost == 0


@pytest.mark.parametrize("vmk", VMKS)
def test_each_direction_has_its_own_delay(distant: Net, vmk: str) -> None:
    """Times of the same frames at both hosts, there and back, on the machine's one clock."""
    distant.ping(f"esx01/{vmk}", f"esx02/{vmk}", 2)
    with distant.hear(f"esx01/{vmk}", f"esx02/{vmk}") as heard:
        distant.ping(f"esx01/{vmk}", f"esx02/{vmk}", 30)
    at = {
        (where, out): [one.unix_ns for one in heard.at(where, outgoing=out) if one.kind == IPV4]
        for where in (f"esx01/{vmk}", f"esx02/{vmk}")
        for out in (True, False)
    }
    for source, destination, wanted_ms in ((1, 2, 8), (2, 1, 2)):
        left, came = at[f"esx0{source}/{vmk}", True], at[f"esx0{destination}/{vmk}", False]
        assert len(left) == len(came) == 30
        took_ms = statistics.median(b - a for a, b in zip(left, came, strict=True)) / 1e6
        assert about(took_ms, wanted_ms), f"{took_ms:.2f} ms from esx0{source}"


def test_throughput_does_not_suffer_from_distance(distant: Net) -> None:
    """10 ms x 1 Gbit/s fit in TCP's own buffers; what is reached, scripts/bench network judges."""
    assert distant.bps("esx01/vmk1", "esx02/vmk1", duration_s=1) > 0.1 * 990e6


def test_a_link_gets_another_distance_as_it_runs() -> None:
    with standing(topology("moved")) as net:
        line = line_of(net)
        assert about(net.rtt_ms("esx01/vmk1", "esx02/vmk1"), 10)
        shown = run("link", "moved", "tor-a", "tor-b", "--rtt", "40ms").stdout
        assert "20 ms" in shown
        assert about(net.rtt_ms("esx01/vmk1", "esx02/vmk1", 20), 40)
        assert line_of(net) == line  # in place
        run("link", "moved", "tor-a", "tor-b", "--rtt", "20ms", "--for", "200ms")
        assert about(net.rtt_ms("esx01/vmk1", "esx02/vmk1", 20), 40)  # taken back


def test_a_link_gets_its_first_latency_as_it_runs() -> None:
    with standing(topology("plain", "vlans: [0, 10, 20]")) as net:
        assert net.rtt_ms("esx01/vmk1", "esx02/vmk1") < 5
        net.link("tor-a", "tor-b", delay_ns=5 * MS)
        for vmk in VMKS:
            assert about(net.rtt_ms(f"esx01/{vmk}", f"esx02/{vmk}"), 10)
        assert net.status()["state"] == "up"
        # A latency of nothing is a plain link again.
        net.link("tor-a", "tor-b", delay_ns=0)
        assert net.rtt_ms("esx01/vmk1", "esx02/vmk1") < 5
        assert net.status()["state"] == "up"


def test_a_flap_lasts_as_long_as_asked(distant: Net) -> None:
    with distant.pinging("esx01/vmk1", "esx02/vmk1", 10 * MS) as pings:
        said = distant.link("tor-a", "tor-b", up=False, for_ns=1000 * MS)
    assert 1000 * MS <= said["held_ns"] < 10_000 * MS
    assert 1000 * MS <= pings.found.outage_ns < 10_000 * MS
    assert pings.found.lost >= 90
    assert distant.ping("esx01/vmk1", "esx02/vmk1", 40).lost == 0
    assert distant.status()["state"] == "up"


def test_loss_on_a_link_is_as_much_as_asked() -> None:
    """Of 2000 echoes over 5 % each way, within five standard deviations (a chance of 1e-6)."""
    with standing(topology("lossy", "loss: 5%")) as net:
        lost = (
            2000 - net.ping("esx01/vmk1", "esx02/vmk1", 2000, 1 * MS, timeout_ns=300 * MS).received
        )
        expected = 2000 * (1 - 0.95**2)
        assert abs(lost - expected) < 5 * (expected * 0.95**2) ** 0.5, lost
        net.link("tor-a", "tor-b", loss=0.0)
        assert net.ping("esx01/vmk1", "esx02/vmk1", 200, 1 * MS).lost == 0


def test_a_dead_delay_line_is_told_and_nothing_is_measured_with_it(tmp_path: Path) -> None:
    file = tmp_path / "severed.yaml"
    file.write_text(topology("severed", guest=GUEST))
    with standing(file.read_text()) as net:
        dying = line_of(net)
        with net.pinging("esx01/vmk1", "esx02/vmk1") as pings:
            os.kill(dying, signal.SIGKILL)
            wait_until(lambda: bool(net.status()["troubles"]))
        assert pings.found.lost > 5  # the wire is dead
        said = net.status()
        assert said["state"] == "degraded"
        assert any("tor-a - tor-b" in trouble for trouble in said["troubles"])
        assert run("status", "severed", check=False).returncode == 1
        ends = ("esx01/vmk1", "esx01/vmk0")
        refused = run("ping", "--lab", "severed", *ends, "--count", "3", check=False)
        assert refused.returncode == 1
        assert "not valid" in refused.stderr
        assert "delay line" in refused.stderr
        # `up` starts it again, and then all is well.
        up(topologies.load(file))
        assert net.status()["state"] == "up"
        assert about(net.rtt_ms("esx01/vmk1", "esx02/vmk1"), 10)
        assert net.migrate("db01", "esx02")["outcome"] == "completed"


def test_a_migration_over_a_link_that_changes_or_dies() -> None:
    """The link may change as a guest moves; what such a result says is marked as not valid.

    The line that dies is beside the path: the migration would wait as long as vMotion, 20 s.
    """
    text = topology("far", guest=GUEST).replace('tor-[a,b]": {mtu', 'tor-[a,b,c]": {mtu')
    text = text.replace("\nlinks: [", "\nlinks: [{between: [tor-b, tor-c], rtt: 4ms}, ")
    with standing(text) as net:
        changed: list[threading.Thread] = []

        def change(event: dict[str, Any]) -> None:
            if not changed and event.get("phase") == "pre-copy":
                arguments = {"delay_ns": 10 * MS}
                changed.append(
                    threading.Thread(target=net.link, args=("tor-a", "tor-b"), kwargs=arguments)
                )
                changed[0].start()

        result = net.migrate("db01", "esx02", on_event=change)
        changed[0].join()
        assert result["outcome"] == "completed", result["failure"]
        troubles = {wire["link"]: wire["trouble"] or "" for wire in result["wires"]}
        assert "changed meanwhile" in troubles["tor-a - tor-b"]
        assert about(net.rtt_ms("esx01/vmk1", "esx02/vmk1"), 20)
        assert vm("far", "db01")["host"] == "esx02"

        dying = line_of(net, "tor-b+tor-c")

        def kill(event: dict[str, Any]) -> None:
            if event.get("phase") == "pre-copy" and Path(f"/proc/{dying}").exists():
                os.kill(dying, signal.SIGKILL)

        result = net.migrate("db01", "esx01", on_event=kill)
        troubles = {wire["link"]: wire["trouble"] or "" for wire in result["wires"]}
        assert "delay line has died" in troubles["tor-b - tor-c"]
        assert "changed" not in troubles["tor-a - tor-b"]  # it holds for what comes
        assert about(net.rtt_ms("esx01/vmk1", "esx02/vmk1"), 20)
        ends = ("esx01/vmk1", "esx02/vmk1")
        refused = run("iperf", "--lab", "far", *ends, "--time", "1", check=False)
        assert refused.returncode == 1
        assert "not valid" in refused.stderr
