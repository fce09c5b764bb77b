"""Shares, reservations and limits as HTB classes: sums, bounds and the lending rule."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.plan.allocation import (
    LEAST_QUANTUM_BYTES,
    lending_rate_bytes_per_s,
    nic_classes,
    nioc_classes,
    queue_classes,
    queue_minors,
    type_minor,
    vm_minor,
)
from testbed.plan.shaping import htb_rate_bytes_per_s
from testbed.topology.policy import Allocation, NicShare, Nioc, SwitchQueues

GBIT = 10**9
LINK = htb_rate_bytes_per_s(10 * GBIT, 9000)


def nioc(**given: Allocation) -> Nioc:
    return Nioc(tuple(given.items()))


def test_shares_become_quanta_in_proportion_and_none_is_below_a_train() -> None:
    classes = nioc_classes(
        nioc(vmotion=Allocation(100), management=Allocation(50), nfs=Allocation(25)),
        10 * GBIT,
        9000,
    )
    quanta = {one.name: one.quantum_bytes for one in classes}
    assert quanta["nfs"] == LEAST_QUANTUM_BYTES
    assert quanta["vmotion"] == 4 * quanta["nfs"]
    assert quanta["management"] == 2 * quanta["nfs"]


def test_a_reservation_is_the_rate_and_a_limit_the_ceiling() -> None:
    (one,) = nioc_classes(nioc(vmotion=Allocation(100, 2 * GBIT, 8 * GBIT)), 10 * GBIT, 9000)
    assert one.minor == type_minor("vmotion")
    assert one.rate_bytes_per_s == pytest.approx(LINK * 0.2, rel=1e-6)
    assert one.ceil_bytes_per_s == pytest.approx(LINK * 0.8, rel=1e-6)


def test_a_vm_with_an_allocation_has_a_class_inside_the_vms_class() -> None:
    classes = nioc_classes(
        nioc(virtualMachine=Allocation(100, 4 * GBIT)),
        10 * GBIT,
        9000,
        [(3, "db01/eth0", Allocation(50, GBIT))],
    )
    inner = {one.minor: one for one in classes if one.major == 2}
    assert vm_minor(3) in inner
    assert min(inner) < vm_minor(0), "the first class of the second qdisc is the other VMs'"
    assert inner[vm_minor(3)].rate_bytes_per_s == pytest.approx(LINK * 0.1, rel=1e-6)


def test_guarantees_on_the_nic_may_be_the_whole_link() -> None:
    """vmotion-facts.md row 17: management 15, data 15, iSCSI 40, vMotion 30 per cent."""
    parts = {"management": 15, "virtualMachine": 15, "iSCSI": 40, "vmotion": 30}
    shares = [NicShare(name, Fraction(part, 100), Fraction(1)) for name, part in parts.items()]
    classes = nic_classes(shares, 10 * GBIT, 9000)
    rates = {one.name: one.rate_bytes_per_s for one in classes}
    assert {n: round(100 * rates[n] / LINK) for n in parts} == parts
    assert sum(rates.values()) <= LINK * 1.001


def test_switch_queues_divide_the_port_by_weight() -> None:
    queues = SwitchQueues("cos", (((4, 5), 3), ((0,), 1)))
    classes = queue_classes(queues, GBIT, 1500)
    assert classes[0].rate_bytes_per_s == pytest.approx(3 * classes[1].rate_bytes_per_s, rel=1e-3)
    minors = queue_minors(queues)
    assert len(minors) == 8
    assert minors[4] == minors[5] == classes[0].minor
    assert minors[0] == classes[1].minor
    assert minors[7] == 0


def test_an_idle_reservation_is_taken_off_and_a_used_one_is_not() -> None:
    """Row 49: with one idle and two saturated their sum is the link less the idle one."""
    reserved = [300, 400, 150]
    assert lending_rate_bytes_per_s(1000, reserved, [500.0, 500.0, 0.0]) == 850
    assert lending_rate_bytes_per_s(1000, reserved, [500.0, 500.0, 500.0]) == 1000
    assert lending_rate_bytes_per_s(1000, reserved, [0.0, 0.0, 0.0]) == 150


@given(
    reserved=st.lists(st.integers(0, 10**8), min_size=1, max_size=12),
    used=st.lists(st.floats(0, 1e9), min_size=12, max_size=12),
    free=st.integers(0, 10**9),
)
def test_the_root_never_has_more_than_the_link_nor_less_than_is_free(
    reserved: list[int], used: list[float], free: int
) -> None:
    link = free + sum(reserved)
    rate = lending_rate_bytes_per_s(link, reserved, used[: len(reserved)])
    assert free <= rate <= link
