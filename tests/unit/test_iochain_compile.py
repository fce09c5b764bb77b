"""The IOChain's stages compiled and run on frames, beside what their definitions say."""

from __future__ import annotations

import dataclasses
import ipaddress
import struct
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.kernel.iochain import compiling as iochain
from testbed.kernel.iochain import text as chain_text
from testbed.kernel.iochain.cells import (
    INCOMING,
    OUTGOING,
    STAGE_KINDS,
    ChainCounters,
    Direction,
    dropped_at,
    passed_at,
)
from testbed.kernel.iochain.stages import PORT, SWITCH
from testbed.plan import stages
from testbed.plan.policies import Chain
from testbed.plan.stages import ARRIVED, LOSS_UNIT, MarkRule
from tests.unit.bpf_machine import CELLS_FD, SET_FD, Frame, Machine

PASS, DROP = -1, 2
MAC, OTHER, GROUP = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", b"\1\0\x5e\0\0\1"
ONE, TWO = MAC.hex(":"), OTHER.hex(":")
EXAMPLES = (
    stages.Tag(10, 4), stages.Untag(10), stages.Carry(((1, 5), (7, 7))),
    stages.ForgedTransmits(ONE), stages.MacChanges(ONE), stages.Mirror("spy", TWO),
    stages.Marking((MarkRule(cos=5, dscp=46, protocol=6, source="10.0.0.0/8"),)),
    stages.Classify(3, 12), stages.Team(), stages.Arrive(1, reflections=True), stages.Leave(1),
    stages.Queue(), stages.QueueByCos((1,) * 8), stages.QueueByDscp((1,) * 64),
    stages.MaxSize(1500), stages.Lose(5),
)  # fmt: skip


def compiled(chain, direction=INCOMING, **mirrors):
    step = Chain("ns", "p", "wire", tuple(chain), tuple(chain))
    return iochain.program(step, direction, {PORT: CELLS_FD, SWITCH: SET_FD, **mirrors})


def frame(to=OTHER, source=MAC, kind=0x88B5, payload=bytes(46), **fields):
    return Frame(bytearray(to + source + struct.pack("!H", kind) + payload), **fields)


def ip(source="10.0.0.1", to="10.0.9.2", *, protocol=17, tos=3, ports=(5, 9), fragment=0, more=b""):
    a, b = (ipaddress.ip_address(one) for one in (source, to))
    body = struct.pack("!HH", *ports) + bytes(16) + more
    if a.version == 4:
        head = [0x45, tos, 20 + len(body), 1, fragment, 64, protocol, 0, a.packed, b.packed]
        head[7] = checksum(struct.pack("!BBHHHBBH4s4s", *head))
        return frame(kind=0x0800, payload=struct.pack("!BBHHHBBH4s4s", *head) + body)
    first = 6 << 28 | tos << 20 | 0xABCDE
    head = struct.pack("!IHBB", first, len(body), protocol, 64) + a.packed + b.packed
    return frame(kind=0x86DD, payload=head + body)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def run(chain, sent, direction=INCOMING, machine=None, **mirrors):
    return (machine or Machine()).run(compiled(chain, direction, **mirrors), sent)


def cell(machine, at):
    return int.from_bytes(machine.cells[at : at + 8], "little")


# ---------------------------------------------------------------- each kind of stage


def test_there_is_an_example_of_every_stage():
    assert {type(one) for one in EXAMPLES} == set(get_args(stages.Stage))


@pytest.mark.parametrize("stage", EXAMPLES, ids=lambda one: one.kind)
@pytest.mark.parametrize("direction", [INCOMING, OUTGOING])
def test_every_stage_can_be_shown_and_drops_only_into_its_own_cell(stage, direction):
    step = Chain("ns", "p", "wire", (stage,), (stage,))
    assert chain_text.list_program(step, direction)[-1].endswith("exit")
    machine = Machine(addresses={MAC})
    verdict = run([stage], frame(tci=99), direction, machine, spy=7)
    cells = {n for n in range(0, len(machine.cells), 8) if cell(machine, n)}
    passed = {passed_at(direction), passed_at(direction) + 8}
    assert cells == (passed if verdict == PASS else {dropped_at(direction, stage.kind)})


@given(st.integers(1, 4094), st.integers(0, 7), st.none() | st.integers(0, 0xFFFF))
def test_tag(vid, cos, tci):
    sent = frame(tci=tci)
    assert run([stages.Tag(vid, cos)], sent) == (PASS if tci is None else DROP)
    assert sent.tci == (vid | cos << 13 if tci is None else tci)


