"""What policies of a topology come to in the plan: chains, classes, delays, port settings."""

from __future__ import annotations

import json

import pytest

from testbed import topology as topologies
from testbed.errors import InputError
from testbed.lab.link_change import LinkChange, changed, changed_links, without
from testbed.plan import stages
from testbed.plan.allocation import type_minor, vm_minor
from testbed.plan.compile import compile_plan
from testbed.plan.plan import Plan, from_json, to_json
from testbed.plan.policies import Chain, Delay, DelayLine, Netem, Shape
from testbed.plan.steps import Address, End, Route, Veth

FILE = """\
name: t
switches: {tor-a: {mtu: 9000}, tor-b: {mtu: 9000}}
links: [{between: [tor-a, tor-b], rate: 10Gbit, rtt: 10ms, loss: 1%, vlans: [10, 20]}]
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1, uplink2]
    nioc:
      vmotion: {shares: high, reservation: 2Gbit, limit: 8Gbit}
      virtualMachine: {shares: high, reservation: 1Gbit}
    portgroups:
      vMotion:
        vlan: 20
        teaming: {policy: explicit, active: [uplink2], standby: [uplink1]}
        marking: {cos: 4, dscp: 26}
      VM-Network: {vlan: 10}
      Watch: {vlan: 10, security: {promiscuous: accept}}
hosts:
  "esx[01-02]":
    cpu: {cores: 8}
    memory: 8GiB
    nics:
      vmnic0: {switch: "tor-[a,b]", rate: 10Gbit, mtu: 9000, uplink: DSwitch/uplink1}
      vmnic1: {switch: "tor-[a,b]", rate: 10Gbit, mtu: 9000, uplink: DSwitch/uplink2}
    vmks:
      vmk1:
        portgroup: vMotion
        ip: "192.168.20.[11-12]/24"
        services: [vmotion]
        mtu: 9000
        netstack: vmotion
        gateway: 192.168.20.1
        routes: [{to: 10.1.0.0/16, via: 192.168.20.2}]
vms:
  db01:
    host: esx01
    memory: 64MiB
    vcpus: 1
    datastore: shared01
    nics:
      - portgroup: VM-Network
        ip: 192.168.10.50/24
        bandwidth: {reservation: 100Mbit, shares: high}
  sniffer:
    host: esx01
    memory: 64MiB
    vcpus: 1
    datastore: shared01
    nics: [{portgroup: Watch, ip: 192.168.10.51/24}]
"""


@pytest.fixture(scope="module")
def topology() -> topologies.Topology:
    return topologies.loads(FILE, "t.yaml")


@pytest.fixture(scope="module")
def plan(topology: topologies.Topology) -> Plan:
    return compile_plan(topology, cpus=2)


def chain(plan: Plan, dev: str, netns: str = "tb.t.esx01") -> Chain:
    found = plan.by_key()[f"chain {netns}/{dev}"]
    assert isinstance(found, Chain)
    return found


def end(plan: Plan, dev: str, netns: str = "tb.t.esx01") -> End:
    ends = (e for s in plan.steps if isinstance(s, Veth) for e in (s.a, s.b))
    return next(e for e in ends if (e.netns, e.name) == (netns, dev))


def test_a_plan_survives_json(plan: Plan) -> None:
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan


def test_every_step_stands_after_what_it_needs(plan: Plan) -> None:
    seen: set[str] = set()
    for step in plan.steps:
        assert seen.issuperset(step.needs), step.key
        seen.add(step.key)


def test_an_access_port_filters_checks_marks_and_then_chooses_the_uplink(plan: Plan) -> None:
    port = chain(plan, "vmk1-port")
    kinds = [stage.kind for stage in port.incoming]
    assert kinds == ["tag", "forged_transmits", "classify", "marking", "team", "mirror"]
    assert port.incoming[0] == stages.Tag(20)
    assert port.incoming[2] == stages.Classify(3, type_minor("vmotion"))
    assert [stage.kind for stage in port.outgoing] == ["team", "untag", "mac_changes"]
    assert port.uplink == 2, "the explicit order begins with uplink2, which is vmnic1"


