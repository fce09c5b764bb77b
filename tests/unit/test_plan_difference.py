"""A difference turns one plan into another, in an order that the kernel can follow."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.guest.workloads import Oltp, Ping, Writer
from testbed.plan.difference import Difference, difference, powered_off
from testbed.plan.plan import Plan, from_json, to_json
from testbed.plan.policies import Chain, Delay, DelayLine, Netem, Offloads, Shape
from testbed.plan.stages import Tag
from testbed.plan.steps import (
    Address,
    Bridge,
    DatastoreDirectory,
    End,
    Netns,
    PowerOn,
    Step,
    Veth,
)


def small_plan(
    hosts: int = 2, mtu: int = 9000, rate_bps: int = 10**10, with_vm: bool = True
) -> Plan:
    """Hosts, each with a bridge and a shaped wire to a switch; a VM on the first."""
    steps: list[Step] = [Netns("sw", "sw", "switch")]
    steps += [Netns(f"h{i}", f"h{i}", "host") for i in range(hosts)]
    steps.append(Bridge("sw", "br", 9000, ""))
    for i in range(hosts):
        steps.append(Bridge(f"h{i}", "vs", mtu, ""))
        wire = Veth(
            End(f"h{i}", "nic", mtu, "", None, "vs"), End("sw", f"p{i}", mtu, "", None, "br")
        )
        steps.append(wire)
        steps.append(Shape(f"h{i}", "nic", rate_bps, mtu, rate_bps // 8, 65536, wire.key))
        steps.append(Address(f"h{i}", "nic", f"10.0.0.{i + 1}/24", wire.key))
    if with_vm and hosts:
        steps.append(DatastoreDirectory("ds", ()))
        work = (Writer("zipf", 10**6, 4096), Oltp(500, 40960), Ping())
        steps.append(PowerOn("vm", "h0", "h0", "h0", "ds", 2**20, 1, 7, work, affinity=(0, 1)))
    return Plan("lab", tuple(steps))


PLANS = st.builds(
    small_plan,
    hosts=st.integers(0, 4),
    mtu=st.sampled_from([1500, 9000]),
    rate_bps=st.sampled_from([10**9, 10**10]),
    with_vm=st.booleans(),
)


def carried_out(old: Plan, change: Difference) -> dict[str, Step]:
    """What stands after the change, checking at every point that what is needed stands."""
    standing = old.by_key()
    for step in change.undo:
        del standing[step.key]
        assert not [s.key for s in standing.values() if step.key in s.needs]
    for before, after in change.alter:
        assert standing[before.key] == before
        standing[after.key] = after
    for step in change.do:
        assert step.key not in standing
        assert set(step.needs) <= set(standing)
        standing[step.key] = step
    return standing


@given(PLANS, PLANS)
def test_carrying_out_the_difference_makes_the_new_plan(old: Plan, new: Plan) -> None:
    assert carried_out(old, difference(old, new)) == new.by_key()


@given(PLANS)
def test_no_difference_to_itself(plan: Plan) -> None:
    assert not difference(plan, plan)


@given(PLANS)
def test_a_plan_survives_json(plan: Plan) -> None:
    assert from_json(to_json(plan)) == plan


def test_a_rate_is_altered_on_the_running_link() -> None:
    change = difference(small_plan(), small_plan(rate_bps=10**9))
    assert not change.undo
    assert not change.do
    assert len(change.alter) == 2


def test_policies_are_altered_on_the_running_link() -> None:
    one, other = (
        Plan(
            "lab",
            (
                *small_plan().steps,
                Chain("h0", "nic", "link h0/nic", (Tag(vid),), ()),
                Offloads("h0", "nic", "link h0/nic", segmentation=vid == 5),
                Netem("sw", "p0", "link h0/nic", vid * 10**6, 0, 1000),
                DelayLine("sw", "a - b", ("p0", "p1"), (Delay(vid), Delay(vid))),
            ),
        )
        for vid in (5, 6)
    )
    change = difference(one, other)
    assert not change.undo
    assert not change.do
    kinds = [new.kind for _, new in change.alter]
    assert kinds == ["chain", "offloads", "netem", "delay_line"]


@pytest.mark.parametrize("setting", [{"isolated": True}, {"learning": False}, {"flooding": False}])
def test_a_ports_settings_make_another_wire(setting: dict[str, Any]) -> None:
    old = small_plan()
    steps = [
        replace(s, a=replace(s.a, **setting)) if isinstance(s, Veth) and s.a.netns == "h0" else s
        for s in old.steps
    ]
    change = difference(old, Plan("lab", tuple(steps)))
    assert "veth" in [s.kind for s in change.undo]
    assert "veth" in [s.kind for s in change.do]
    assert not change.alter


def test_an_mtu_is_altered_on_the_running_links() -> None:
    change = difference(small_plan(), small_plan(mtu=1500))
    assert not change.undo
    assert not change.do
    assert [new.kind for _, new in change.alter] == ["bridge", "veth", "shape"] * 2


def test_a_new_host_leaves_the_rest_alone() -> None:
    change = difference(small_plan(hosts=2), small_plan(hosts=3))
    assert not change.undo
    assert not change.alter
    assert {step.kind for step in change.do} == {"netns", "bridge", "veth", "shape", "address"}


def test_remaking_a_wire_remakes_what_stands_on_it_but_keeps_the_vm_running() -> None:
    old = small_plan()
    steps = [
        replace(s, a=replace(s.a, mac="02:00:00:00:00:01"))
        if isinstance(s, Veth) and s.a.netns == "h0"
        else s
        for s in old.steps
    ]
    change = difference(old, Plan("lab", tuple(steps)))
    assert [s.kind for s in change.undo] == ["address", "shape", "veth"]
    assert [s.kind for s in change.do] == ["veth", "shape", "address"]
    assert powered_off(change) == ()


def test_a_vm_takes_other_workloads_while_it_runs() -> None:
    old = small_plan()
    steps = [replace(s, workloads=()) if isinstance(s, PowerOn) else s for s in old.steps]
    change = difference(old, Plan("lab", tuple(steps)))
    assert (change.undo, change.do) == ((), ())
    assert [(a.key, b) for a, b in change.alter] == [("vm vm", steps[-1])]


def test_a_vm_with_other_memory_is_powered_off() -> None:
    old = small_plan()
    steps = [replace(s, memory_bytes=2**21) if isinstance(s, PowerOn) else s for s in old.steps]
    assert powered_off(difference(old, Plan("lab", tuple(steps)))) == ("vm",)
