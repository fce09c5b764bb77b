"""Migrations start in the order of the queue as far as there is room, and none waits for ever."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.migration.concurrency import Limits, Move, admit, network_limit


def moves(count, source="esx01", destination="esx02", first=0):
    return [Move(f"vm{first + n}", source, destination) for n in range(count)]


@pytest.mark.parametrize("most", [1, 4, 8])
def test_a_host_takes_as_many_as_it_has_room_for(most):
    limits = Limits({"esx01": most, "esx02": 8})
    admission = admit(moves(10), [], limits)
    assert list(admission.start) == moves(10)[:most]
    assert [it.move for it in admission.waiting] == moves(10)[most:]
    count = f"{most} migration{'s' * (most > 1)}"
    assert admission.waiting[0].causes[0] == f"host esx01 has {count} already, the most"


def test_a_path_between_sites_takes_one_for_each_250_mbps():
    assert [network_limit(rate) for rate in (10**8, 10**9, 10**10)] == [1, 4, 40]


def test_both_hosts_of_a_migration_are_counted():
    limits = Limits({"esx01": 8, "esx02": 8, "esx03": 2})
    running = [Move("a", "esx01", "esx03"), Move("b", "esx03", "esx02")]
    (waiting,) = admit([Move("c", "esx01", "esx03")], running, limits).waiting
    assert waiting.causes == ("host esx03 has 2 migrations already, the most",)


def test_networks_and_datastores_have_limits_too():
    on = {"network": "vMotion", "datastores": ("shared01",)}
    queue = [Move(f"vm{n}", f"a{n}", f"b{n}", **on) for n in range(3)]
    by_network = admit(queue, [], Limits(networks={"vMotion": 2}))
    assert len(by_network.start) == 2
    assert by_network.waiting[0].causes == ("network vMotion has 2 migrations already, the most",)
    by_datastore = admit(queue, [], Limits(per_datastore=1))
    assert len(by_datastore.start) == 1
    assert "datastore shared01 has 1 migration already" in by_datastore.waiting[0].causes[0]
    queue = [Move(f"vm{n}", f"a{n}", f"b{n}", **on) for n in range(200)]
    assert len(admit(queue, [], Limits()).start) == 128


def test_a_vm_moves_once_at_a_time():
    again = Move("vm0", "esx02", "esx03")
    (waiting,) = admit([again], moves(1), Limits()).waiting
    assert waiting.causes == ("vm0 is being migrated",)
    assert admit([*moves(1), again], [], Limits()).start == (moves(1)[0],)


def test_what_has_room_overtakes_what_has_none():
    limits = Limits({"esx01": 1, "esx02": 8})
    elsewhere = Move("other", "esx02", "esx03")
    admission = admit([*moves(3, first=1), elsewhere], moves(1), limits)
    assert admission.start == (elsewhere,)
    assert len(admission.waiting) == 3


def test_the_last_room_is_kept_for_who_waits_longest():
    """What waits for esx01 would wait for ever if others always took esx02's last room."""
    limits = Limits({"esx01": 1, "esx02": 2})
    running = [Move("a", "esx01", "esx03"), Move("b", "esx02", "esx03")]
    head, other = Move("head", "esx01", "esx02"), Move("other", "esx03", "esx02")
    admission = admit([head, other], running, limits)
    assert admission.start == ()
    assert admission.waiting[1].causes == ("host esx02 keeps its last room for head",)
    assert admit([head, other], running[1:], limits).start == (head,)


@pytest.mark.parametrize(
    "wrong", [{"hosts": {"a": 0}}, {"networks": {"n": -1}}, {"per_datastore": 0}], ids=str
)
def test_a_limit_that_lets_nothing_start_is_refused(wrong):
    with pytest.raises(ValueError, match="1 or more"):
        Limits(**wrong)


HOSTS = [f"esx{n}" for n in range(5)]
named = st.builds(
    Move,
    st.integers(0, 30).map(str),
    st.sampled_from(HOSTS),
    st.sampled_from(HOSTS),
    st.sampled_from(["", "a", "b"]),
    st.lists(st.sampled_from(["x", "y"]), max_size=2, unique=True).map(tuple),
).filter(lambda move: move.source != move.destination)
limits_of_all = st.builds(
    Limits,
    st.dictionaries(st.sampled_from(HOSTS), st.integers(1, 4)),
    st.dictionaries(st.sampled_from(["a", "b"]), st.integers(1, 4)),
    st.integers(1, 6),
)


def within(running, limits):
    counts = Counter(place for move in running for place in move.needs())
    return all(limits.most(place) is None or n <= limits.most(place) for place, n in counts.items())


@given(st.lists(named, max_size=30), limits_of_all, st.randoms(use_true_random=False))
def test_limits_hold_everything_is_answered_and_all_come_to_their_turn(queue, limits, chance):
    running: list[Move] = []
    left = list(queue)
    turns = 0
    while left or running:
        admission = admit(left, running, limits)
        assert sorted([*admission.start, *(it.move for it in admission.waiting)], key=str) == (
            sorted(left, key=str)
        )
        assert all(it.causes for it in admission.waiting)
        if left and not running:
            assert admission.start[0] == left[0]  # with all the room there is, the first goes
        running += admission.start
        assert within(running, limits)
        left = [it.move for it in admission.waiting]
        running.remove(chance.choice(running))
        turns += 1
    assert turns <= len(queue)


def test_nobody_is_overtaken_for_ever():
    """Others come without end, and one that needs two full hosts at once has its turn."""
    chance = random.Random(1)
    limits = Limits({"esx0": 2, "esx1": 2})
    head = Move("head", "esx0", "esx1")
    running = [Move("a", "esx0", "esx2"), Move("b", "esx0", "esx2"), Move("c", "esx1", "esx2")]
    queue, turns = [head], 0
    while head in queue:
        turns += 1
        for host in ("esx0", "esx1"):
            queue += [Move(f"{host}-{turns}-{n}", host, "esx2") for n in range(3)]
        admission = admit(queue, running, limits)
        running += admission.start
        queue = [it.move for it in admission.waiting]
        running.remove(chance.choice(running))
    assert turns <= 4