def test_a_promiscuous_port_is_mirrored_to_by_all_others_and_checks_no_address(plan: Plan) -> None:
    sniffer = chain(plan, "sniffer-eth0")
    assert "mac_changes" not in [stage.kind for stage in sniffer.outgoing]
    assert "mirror" not in [stage.kind for stage in sniffer.incoming]
    for dev in ("vmnic0", "vmnic1", "db01-eth0", "vmk1-port"):
        mirrors = [s for s in chain(plan, dev).incoming if isinstance(s, stages.Mirror)]
        assert [mirror.dev for mirror in mirrors] == ["sniffer-eth0"], dev


def test_uplinks_are_isolated_and_teach_nothing_and_local_ports_get_nothing_unknown(
    plan: Plan,
) -> None:
    for uplink in ("vmnic0", "vmnic1"):
        port = end(plan, uplink)
        assert (port.isolated, port.learning, port.flooding) == (True, False, True)
        arrive = chain(plan, uplink).incoming[0]
        assert isinstance(arrive, stages.Arrive)
        assert arrive.reflections
    port = end(plan, "db01-eth0")
    assert (port.isolated, port.learning, port.flooding) == (False, True, False)


def test_once_a_vm_has_an_allocation_each_vm_has_a_class_of_its_own(plan: Plan) -> None:
    classify = {
        dev: next(s for s in chain(plan, dev).incoming if isinstance(s, stages.Classify)).minor
        for dev in ("db01-eth0", "sniffer-eth0")
    }
    assert classify == {
        "db01-eth0": vm_minor(0),
        "sniffer-eth0": vm_minor(1),
    }
    shape = plan.by_key()["shape tb.t.esx02/vmnic0"]
    assert isinstance(shape, Shape)
    weights = {one.minor: one.quantum_bytes for one in shape.classes if one.major == 2}
    assert weights[vm_minor(0)] == 2 * weights[vm_minor(1)], "high and normal shares"
    assert shape.default == type_minor("virtualMachine")
    assert not shape.lends_idle


def test_a_link_trunk_filters_at_both_ends_and_loses_where_it_is_received(plan: Plan) -> None:
    for here, there in (("tor-a", "tor-b"), ("tor-b", "tor-a")):
        port = chain(plan, there, f"tb.t.{here}")
        assert port.incoming == (
            stages.Lose(round(0.01 * 2**32)),
            stages.Carry(((10, 10), (20, 20))),
        )
        assert port.outgoing == (stages.Carry(((10, 10), (20, 20))),)


def test_a_delayed_link_is_a_wire_of_its_own_with_half_the_round_trip_each_way(plan: Plan) -> None:
    (line,) = [step for step in plan.steps if isinstance(step, DelayLine)]
    assert line.netns == "tb.t.tor-a+tor-b"
    assert line.delays == (Delay(5_000_000), Delay(5_000_000))


def test_with_netem_each_port_of_the_wire_delays_what_it_sends(
    topology: topologies.Topology,
) -> None:
    one_way = changed(topology, LinkChange(("tor-a", "tor-b"), delay_ns=1_000_000))
    (link,) = one_way.links
    steps = compile_plan(one_way, cpus=2, netem=True).steps
    assert {step.dev: step.delay_ns for step in steps if isinstance(step, Netem)} == {
        "tor-a": link.back.delay_ns,
        "tor-b": link.there.delay_ns,
    }
    assert not any(isinstance(step, DelayLine) for step in steps)


def test_directions_of_a_link_with_netem_are_not_mixed_up() -> None:
    text = FILE.replace("rtt: 10ms", "latency: {tor-a: 3ms, tor-b: 7ms}")
    steps = compile_plan(topologies.loads(text, "t.yaml"), cpus=2, netem=True).steps
    # What leaves tor-a is sent on by the wire's port at tor-b.
    delays = {step.dev: step.delay_ns for step in steps if isinstance(step, Netem)}
    assert delays == {"tor-b": 3_000_000, "tor-a": 7_000_000}