@given(st.integers(0, 4094), st.none() | st.integers(0, 0xFFFF))
def test_untag(vid, tci):
    sent = frame(tci=tci)
    wanted = tci is None if vid == 0 else tci is not None and tci & 0xFFF == vid
    assert run([stages.Untag(vid)], sent, OUTGOING) == (PASS if wanted else DROP)
    assert sent.tci == (None if wanted else tci)


FEW = st.integers(0, 9)  # so that the ranges' ends are met
RANGES = st.lists(st.tuples(FEW, FEW).map(sorted), max_size=3)


@given(RANGES, st.booleans(), st.none() | FEW | FEW.map(lambda vid: vid | 0xF000))
def test_carry(ranges, untagged, tci):
    inside = tci is not None and any(a <= tci & 0xFFF <= b for a, b in ranges)
    stage = stages.Carry(tuple(map(tuple, ranges)), untagged)
    wanted = untagged if tci is None else inside
    assert run([stage], frame(tci=tci)) == (PASS if wanted else DROP)


@pytest.mark.parametrize("last", range(6))
def test_every_byte_of_an_address_counts(last):
    near = bytearray(MAC)
    near[last] ^= 0x80
    forged, changed = stages.ForgedTransmits(ONE), stages.MacChanges(ONE)
    assert run([forged], frame(source=MAC)) == PASS
    assert run([forged], frame(source=near)) == DROP
    assert run([changed], frame(to=MAC), OUTGOING) == PASS
    assert run([changed], frame(to=near), OUTGOING) == DROP
    assert run([changed], frame(to=GROUP), OUTGOING) == PASS


def test_mirror_clones_unicast_for_others_to_an_open_port():
    mirror = [stages.Mirror("port", ONE)]
    for to, clones in ((OTHER, [7]), (MAC, []), (GROUP, []), (b"\xff" * 6, [])):
        for machine in (Machine(addresses={MAC}), Machine(addresses={OTHER})):
            sent = frame(to=to)
            assert run(mirror, sent, machine=machine, port=7) == PASS
            assert sent.clones == (clones if MAC in machine.addresses else [])


@given(st.integers(0, 15), st.integers(0, 0xFFFF), st.integers(0, 127), st.integers(0, 2**32 - 1))
def test_what_a_port_notes_in_the_mark(traffic, minor, uplink, before):
    machine, sent = Machine(), frame(mark=before)
    machine.cells[0:8] = uplink.to_bytes(8, "little")
    assert run([stages.Classify(traffic, minor), stages.Team()], sent, machine=machine) == PASS
    assert sent.mark == uplink | traffic << 8 | minor << 16
    sent = frame(mark=before)
    run([stages.Team()], sent, machine=machine)
    assert sent.mark == uplink
    sent = frame(mark=before)
    run([stages.Arrive(uplink)], sent)
    assert sent.mark == uplink | ARRIVED
    run([stages.Queue()], queued := frame(mark=minor << 16), OUTGOING)
    major = 2 if minor >= 0x8000 else 1 if minor else 0
    assert queued.priority == major << 16 | minor


@given(st.integers(0, 127), st.integers(0, 127), st.booleans(), st.integers(0, 0xFFFFFF))
def test_who_may_leave_and_who_may_enter(noted, pinned, arrived, rest):
    machine, mark = Machine(), noted | (ARRIVED if arrived else 0) | rest << 8
    machine.cells[0:8] = pinned.to_bytes(8, "little")
    leaving = run([stages.Leave(pinned)], frame(mark=mark), OUTGOING)
    assert leaving == (PASS if not arrived and noted == pinned else DROP)
    sent = frame(mark=mark)
    entering = run([stages.Team()], sent, OUTGOING, machine)
    assert entering == (PASS if not arrived or noted == pinned else DROP)
    assert sent.mark == (0 if entering == PASS else mark)


def test_reflections_are_frames_of_listed_addresses():
    machine = Machine(addresses={MAC})
    for source, verdict in ((MAC, DROP), (OTHER, PASS)):
        sent = frame(source=source)
        assert run([stages.Arrive(1, reflections=True)], sent, machine=machine) == verdict
        assert run([stages.Arrive(1)], sent, machine=machine) == PASS


MINORS = st.integers(0, 4)


@given(st.lists(MINORS, min_size=8, max_size=8), st.none() | st.integers(0, 0xFFFF))
def test_queue_by_cos(minors, tci):
    sent = frame(tci=tci, priority=5)
    run([stages.QueueByCos(tuple(minors))], sent, OUTGOING)
    minor = 0 if tci is None else minors[tci >> 13]
    assert sent.priority == (1 << 16 | minor if minor else 0)


