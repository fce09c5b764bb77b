"""Which uplink a port leaves by: vSphere's policies, on paper."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.plan.teaming import choose, in_use
from testbed.topology.policy import Teaming

NICS = ("vmnic0", "vmnic1", "vmnic2", "vmnic3")
MAC = "00:50:56:00:00:05"
Policy = Literal["originating_port", "mac_hash", "explicit"]


def team(policy: Policy, active: int, standby: int = 0, *, failback: bool = True) -> Teaming:
    return Teaming(policy, NICS[:active], NICS[active : active + standby], failback)


def test_originating_port_spreads_ports_over_all_active_uplinks() -> None:
    teaming = team("originating_port", 2)
    chosen = [choose(teaming, port, MAC, NICS) for port in range(4)]
    assert chosen == ["vmnic0", "vmnic1", "vmnic0", "vmnic1"]


def test_mac_hash_follows_the_address_and_not_the_port() -> None:
    teaming = team("mac_hash", 2)
    assert {choose(teaming, port, "00:50:56:00:00:05", NICS) for port in range(8)} == {"vmnic1"}
    assert choose(teaming, 0, "00:50:56:00:00:04", NICS) == "vmnic0"


def test_explicit_order_uses_the_first_that_is_alive() -> None:
    teaming = team("explicit", 2, 1)
    assert choose(teaming, 7, MAC, NICS) == "vmnic0"
    assert choose(teaming, 7, MAC, ("vmnic1", "vmnic2")) == "vmnic1"
    assert choose(teaming, 7, MAC, ("vmnic2",)) == "vmnic2"


def test_a_standby_replaces_a_failed_active_one_and_no_more() -> None:
    teaming = team("originating_port", 2, 2)
    assert in_use(teaming, NICS) == ("vmnic0", "vmnic1")
    assert set(in_use(teaming, ("vmnic1", "vmnic2", "vmnic3"))) == {"vmnic1", "vmnic2"}


def test_the_ports_of_a_failed_uplink_go_to_its_standby_whichever_it_was() -> None:
    teaming = team("originating_port", 2, 1)
    assert [choose(teaming, port, MAC, ("vmnic1", "vmnic2")) for port in range(4)] == [
        "vmnic2", "vmnic1", "vmnic2", "vmnic1",
    ]  # fmt: skip
    assert [choose(teaming, port, MAC, ("vmnic0", "vmnic2")) for port in range(4)] == [
        "vmnic0", "vmnic2", "vmnic0", "vmnic2",
    ]  # fmt: skip


@pytest.mark.parametrize("failed", list(combinations(NICS, 2)))
def test_without_a_standby_the_ports_are_spread_over_what_is_left(failed: tuple[str, ...]) -> None:
    left = [nic for nic in NICS if nic not in failed]
    teaming = team("originating_port", 4)
    chosen = Counter(choose(teaming, port, MAC, left) for port in range(16))
    assert chosen == dict.fromkeys(left, 8)


def test_an_unused_uplink_is_never_chosen() -> None:
    assert choose(team("originating_port", 1), 3, MAC, ("vmnic3",)) is None


@pytest.mark.parametrize(("failback", "expected"), [(True, "vmnic0"), (False, "vmnic1")])
def test_failback_decides_whether_a_port_returns(failback: bool, expected: str) -> None:
    teaming = team("explicit", 1, 1, failback=failback)
    assert choose(teaming, 0, MAC, ("vmnic1",), "vmnic0") == "vmnic1"
    assert choose(teaming, 0, MAC, NICS, "vmnic1") == expected


def test_a_port_does_not_stay_on_an_uplink_that_is_unused_now() -> None:
    teaming = team("explicit", 1, 1, failback=False)
    assert choose(teaming, 0, MAC, NICS, "vmnic3") == "vmnic0"


@given(
    policy=st.sampled_from(["originating_port", "mac_hash", "explicit"]),
    active=st.integers(0, 4),
    alive=st.sets(st.sampled_from(NICS)),
    port=st.integers(0, 1000),
    present=st.sampled_from([None, *NICS]),
    failback=st.booleans(),
)
def test_the_choice_is_alive_and_in_the_team(
    *,
    policy: Policy,
    active: int,
    alive: set[str],
    port: int,
    present: str | None,
    failback: bool,
) -> None:
    teaming = team(policy, active, 4 - active, failback=failback)
    chosen = choose(teaming, port, MAC, alive, present)
    assert (chosen is None) == (not alive)
    assert chosen is None or chosen in alive


@given(alive=st.sets(st.sampled_from(NICS), min_size=1), port=st.integers(0, 40))
def test_only_the_ports_of_a_failed_uplink_move(alive: set[str], port: int) -> None:
    teaming = team("originating_port", 4)
    before = choose(teaming, port, MAC, NICS)
    if before in alive:
        assert choose(teaming, port, MAC, alive, before) == before