def test_a_vmotion_stack_has_routes_of_its_own_and_none_of_the_hosts(plan: Plan) -> None:
    routes = [s for s in plan.steps if isinstance(s, Route) and s.netns == "tb.t.esx01"]
    assert {(route.destination, route.via, route.table) for route in routes} == {
        ("192.168.20.0/24", None, 1001),
        ("10.1.0.0/16", "192.168.20.2", 1001),
        ("default", "192.168.20.1", 1001),
    }


def test_the_network_of_another_stack_is_not_the_hosts(plan: Plan) -> None:
    found = {s.address: s.connected for s in plan.steps if isinstance(s, Address)}
    assert found["192.168.20.11/24"] is False
    assert found["192.168.10.50/24"] is True


def test_only_a_narrow_port_checks_sizes(topology: topologies.Topology) -> None:
    narrow = changed(topology, LinkChange(("tor-a", "tor-b"), mtu=1500))
    plan = compile_plan(narrow, cpus=2)
    checking = [
        s for s in plan.steps if isinstance(s, Chain) and stages.MaxSize(1500) in s.outgoing
    ]
    assert {step.key for step in checking} == {
        "chain tb.t.tor-a/tor-b",
        "chain tb.t.tor-b/tor-a",
    }


def test_a_moved_vm_is_plugged_in_where_it_is_and_keeps_its_port_number(
    topology: topologies.Topology,
) -> None:
    here = compile_plan(topology, cpus=2)
    there = compile_plan(topology, cpus=2, placement={"db01": "esx02"})
    assert chain(here, "db01-eth0").uplink == chain(there, "db01-eth0", "tb.t.esx02").uplink
    assert "chain tb.t.esx01/db01-eth0" not in there.by_key()


def test_link_changes_add_up_in_order(topology: topologies.Topology) -> None:
    changes = [
        LinkChange(("tor-b", "tor-a"), loss=0.5),
        LinkChange(("esx01/vmnic0", "tor-a"), rate_bps=5 * 10**9),
        LinkChange(("tor-a", "tor-b"), loss=0.0),
    ]
    found = changed_links(topology, [change.to_json() for change in changes])
    assert (found.links[0].there.loss, found.links[0].back.loss) == (0.0, 0.0)
    assert found.links[0].there.delay_ns == 5_000_000
    assert [uplink.rate_bps for uplink in found.host("esx01").uplinks] == [5 * 10**9, 10**10]


def test_a_change_that_is_taken_back_leaves_the_others() -> None:
    timed, lasting = (LinkChange(("a", "b"), loss=loss).to_json() for loss in (0.1, 0.2))
    assert without((timed, lasting), timed) == (lasting,)
    assert without((timed, lasting, timed), timed) == (timed, lasting)
    assert without((lasting,), timed) == (lasting,)


def test_a_rate_below_what_is_reserved_is_refused(topology: topologies.Topology) -> None:
    """HTB keeps each class's own rate whatever the link's is: it would be overrun."""
    slow = LinkChange(("esx01/vmnic0", "tor-a"), rate_bps=3_999 * 10**6)
    with pytest.raises(InputError, match=r"3 Gbit/s are reserved .* give at least 4 Gbit/s"):
        changed(topology, slow)
    changed(topology, LinkChange(slow.ends, rate_bps=4 * 10**9))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (LinkChange(("tor-a", "tor-c"), loss=0.1), "there is no link between tor-a and tor-c"),
        (LinkChange(("esx01", "tor-a"), mtu=1500), "esx01 has several links to tor-a; name one"),
        (LinkChange(("esx01/vmnic0", "tor-a"), delay_ns=1), "belong to links between"),
        (LinkChange(("tor-a", "tor-b"), jitter_ns=6_000_000), "is more than the delay of 5 ms"),
    ],
)
def test_a_wrong_link_change_is_refused(
    topology: topologies.Topology, change: LinkChange, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        changed(topology, change)
