"""What links, port groups, NICs and vmks are told, as the lab will have it."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from testbed.topology import load, loads
from testbed.topology.policy import (
    Allocation,
    Impairment,
    MarkingRule,
    NicShare,
    Offloads,
    Rings,
    Security,
    StaticRoute,
    SwitchQueues,
    TrafficShaping,
)
from testbed.topology.ranges import holds, merged
from testbed.topology.traffic import SYSTEM_TRAFFIC

if TYPE_CHECKING:
    from testbed.topology.model import Topology
    from testbed.topology.policy import PortGroup, Teaming

TOPOLOGIES = Path(__file__).parents[2] / "topologies"


def lab(name: str) -> Topology:
    return load(TOPOLOGIES / f"{name}.yaml")


def group(topology: Topology, host: str, name: str) -> PortGroup:
    vswitch = topology.host(host).vswitch_of(name)
    assert vswitch is not None
    return vswitch.portgroup(name)


MS = 1_000_000
LINKS = {
    "rtt: 10ms": (Impairment(5 * MS), Impairment(5 * MS)),
    "rtt: 5ns": (Impairment(2), Impairment(3)),
    "latency: 5ms": (Impairment(5 * MS), Impairment(5 * MS)),
    "latency: {b: 1ms, a: 5ms}": (Impairment(5 * MS), Impairment(1 * MS)),
    "latency: {b: 1ms}": (Impairment(0), Impairment(1 * MS)),
    "loss: 0.1%": (Impairment(loss=0.001), Impairment(loss=0.001)),
    "rtt: 4ms, jitter: {a: 1ms}, loss: {b: 5%}": (
        Impairment(2 * MS, 1 * MS),
        Impairment(2 * MS, loss=0.05),
    ),
    "rate: 1Gbit": (Impairment(), Impairment()),
}


@pytest.mark.parametrize("keys", LINKS)
def test_a_delay_is_of_the_direction_that_leaves_a_switch(keys: str) -> None:
    text = f"name: x\nswitches: {{a: {{}}, b: {{}}}}\nlinks: [{{between: [a, b], {keys}}}]\n"
    (link,) = loads(text, "f").links
    assert (link.there, link.back) == LINKS[keys]
    assert link.there.delays == (LINKS[keys][0].delay_ns > 0)


def test_scale_leaves_delays_and_shares_alone_and_divides_rates_and_bursts() -> None:
    text = (TOPOLOGIES / "nioc.yaml").read_text()
    shaped = "VM-Network: {vlan: 10, shaping: {egress: {average: 1Gbit, peak: 2Gbit, burst: 1MiB}}}"
    text = text.replace("VM-Network: {vlan: 10}", shaped)
    text = text.replace("name: nioc", "name: nioc\nscale: 1/8")
    small = loads(text, "f")
    assert group(small, "esx01", "VM-Network").outgoing == TrafficShaping(
        125 * 10**6, 250 * 10**6, 2**17
    )
    nioc = small.hosts[0].vswitches[0].nioc
    assert nioc is not None
    assert dict(nioc.allocations)["vmotion"] == Allocation(100, 37_500_000, 10**8)
    assert small.vm("db01").nics[0].bandwidth == Allocation(100, 25 * 10**6)
    link = "rtt: 10ms, jitter: 1ms"
    far = (TOPOLOGIES / "stretched-cluster.yaml").read_text().replace("rtt: 10ms", link)
    scaled = loads(far.replace("sites:", "scale: 1/2\nsites:"), "f")
    assert scaled.links[0].there == Impairment(5 * MS, 1 * MS)
    assert scaled.links[0].rate_bps == 5 * 10**8


def test_nioc_names_every_type_and_has_vspheres_defaults() -> None:
    nioc = lab("nioc").hosts[1].vswitches[0].nioc
    assert nioc is not None
    allocations = dict(nioc.allocations)
    assert tuple(allocations) == SYSTEM_TRAFFIC
    assert not nioc.lend_idle
    assert allocations["vmotion"] == Allocation(100, 300_000_000, 800_000_000)
    assert allocations["virtualMachine"].shares == 100
    assert allocations["nfs"] == Allocation(50)
    text = (
        (TOPOLOGIES / "nioc.yaml").read_text().replace("reservations: lost", "reservations: lent")
    )
    lent = loads(text, "f").hosts[0].vswitches[0].nioc
    assert lent is not None
    assert lent.lend_idle


def team(topology: Topology, host: str, name: str) -> Teaming:
    return group(topology, host, name).teaming


def test_a_port_group_takes_from_its_switch_what_it_leaves_out() -> None:
    topology = lab("teaming")
    vmotion = team(topology, "esx02", "vMotion")
    assert (vmotion.policy, vmotion.active, vmotion.standby) == (
        "explicit",
        ("vmnic0",),
        ("vmnic1",),
    )
    assert (vmotion.failback, vmotion.notify) == (True, True)
    vms = team(topology, "esx01", "VM-Network")
    assert (vms.policy, vms.active, vms.standby) == ("mac_hash", ("vmnic0", "vmnic1"), ())
    backup = team(topology, "esx01", "Backup")
    assert (backup.active, backup.standby, backup.failback) == (("vmnic3",), ("vmnic2",), False)


def test_a_standby_uplink_takes_the_place_of_an_active_one_that_a_host_lacks() -> None:
    text = (TOPOLOGIES / "teaming.yaml").read_text()
    third = text.replace("vms:\n", "  esx03:\n    cpu: {cores: 1}\n    memory: 1GiB\n    nics:\n"
        "      vmnic5: {switch: tor-b, mtu: 9000, uplink: DSwitch/uplink2}\nvms:\n")  # fmt: skip
    only = team(loads(third, "f"), "esx03", "vMotion")
    assert (only.active, only.standby) == (("vmnic5",), ())


def test_active_uplinks_are_those_that_standby_leaves() -> None:
    text = (TOPOLOGIES / "teaming.yaml").read_text()
    text = text.replace("VM-Network: {vlan: 10}", "VM-Network: {teaming: {standby: [uplink1]}}")
    assert team(loads(text, "f"), "esx01", "VM-Network").active == ("vmnic1",)


SECURITY = "security: {promiscuous: accept, forged_transmits: reject}"


def test_security_is_vsphere_7s_unless_the_port_group_or_the_switch_says_otherwise() -> None:
    topology = lab("vlans-and-marking")
    assert group(topology, "esx01", "vMotion").security == Security(False, False, False)
    assert group(topology, "esx01", "Trunk").security == Security(False, False, True)
    text = (TOPOLOGIES / "standard-switches.yaml").read_text()
    assert group(loads(text, "f"), "esx01", "vMotion").security == Security(False, True, True)
    switch = text.replace("uplinks: [vmnic1],", f"uplinks: [vmnic1], {SECURITY},")
    assert group(loads(switch, "f"), "esx01", "vMotion").security == Security(True, True, False)
    both = switch.replace("vMotion: {}", "vMotion: {security: {promiscuous: reject}}")
    assert group(loads(both, "f"), "esx01", "vMotion").security == Security(False, True, False)


VLANS = {
    "distributed": {
        "{}": 0,
        "{vlan: 0}": 0,
        "{vlan: 20}": 20,
        "{vlan: [20]}": ((20, 20),),
        '{vlan: "20-29"}': ((20, 29),),
        '{vlan: [30, 0, "20-29", 25]}': ((0, 0), (20, 30)),
    },
    "standard": {"{}": 0, "{vlan: 7}": 7, "{vlan: 4095}": ((0, 4094),)},
}


@pytest.mark.parametrize("keys", VLANS["distributed"])
def test_a_number_is_an_access_vlan_and_a_list_or_range_a_trunk(keys: str) -> None:
    text = (
        (TOPOLOGIES / "quickstart.yaml")
        .read_text()
        .replace("vMotion: {}", f"X: {keys}, vMotion: {{}}")
    )
    assert group(loads(text, "f"), "esx01", "X").vlan == VLANS["distributed"][keys]


@pytest.mark.parametrize("keys", VLANS["standard"])
def test_a_standard_switch_has_guest_tagging_instead_of_trunks(keys: str) -> None:
    text = (TOPOLOGIES / "standard-switches.yaml").read_text()
    text = text.replace("VM-Network: {}", f"VM-Network: {keys}")
    assert group(loads(text, "f"), "esx01", "VM-Network").vlan == VLANS["standard"][keys]


def test_marks_queues_and_trunks_are_those_of_the_file() -> None:
    topology = lab("vlans-and-marking")
    carried = ((10, 10), (20, 20), (100, 109))
    assert topology.links[0].vlans == topology.hosts[0].uplinks[0].vlans == carried
    assert topology.switches[0].queues == SwitchQueues("cos", (((0, 1), 6), ((4,), 3)))
    assert group(topology, "esx01", "vMotion").marking == (MarkingRule(4, 26, "vmotion", 6),)
    (rule,) = group(topology, "esx01", "VM-Network").marking
    assert rule == MarkingRule(1, None, protocol=6, destination_ports=((5000, 5999),))
    assert topology.hosts[0].vswitches[0].marking == (MarkingRule(None, 16, protocol=1),)
    assert [nic.vlan for nic in topology.vm("firewall").nics] == [None, 105]


def test_a_router_has_an_interface_for_each_vlan_of_a_switch() -> None:
    (router,) = lab("vlans-and-marking").routers
    named = [(leg.name, leg.switch, leg.vlan) for leg in router.interfaces]
    assert named == [("tor-a.10", "tor-a", 10), ("tor-a.20", "tor-a", 20)]
    assert len({leg.mac for leg in router.interfaces}) == 2


def test_a_nics_shares_offloads_and_rings() -> None:
    text = (TOPOLOGIES / "quality-of-service.yaml").read_text()
    (nic, *_) = loads(text, "f").hosts[0].uplinks
    assert sum(share.guaranteed for share in nic.qos) == 1
    assert nic.qos[1] == NicShare("vmotion", Fraction(3, 10), Fraction(1))
    assert (nic.offloads, nic.rings) == (Offloads(), Rings())
    keys = "offloads: {tso: off, checksum: false}\n        rings: {tx: 512}\n        qos:"
    (nic, *_) = loads(text.replace("qos:", keys), "f").hosts[0].uplinks
    assert nic.offloads == Offloads(tso=False, lro=True, checksum=False)
    assert nic.rings == Rings(tx=512, rx=None)


def test_a_vmk_has_a_stack_and_routes_of_its_own() -> None:
    text = (TOPOLOGIES / "vlans-and-marking.yaml").read_text()
    route = "routes: [{to: 192.168.10.0/24, via: 192.168.20.1}]"
    text = text.replace("netstack: vmotion", f"netstack: vmotion\n        {route}")
    vmk = loads(text, "f").hosts[0].vmks[0]
    assert vmk.netstack == "vmotion"
    assert vmk.routes == (StaticRoute(IPNetwork("192.168.10.0/24"), IPAddress("192.168.20.1")),)


PAIRS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda p: (p[0], p[0] + p[1]))
)


@given(PAIRS, st.integers(0, 80))
def test_merged_ranges_are_apart_and_hold_the_same_numbers(
    pairs: list[tuple[int, int]], number: int
) -> None:
    ranges = merged(pairs)
    assert holds(ranges, number) == any(first <= number <= last for first, last in pairs)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))
