"""The IOChain on the wire: what each stage does to frames, and that a wrong one is noticed."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from testbed.kernel.iochain import ports as chain_ports
from testbed.plan.stages import (
    Arrive,
    Carry,
    Classify,
    ForgedTransmits,
    Leave,
    Lose,
    MacChanges,
    Marking,
    MarkRule,
    MaxSize,
    Mirror,
    Queue,
    QueueByCos,
    QueueByDscp,
    Stage,
    Tag,
    Team,
    Untag,
)
from tests.kernel.iochain_wires import Port, Switch, frame, mac, switch

pytestmark = pytest.mark.root


# ---------------------------------------------------------------- VLANs


def access(name, vid, cos=0):
    return Port(name, (Tag(vid, cos), Team()), (Team(), Untag(vid)))


def trunk(name, *vids, untagged=False):
    ranges = Carry(tuple((vid, vid) for vid in vids), untagged)
    return Port(name, (ranges, Team()), (Team(), ranges))


def check_vlans(made: Switch, vid: int, cos: int) -> None:
    """a and b are access ports of `vid`, c of another; d is a trunk of it, e has no VLAN."""
    made.cables["a"].send(frame(1))
    assert made.seen(2) == {"b": [frame(1)], "d": [frame(1, vid=vid, cos=cos)]}
    made.cables["c"].send(frame(3))
    assert made.seen() == {}
    made.cables["d"].send(frame(4, vid=vid, cos=1), frame(4, vid=vid + 1), frame(4))
    assert made.seen(2) == {"a": [frame(4)], "b": [frame(4)]}
    made.cables["e"].send(frame(5), frame(5, vid=vid))
    assert made.seen() == {}
    made.cables["a"].send(frame(1, vid=vid), frame(1, vid=vid + 1))
    assert made.seen() == {}


@pytest.mark.parametrize(
    ("vid", "cos", "right"), [(10, 4, True), (4094, 7, True), (11, 4, False), (10, 5, False)]
)
def test_no_frame_crosses_a_vlan(vid, cos, right):
    wanted_vid = vid if right else 10
    ports = [
        access("a", vid, cos), access("b", vid), access("c", 30), trunk("d", wanted_vid, 40),
        access("e", 0),
    ]  # fmt: skip
    with switch(ports) as made:
        if right:
            check_vlans(made, vid, cos)
        else:
            with pytest.raises(AssertionError):
                check_vlans(made, 10, 4)


def test_a_trunk_carries_ranges_and_untagged_frames_only_if_told():
    ranges = Carry(((1, 1), (100, 200), (4094, 4094)), untagged=True)
    with switch([Port("a"), Port("b", outgoing=(ranges,))]) as made:
        sent = [frame(1, vid=vid) for vid in (1, 2, 99, 100, 150, 200, 201, 4093, 4094)]
        made.cables["a"].send(*sent, frame(1))
        through = [sent[at] for at in (0, 3, 4, 5, 8)]
        assert made.seen(6)["b"] == [bytes(one) for one in (*through, frame(1))]
        assert chain_ports.counters(made.host, "b").outgoing.drops == {"carry": 4}


# ---------------------------------------------------------------- security


def test_forged_transmits_and_mac_changes():
    guarded = Port("a", (ForgedTransmits(mac(1)),), (MacChanges(mac(1)),))
    with switch([guarded, Port("b")]) as made:
        made.cables["a"].send(frame(1), frame(7), frame(2, 2), frame(1, 9))
        assert made.seen(2) == {"b": [frame(1), frame(1, 9)]}
        made.cables["b"].send(frame(2, 1), frame(2, 8), frame(2), frame(2, 1, vid=5))
        wanted = [frame(2, 1), frame(2), frame(2, 1, vid=5)]
        assert made.seen(3) == {"a": [bytes(one) for one in wanted]}
        counted = chain_ports.counters(made.host, "a")
        assert counted.incoming.drops == {"forged_transmits": 2}
        assert counted.outgoing.drops == {"mac_changes": 1}
        assert (counted.incoming.packets, counted.outgoing.packets) == (2, 3)
        assert counted.incoming.bytes == 2 * 60


def test_a_promiscuous_port_sees_each_frame_of_its_vlan_once():
    def mirrored(name, vid):
        one = access(name, vid)
        return dataclasses.replace(
            one, incoming=(*one.incoming, Mirror("spy", mac(9))), flooding=False
        )

    ports = [mirrored("a", 10), mirrored("b", 10), mirrored("c", 20), access("spy", 10)]
    ports[3].flooding, ports[3].address = False, mac(9)
    with switch(ports) as made:
        made.cables["b"].send(frame(2))  # the bridge learns b
        made.cables["spy"].send(frame(9))
        made.seen(4)
        made.cables["a"].send(frame(1, 2), frame(1), frame(1, 9))
        to_b, to_all, to_spy = (bytes(one) for one in (frame(1, 2), frame(1), frame(1, 9)))
        assert made.seen(5) == {"b": [to_b, to_all], "spy": [to_b, to_all, to_spy]}
        made.cables["c"].send(frame(3, 2))
        assert made.seen() == {}
        chain_ports.unlist_address(made.host, "a", mac(9))  # as a port is closed
        made.cables["a"].send(frame(1, 2))
        assert made.seen(1) == {"b": [frame(1, 2)]}


# ---------------------------------------------------------------- marking

IPV4 = IP(src="10.0.0.1", dst="10.0.9.2", tos=0x03)
V6 = IPv6(src="fd00::1", dst="fd00:9::2", tc=0x03, fl=0xABCDE)
ETHER = Ether(src=mac(1), dst=mac(2))


def marked(rules, *frames, vid=10):
    """(CoS, TOS byte or traffic class) of frames after the chain of an access port."""
    marker = Port("a", (Tag(vid, 1), Classify(3), Marking(tuple(rules)), Team()))
    with switch([marker, Port("b")]) as made:
        made.cables["a"].send(*(ETHER / one for one in frames))
        found = [Ether(one) for one in made.seen(len(frames))["b"]]
    return [_marks(one) for one in found]


def _marks(found):
    if IP in found:
        wanted = IP(bytes(found[IP]))
        del wanted.chksum
        assert found[IP].chksum == IP(bytes(wanted)).chksum
        tos = found[IP].tos
    elif IPv6 in found:
        assert found[IPv6].fl == V6.fl
        tos = found[IPv6].tc
    else:
        tos = None
    return found[Dot1Q].prio, tos


def check_marks(rule, cos, tos):
    found = marked([rule], IPV4 / UDP(dport=9), V6 / UDP(dport=9), ARP())
    assert found == [(cos, tos), (cos, tos), (cos, None)]


@pytest.mark.parametrize("dscp", [1, 26, 46, 63])
def test_cos_and_dscp_are_on_the_wire_and_ecn_is_kept(dscp):
    check_marks(MarkRule(cos=5, dscp=dscp), 5, dscp << 2 | 3)


def test_a_wrong_mark_is_noticed():
    with pytest.raises(AssertionError):
        check_marks(MarkRule(cos=5, dscp=26), 5, 46 << 2 | 3)
    with pytest.raises(AssertionError):
        check_marks(MarkRule(cos=4, dscp=46), 5, 46 << 2 | 3)


def test_each_of_cos_and_dscp_is_set_alone():
    check_marks(MarkRule(dscp=26), 1, 26 << 2 | 3)
    check_marks(MarkRule(cos=0), 0, 3)


DISCARD = MarkRule(source="10.0.0.0/8", protocol=17, destination_ports=((9, 9),))
QUALIFIERS = [
    (MarkRule(protocol=6), IPV4 / TCP(), True),
    (MarkRule(protocol=6), IPV4 / UDP(), False),
    (MarkRule(protocol=6), V6 / TCP(), True),
    (MarkRule(protocol=1), IPV4 / ICMP(), True),
    (MarkRule(protocol=1), ARP(), False),
    (MarkRule(traffic=3), ARP(), True),
    (MarkRule(traffic=4), IPV4, False),
    (MarkRule(source="10.0.0.0/24"), IPV4, True),
    (MarkRule(source="10.0.0.1/32"), IPV4, True),
    (MarkRule(source="10.0.1.0/24"), IPV4, False),
    (MarkRule(source="0.0.0.0/0"), IPV4, True),
    (MarkRule(source="0.0.0.0/0"), V6, False),
    (MarkRule(source="192.0.0.0/2"), IP(src="203.0.113.1"), True),
    (MarkRule(destination="10.0.9.0/24"), IPV4, True),
    (MarkRule(destination="10.0.0.0/24"), IPV4, False),
    (MarkRule(source="fd00::/16"), V6, True),
    (MarkRule(source="fd00::/64"), V6, True),
    (MarkRule(source="fd00::1/128"), V6, True),
    (MarkRule(source="fd00::2/128"), V6, False),
    (MarkRule(destination="fd00:9::/32"), V6, True),
    (MarkRule(destination="fd00:8::/32"), V6, False),
    (MarkRule(destination="fd00:9::/32"), ARP(), False),
    (MarkRule(destination_ports=((8000, 8000),)), IPV4 / TCP(dport=8000), True),
    (MarkRule(destination_ports=((8000, 8000),)), IPV4 / TCP(sport=8000), False),
    (MarkRule(destination_ports=((1, 2), (8000, 8009))), V6 / UDP(dport=8009), True),
    (MarkRule(destination_ports=((1, 2), (8000, 8009))), V6 / UDP(dport=8010), False),
    (MarkRule(source_ports=((53, 53),)), IPV4 / UDP(sport=53), True),
    (MarkRule(source_ports=((0, 65535),)), IPV4 / ICMP(), False),
    (MarkRule(source_ports=((0, 65535),)), IP(flags="MF") / UDP(), False),
    (MarkRule(source_ports=((0, 65535),)), IP(frag=1) / UDP(), False),
    (MarkRule(protocol=17), IP(frag=1, proto=17) / UDP(), True),
    (DISCARD, IPV4 / UDP(dport=9), True),
    (DISCARD, IPV4 / TCP(dport=9), False),
]  # fmt: skip


def test_a_rule_marks_what_matches_all_its_qualifiers():
    """All on one switch, each rule in the last one's place."""

    def rules(*made):
        return (Tag(10, 1), Classify(3), Marking(tuple(made)), Team())

    with switch([Port("a", rules()), Port("b")]) as made:
        for rule, packet, matches in QUALIFIERS:
            made.rechain("a", incoming=rules(dataclasses.replace(rule, cos=6)))
            made.cables["a"].send(ETHER / packet)
            (found,) = made.seen(1)["b"]
            assert (Ether(found)[Dot1Q].prio == 6) == matches, (rule, packet.summary())
        assert chain_ports.counters(made.host, "a").incoming.packets == len(QUALIFIERS)