@given(st.lists(MINORS, min_size=64, max_size=64), st.integers(0, 255), st.booleans())
def test_queue_by_dscp(minors, tos, six):
    sent = ip("fd00::1", "fd00::2", tos=tos) if six else ip(tos=tos)
    run([stages.QueueByDscp(tuple(minors))], sent, OUTGOING)
    minor = minors[tos >> 2]
    assert sent.priority == (1 << 16 | minor if minor else 0)
    other = frame(priority=5)
    run([stages.QueueByDscp(tuple(minors))], other, OUTGOING)
    assert other.priority == 0


@pytest.mark.parametrize(("size", "verdict"), [(1500, PASS), (1501, DROP)])
def test_max_size_of_single_packets_and_of_segments(size, verdict):
    stage = [stages.MaxSize(1500)]
    assert run(stage, frame(payload=bytes(size)), OUTGOING) == verdict
    for v6, head in ((False, 20), (True, 40)):
        where = {"source": "fd00::1", "to": "fd00::2"} if v6 else {}
        datagrams = ip(**where, more=bytes(9000))
        segments = ip(**where, protocol=6, more=bytes(9000))
        segments.data[14 + head + 12] = 8 << 4  # a TCP header of 32 bytes
        for sent, transport in ((datagrams, 8), (segments, 32)):
            sent.gso_segments, sent.gso_bytes = 6, size - head - transport
            assert run(stage, sent, OUTGOING) == verdict


@given(st.integers(0, LOSS_UNIT), st.integers(0, 2**32 - 1))
def test_lose(probability, random):
    machine = Machine(random=random)
    verdict = run([stages.Lose(probability)], frame(), machine=machine)
    assert verdict == (DROP if random < probability else PASS)


# ---------------------------------------------------------------- marking

ADDRESSES = ("10.0.0.1", "10.255.0.1", "192.168.3.4", "fd00::1", "fd00::ff", "fe80::1:2:3:4")
NETWORKS = ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "192.168.0.0/22", "::/0", "fd00::/64",
            "fd00::/124", "fe80::1:0:0:0/80", "fd00::1/128")  # fmt: skip
PORT_RANGES = (((9, 9),), ((0, 100),), ((1, 2), (443, 500)), ((65535, 65535),))


def mostly(value, *others):
    """A qualifier that is rarely there, or else no rule ever matches."""
    return st.sampled_from((*[value] * 2 * len(others), *others))


RULES = st.builds(
    MarkRule,
    cos=st.none() | st.integers(0, 7),
    dscp=st.none() | st.integers(0, 63),
    traffic=mostly(0, 3, 4),
    protocol=mostly(0, 6, 17, 1),
    source=mostly("", *NETWORKS),
    destination=mostly("", *NETWORKS),
    source_ports=mostly((), *PORT_RANGES),
    destination_ports=mostly((), *PORT_RANGES),
)


def matches(rule, sent):
    """The definition, in plain words; `sent` are the packet's facts, None without IP."""
    asks = rule.protocol or rule.source or rule.destination
    asks = asks or rule.source_ports or rule.destination_ports
    if rule.traffic not in {0, 3}:
        return False
    if sent is None:
        return not asks
    ported = sent["protocol"] in {6, 17, 132} and not sent["fragment"]
    source_port, port = sent["ports"]
    return (
        rule.protocol in {0, sent["protocol"]}
        and all(
            not cidr or ipaddress.ip_address(address) in ipaddress.ip_network(cidr)
            for cidr, address in ((rule.source, sent["source"]), (rule.destination, sent["to"]))
        )
        and all(
            not ranges or (ported and any(a <= number <= b for a, b in ranges))
            for ranges, number in (
                (rule.source_ports, source_port),
                (rule.destination_ports, port),
            )
        )
    )


@given(
    st.lists(RULES, min_size=1, max_size=4),
    st.sampled_from([(a, b) for a in ADDRESSES for b in ADDRESSES if (":" in a) == (":" in b)]),
    st.sampled_from((6, 17, 1, 132)),
    st.tuples(*[st.sampled_from((0, 9, 443, 65535))] * 2),
    st.integers(0, 255),
    st.sampled_from((0, 0, 0x2000, 0x0001, 0x4000)),
    st.none() | st.integers(0, 0xFFFF),
)
def test_the_first_rule_that_matches_marks(  # noqa: PLR0917 - hypothesis fills them in order
    rules, pair, protocol, ports, tos, fragment, tci
):
    fragment = 0 if ":" in pair[0] else fragment
    facts = {
        "source": pair[0], "to": pair[1], "protocol": protocol, "ports": ports,
        "fragment": fragment & 0x3FFF,
    }  # fmt: skip
    sent = ip(*pair, protocol=protocol, tos=tos, ports=ports, fragment=fragment)
    sent.tci = tci
    chain = [stages.Classify(3), stages.Marking(tuple(rules))]
    before = bytes(sent.data)
    assert run(chain, sent) == PASS
    rule = next((one for one in rules if matches(one, facts)), MarkRule())
    dscp = tos >> 2 if rule.dscp is None else rule.dscp
    wanted = ip(*pair, protocol=protocol, tos=dscp << 2 | tos & 3, ports=ports, fragment=fragment)
    assert sent.data == wanted.data
    cos = tci if tci is None or rule.cos is None else tci & 0x1FFF | rule.cos << 13
    assert sent.tci == cos
    assert len(before) == len(sent.data)


