"""Each mechanism, broken on purpose, is noticed: the checks of physics fail where they should.

A check measures a lab on the wire and knows nothing of its file. All pass in the lab as it should
be; then one value of the file is wrong at a time, and the check of that mechanism fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.measure.theory import tcp_goodput_bps
from tests.end_to_end.wires import IPV4, MS, Flow, Net, frame, standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

RIGHT = """\
name: checked
switches: {"tor-[a,b]": {}}
links: [{between: [tor-a, tor-b], rate: 200Mbit, rtt: 8ms, vlans: [5, 10, 20]}]
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    uplinks: [uplink1, uplink2]
    teaming: {policy: explicit, active: [uplink1], standby: [uplink2]}
    nioc: {vmotion: {shares: high}, management: {shares: normal}}
    portgroups:
      Management: {vlan: 5}
      vMotion: {vlan: 20, marking: {cos: 4, dscp: 26}}
      Red: {vlan: 10, shaping: {egress: {average: 50Mbit, peak: 50Mbit, burst: 64KiB}}}
      Blue: {vlan: 20}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics:
      vmnic0: {switch: "tor-[a,b]", rate: 150Mbit, uplink: DSwitch/uplink1}
      vmnic1: {switch: "tor-[a,b]", rate: 150Mbit, uplink: DSwitch/uplink2}
    vmks:
      vmk0: {portgroup: Management, ip: "192.168.5.[11-12]/24", services: [management]}
      vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion]}
vms:
  red1: {host: esx01, memory: 16MiB, datastore: shared01,
         nics: [{portgroup: Red, ip: 10.0.0.1/24}]}
  blue2: {host: esx02, memory: 16MiB, datastore: shared01,
          nics: [{portgroup: Blue, ip: 10.0.0.2/24}]}
"""
VMOTION, MANAGEMENT = ("esx01/vmk1", "esx02/vmk1"), ("esx01/vmk0", "esx02/vmk0")
LINK = tcp_goodput_bps(150_000_000, 1500)
WIRE = "tor-b/tor-a"


def best(measure: Callable[[], bool], times: int = 4) -> bool:
    """Whether it is right in one of a few goes: a busy machine spoils one, a fault all."""
    return any(measure() for _ in range(times))


def rate(net: Net) -> bool:
    """One flow gets what the uplink carries: neither more nor less, by 3 %."""
    return best(lambda: abs(net.bps(*VMOTION, duration_s=1) / LINK - 1) < 0.03)


def shares(net: Net) -> bool:
    """Two flows divide it 2:1, within 3 points."""

    def divided() -> bool:
        flows = net.together(Flow(*VMOTION), Flow(*MANAGEMENT), duration_s=1)
        return abs(flows[0] / sum(flows) - 2 / 3) < 0.03

    return best(divided)


def delay(net: Net) -> bool:
    return best(lambda: 7.5 < net.rtt_ms(*VMOTION) < 9.3)


def loss(net: Net) -> bool:
    """None of 500 is lost; with 2 % each way it would be 20, and none by a chance of 1e-9."""
    return best(lambda: net.ping(*VMOTION, 500, 1 * MS, timeout_ns=300 * MS).lost == 0)


def marks(net: Net) -> bool:
    """Every packet of vMotion on the wire is in VLAN 20, with CoS 4 and DSCP 26."""
    net.ping(*VMOTION, 2)
    with net.hear(WIRE) as heard:
        net.ping(*VMOTION, 5)
    asked = [one for one in heard.at(WIRE, outgoing=False) if one.kind == IPV4]
    return {(one.vid, one.pcp, one.dscp) for one in asked} == {(20, 4, 26)}


def apart(net: Net) -> bool:
    """A broadcast in one VLAN isn't heard in the other."""
    sent = frame(net.macs["red1/eth0"], "for those in red")
    with net.hear("blue2/eth0-esx02", "esx02/vmk1") as heard:
        net.send("red1/eth0", sent)
    return not heard.copies(sent)


def shaped(net: Net) -> bool:
    """What a guest in Red sends leaves its host at 50 Mbit/s."""
    sent, count = frame(net.macs["red1/eth0"], "many", size=1500), 300
    with net.hear("esx01/vmnic0", settle_s=0.3) as heard:
        net.send("red1/eth0", *[sent] * count)
    left = [one.unix_ns for one in heard.at("esx01/vmnic0") if one.source == net.macs["red1/eth0"]]
    if len(left) < count:
        return False
    bps = (count - 101) * 1500 * 8e9 / (left[-1] - left[100])  # after the burst
    return abs(bps / 50e6 - 1) < 0.1


def failover(net: Net) -> bool:
    """With its first uplink cut a vmk goes on by the second, within a second."""
    with net.pinging(*VMOTION) as pings:
        net.link("esx01/vmnic0", "tor-a", up=False, for_ns=1500 * MS)
    return pings.found.outage_ns < 1000 * MS


CHECKS = (rate, shares, delay, loss, marks, apart, shaped, failover)
FAULTS: dict[str, tuple[str, str, Callable[[Net], bool]]] = {
    "rate": ("150Mbit, uplink: DSwitch/uplink1", "140Mbit, uplink: DSwitch/uplink1", rate),
    "share": ("{shares: normal}", "{shares: high}", shares),
    "delay": ("rtt: 8ms", "rtt: 10ms", delay),
    "one-way delay": ("rtt: 8ms", "latency: {tor-a: 4ms, tor-b: 6ms}", delay),
    "loss": ("rtt: 8ms", "rtt: 8ms, loss: 2%", loss),
    "CoS": ("cos: 4", "cos: 5", marks),
    "DSCP": ("dscp: 26", "dscp: 28", marks),
    "VLAN of the tag": ("vMotion: {vlan: 20", "vMotion: {vlan: 10", marks),
    "VLAN of a port": ("Red: {vlan: 10", "Red: {vlan: 20", apart),
    "shaping": ("average: 50Mbit, peak: 50Mbit", "average: 60Mbit, peak: 60Mbit", shaped),
    "no standby": (", standby: [uplink2]", "", failover),
}  # fmt: skip


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with standing(RIGHT) as found:
        yield found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_lab_as_it_should_be_passes(net: Net, check: Callable[[Net], bool]) -> None:
    net.apply(RIGHT)
    assert check(net)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_value_is_noticed(net: Net, fault: str) -> None:
    right, wrong, check = FAULTS[fault]
    assert RIGHT.count(right) == 1
    net.apply(RIGHT.replace(right, wrong))
    assert not check(net)