def test_the_first_rule_that_matches_marks():
    rules = [
        MarkRule(dscp=10, protocol=17),
        MarkRule(cos=3, dscp=20),
    ]
    assert marked(rules, IPV4 / UDP(), IPV4 / TCP(), ARP()) == [
        (1, 10 << 2 | 3), (3, 20 << 2 | 3), (3, None),
    ]  # fmt: skip


def test_a_frame_without_tag_gets_its_dscp_alone():
    with switch([Port("a", (Marking((MarkRule(cos=5, dscp=46),)),)), Port("b")]) as made:
        made.cables["a"].send(ETHER / IPV4 / UDP())
        (found,) = made.seen(1)["b"]
        assert Dot1Q not in Ether(found)
        assert Ether(found)[IP].tos == 46 << 2 | 3


# ---------------------------------------------------------------- the verifier

EVERY_STAGE = (
    Lose(1), Tag(10, 4), Carry(((1, 5), (10, 10)), untagged=True), ForgedTransmits(mac(1)),
    Classify(3, 12), Marking((DISCARD, MarkRule(cos=1, dscp=9, source="fd00::/65"))), Team(),
    Mirror("b", mac(2)), Arrive(1, reflections=True), Leave(1), MacChanges(mac(1)), Queue(),
    QueueByCos((0, 1, 2, 3, 0, 0, 5, 5)), QueueByDscp(tuple(n % 8 for n in range(64))),
    MaxSize(1500), Untag(10),
)  # fmt: skip


def test_the_kernel_accepts_every_stage_alone_and_all_of_them_together():
    assert {type(one) for one in EVERY_STAGE} == set(get_args(Stage))
    with switch([Port("a", EVERY_STAGE, EVERY_STAGE), Port("b")]) as made:
        for stage in EVERY_STAGE:
            made.rechain("a", incoming=(stage,), outgoing=(stage,))


def test_the_kernel_accepts_a_hundred_rules():
    rules = tuple(
        MarkRule(cos=n % 8, dscp=n % 64, source=f"10.{n}.0.0/16", destination_ports=((n, n + 9),))
        for n in range(100)
    )
    packet = IP(src="10.99.0.1", dst="10.0.0.1") / UDP(dport=108)
    assert marked(rules, packet) == [(99 % 8, (99 % 64) << 2)]
