"""A topology file on a kernel that has netem and 8021q: planned, built, and what its wires do."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from testbed.kernel import builder, readback
from testbed.kernel.undo import remove
from testbed.measure import ping
from testbed.measure.endpoint import Endpoint
from testbed.measure.ping import PingTest
from testbed.plan.compile import compile_plan
from testbed.plan.plan import kernel_steps
from testbed.plan.policies import DelayLine, Netem
from testbed.topology.loading import loads  # not by testbed.topology, which imports it late

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.plan.plan import Plan

pytestmark = [pytest.mark.root, pytest.mark.needs_feature("netem", "8021q")]
MS = 10**6
STRETCHED = """
name: tb-ref
switches: {"tor-[a,b]": {mtu: 9000}}
links: [{between: [tor-a, tor-b], rate: 10Gbit, rtt: 10ms, vlans: [20]}]
distributed_switches:
  DSwitch: {mtu: 9000, uplinks: [uplink1], portgroups: {vMotion: {vlan: 20}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 8}
    memory: 64GiB
    nics: {vmnic0: {switch: "tor-[a,b]", rate: 10Gbit, mtu: 9000, uplink: DSwitch/uplink1}}
    vmks: {vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
"""
VMK = Endpoint("/run/netns/tb.tb-ref.esx01", "192.168.20.11", "vmk1")


@pytest.fixture(scope="module")
def plan() -> Iterator[Plan]:
    """Two hosts, 10 ms apart, in a VLAN; on each switch's bridge an 8021q device in VLAN 20."""
    made = compile_plan(loads(STRETCHED, "stretched.yaml"), cpus=os.cpu_count() or 1, netem=True)
    steps = kernel_steps(made.steps)
    builder.build(steps)
    try:
        for number, switch in ((21, "tor-a"), (22, "tor-b")):
            for command in (
                f"link add link {switch} name vlan20 type vlan id 20",
                f"address add 192.168.20.{number}/24 dev vlan20",
                "link set vlan20 up",
            ):
                run(f"ip -n tb.tb-ref.{switch} {command}")
        yield made
    finally:
        remove(steps)


def run(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


def fastest_ms(address: str, payload_bytes: int = 56) -> float:
    test = PingTest(
        count=10, interval_ns=10 * MS, payload_bytes=payload_bytes, dont_fragment=True,
        timeout_ns=500 * MS,
    )  # fmt: skip
    result = ping.measure(VMK, Endpoint("", address), test)
    assert result.received == 10
    return result.minimum_ns / MS


def test_the_wire_has_netem_and_no_delay_line(plan: Plan) -> None:
    readback.verify(kernel_steps(plan.steps))
    assert sum(isinstance(step, Netem) for step in plan.steps) == 2
    assert not any(isinstance(step, DelayLine) for step in plan.steps)
    assert "delay 5ms" in run("tc -n tb.tb-ref.tor-a+tor-b qdisc show dev tor-b")


def test_tagged_frames_between_hosts_take_the_round_trip_time(plan: Plan) -> None:
    assert 10 <= fastest_ms("192.168.20.12") < 15
    assert 10 <= fastest_ms("192.168.20.12", 8972) < 15  # jumbo frames, unbroken


def test_a_vmk_talks_with_the_vlan_devices_of_both_switches(plan: Plan) -> None:
    assert fastest_ms("192.168.20.21") < 5
    assert 10 <= fastest_ms("192.168.20.22") < 15