def test_a_new_cos_leaves_the_rest_of_the_tag():
    for tci in (0x0001, 0x1ABC, 0xFFFF):  # 0x1000: drop eligible
        sent = frame(tci=tci)
        run([stages.Marking((MarkRule(cos=5),))], sent)
        assert sent.tci == 5 << 13 | tci & 0x1FFF


@pytest.mark.parametrize(
    ("fragment", "marked"), [(0, True), (0x4000, True), (0x2000, False), (1, False)]
)
def test_fragments_have_no_ports(fragment, marked):
    sent = ip(fragment=fragment)
    run([stages.Marking((MarkRule(dscp=46, source_ports=((0, 65535),)),))], sent)
    assert (sent.data[15] == 46 << 2 | 3) == marked


@given(st.lists(RULES, min_size=1, max_size=4), st.integers(0, 0xFFFF))
def test_a_frame_without_ip_gets_its_cos_alone(rules, tci):
    sent = frame(tci=tci)
    before = bytes(sent.data)
    assert run([stages.Classify(3), stages.Marking(tuple(rules))], sent) == PASS
    rule = next((one for one in rules if matches(one, None)), MarkRule())
    assert sent.tci == (tci if rule.cos is None else tci & 0x1FFF | rule.cos << 13)
    assert bytes(sent.data) == before


# ---------------------------------------------------------------- the whole


def test_stages_run_in_their_order_and_the_first_to_drop_counts():
    chain = [stages.Tag(10), stages.ForgedTransmits(ONE), stages.Team()]
    for sent, kind in (
        (frame(tci=5, source=OTHER), "tag"),
        (frame(source=OTHER), "forged_transmits"),
    ):
        machine = Machine()
        assert run(chain, sent, machine=machine) == DROP
        assert cell(machine, dropped_at(INCOMING, kind)) == 1


def test_a_train_counts_as_its_packets():
    for sent, head in (
        (ip(more=bytes(9000)), 66),
        (ip("fd00::1", "fd00::2", more=bytes(9000)), 86),
    ):
        machine = Machine()
        sent.gso_segments, sent.gso_bytes = 7, 1448
        run([stages.Lose(0)], sent, machine=machine)
        assert cell(machine, passed_at(INCOMING)) == 7
        assert cell(machine, passed_at(INCOMING) + 8) == len(sent.data) + 6 * head


def test_the_layout_has_a_place_for_everything_once():
    places = [0]
    for direction in (INCOMING, OUTGOING):
        places += [passed_at(direction), passed_at(direction) + 8]
        places += [dropped_at(direction, kind) for kind in STAGE_KINDS]
    assert sorted(places) == list(range(0, 8 * len(places), 8))


def test_ports_of_a_switch_have_both_programs_and_others_what_has_stages():
    step = Chain("ns", "p", "wire", (stages.Tag(5),), ())
    assert iochain.directions_of(step) == (INCOMING,)
    assert iochain.directions_of(dataclasses.replace(step, switch="br0")) == (INCOMING, OUTGOING)
    assert run([], frame(), OUTGOING) == PASS


def test_a_chain_is_described_with_its_functions_and_drops():
    step = Chain(
        "ns", "p", "wire", (stages.Tag(10), stages.Lose(LOSS_UNIT // 100)), (stages.Untag(10),)
    )
    counters = ChainCounters(Direction(5, 300, {"lose": 2}), Direction(7, 420, {"untag": 3}), 1)
    incoming, outgoing = chain_text.describe_chain(step, counters)
    assert (incoming.packets, outgoing.bytes) == (5, 420)
    rows = [(row.text, row.functions, row.drops, row.filters) for row in incoming.stages]
    assert rows == [
        ("tag 10", ("bpf_skb_vlan_push",), 0, False),
        ("lose 1 %", ("bpf_get_prandom_u32",), 2, False),
    ]
    (row,) = outgoing.stages
    assert (row.functions, row.drops, row.filters) == (("bpf_skb_vlan_pop",), 3, True)
