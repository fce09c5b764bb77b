"""The IOChain's teaming, queues, sizes and loss on the wire, and its life in the kernel."""

from __future__ import annotations

import math
import socket
import struct
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from testbed.errors import KernelError
from testbed.kernel import builder, htb_facts, netns
from testbed.kernel.channels import Channels
from testbed.kernel.iochain import attaching as chains
from testbed.kernel.iochain import bpf
from testbed.kernel.iochain import ports as chain_ports
from testbed.kernel.iochain.assembler import R0, R6, assemble, compute, leave, load
from testbed.kernel.iochain.cells import Cells
from testbed.kernel.netlink import Socket
from testbed.kernel.undo import remove
from testbed.plan.policies import Chain, Shape, TrafficClass
from testbed.plan.stages import (
    LOSS_UNIT,
    Arrive,
    Classify,
    Leave,
    Lose,
    MaxSize,
    Queue,
    QueueByCos,
    QueueByDscp,
    Tag,
    Team,
    Untag,
)
from testbed.plan.steps import Address, Bridge, End, Netns, Veth
from tests.kernel.iochain_wires import (
    NO_IPV6,
    Cable,
    Port,
    chain,
    frame,
    mac,
    names,
    received,
    switch,
    veth,
)

pytestmark = pytest.mark.root


# ---------------------------------------------------------------- teaming

LOCAL = 4  # ports of the virtual switch, numbered from 1, as their MAC addresses are
OUTSIDE = 99


@contextmanager
def team(uplinks, *, reflections=True, teamed=True):
    """A virtual switch with uplinks to one physical switch, that has a station beside them.

    Port `l1` is pinned to uplink 1, `l2` to 2 and so on, over and over.
    """
    host, outside, far = names("host"), names("tor"), names("far")
    numbers = range(1, uplinks + 1)
    wires = {
        n: Veth(
            End(host, f"u{n}", 1500, "", master="br0", isolated=True, learning=False),
            End(outside, f"s{n}", 1500, "", master="br0"),
        )
        for n in numbers
    }
    locals_ = [
        Port(
            f"l{n}",
            (Tag(10), Team()),
            (*((Team(),) if teamed else ()), Untag(10)),
            uplink=(n - 1) % uplinks + 1,
            address=mac(n),
            flooding=False,
        )
        for n in range(1, LOCAL + 1)
    ]
    local_wires = [veth(host, far, port, "br0") for port in locals_]
    station = veth(outside, far, Port("x"), "br0")
    steps = (
        *(Netns(name, name, "host", NO_IPV6) for name in (host, outside, far)),
        Bridge(host, "br0", 1500, ""),
        Bridge(outside, "br0", 1500, ""),
        *wires.values(),
        *local_wires,
        station,
        *(chain(host, port, wire) for port, wire in zip(locals_, local_wires, strict=True)),
        *(
            Chain(host, f"u{n}", wire.key, (Arrive(n, reflections),), (Leave(n),), switch="br0")
            for n, wire in wires.items()
        ),
    )
    with ExitStack() as undo:
        builder.build(steps)
        undo.callback(remove, steps)
        cables = {}
        for name in (*(port.name for port in locals_), "x"):
            cable = Cable(far, f"{name}-far")
            cable.dev = name
            undo.callback(cable.socket.close)
            cables[name] = cable
        yield Team_(host, outside, cables, uplinks)


class Team_:  # noqa: N801 - Team is the stage
    def __init__(self, host, outside, cables, uplinks):
        self.host, self.outside, self.cables, self.uplinks = host, outside, cables, uplinks

    def copies(self, sent, expected):
        found = received(list(self.cables.values()), expected)
        return {dev: len(frames) for dev, frames in found.items() if frames if sent}

    def left_by(self):
        """How many frames each uplink has sent so far."""
        return [
            chain_ports.counters(self.host, f"u{n}").outgoing.packets
            for n in range(1, self.uplinks + 1)
        ]

    def learned_at(self, address):
        """The ports of the physical switch that it knows an address behind."""
        command = ["bridge", "-n", self.outside, "fdb", "show", "br", "br0"]
        table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines = [line.split() for line in table.splitlines()]
        return {line[2] for line in lines if line[0] == address}


def check_broadcasts(made: Team_) -> None:
    """Each broadcast arrives exactly once everywhere else, and leaves by its port's uplink."""
    names_ = [f"l{n}" for n in range(1, LOCAL + 1)]
    for n, name in enumerate(names_, 1):
        before = made.left_by()
        made.cables[name].send(frame(n))
        others = {one: 1 for one in (*names_, "x") if one != name}
        assert made.copies(True, len(others)) == others
        uplink = (n - 1) % made.uplinks
        left = [after - one for one, after in zip(before, made.left_by(), strict=True)]
        assert left == [int(n == uplink) for n in range(made.uplinks)]
        assert made.learned_at(mac(n)) == {f"s{uplink + 1}"}
    made.cables["x"].send(frame(OUTSIDE, vid=10))
    assert made.copies(True, LOCAL) == dict.fromkeys(names_, 1)


@pytest.mark.parametrize("uplinks", [2, 4])
def test_a_team_has_no_loop_and_no_duplicate(uplinks):
    with team(uplinks) as made:
        check_broadcasts(made)
        # Between two local ports nothing leaves, and from outside it comes by the right uplink.
        before = made.left_by()
        made.cables["l1"].send(frame(1, 2))
        assert made.copies(True, 1) == {"l2": 1}
        assert made.left_by() == before
        for n in range(1, LOCAL + 1):
            made.cables["x"].send(frame(OUTSIDE, n, vid=10))
            assert made.copies(True, 1) == {f"l{n}": 1}
        made.cables["l3"].send(frame(3, OUTSIDE))
        assert made.copies(True, 1) == {"x": 1}


@pytest.mark.parametrize("broken", [{"reflections": False}, {"teamed": False}])
def test_duplicates_in_a_broken_team_are_noticed(broken):
    with team(2, **broken) as made, pytest.raises(AssertionError):
        check_broadcasts(made)


def test_a_port_moves_to_the_uplink_that_it_is_pinned_to():
    with team(2) as made:
        made.cables["l1"].send(frame(1, OUTSIDE))
        assert made.left_by() == [1, 0]
        chain_ports.pin(made.host, "l1", 2)
        made.cables["l1"].send(frame(1))
        made.copies(True, LOCAL)
        assert made.left_by() == [1, 1]
        assert made.learned_at(mac(1)) == {"s2"}
        made.cables["x"].send(frame(OUTSIDE, 1, vid=10))
        assert made.copies(True, 1) == {"l1": 1}
        chain_ports.pin(made.host, "l1", 0)
        made.cables["l1"].send(frame(1))
        assert made.copies(True, 3) == {"l2": 1, "l3": 1, "l4": 1}
        assert made.left_by() == [1, 1]
        with pytest.raises(KernelError, match="numbered 1 to 127"):
            chain_ports.pin(made.host, "l1", 128)


def test_an_address_that_has_left_is_let_in_from_outside():
    with team(2) as made:
        everyone = {mac(n) for n in range(1, LOCAL + 1)}
        assert chain_ports.addresses(made.host, "u1") == everyone
        made.cables["x"].send(frame(1, vid=10))
        assert made.copies(True, 0) == {}
        chain_ports.unlist_address(made.host, "l3", mac(1))
        made.cables["x"].send(frame(1, vid=10))
        assert sum(made.copies(True, LOCAL).values()) == LOCAL
        chain_ports.list_address(made.host, "u2", mac(1))
        assert chain_ports.addresses(made.host, "l4") == everyone


# ---------------------------------------------------------------- loss

FRAMES = 40_000


def check_loss(probability: float, made) -> None:
    """What arrives of a fixed number is within the binomial distribution's 99.999 %."""
    for _ in range(FRAMES // 500):
        made.cables["a"].send(*[frame(1, 2)] * 500)
    arrived = len(received([made.cables["b"]])["b"])
    lost = FRAMES - arrived
    assert chain_ports.counters(made.host, "a").incoming.drops.get("lose", 0) == lost
    deviation = math.sqrt(FRAMES * probability * (1 - probability))
    assert abs(lost - FRAMES * probability) <= 4.42 * deviation


@pytest.mark.parametrize(
    ("given", "wanted", "right"),
    [(0.01, 0.01, True), (0.05, 0.05, True), (0.02, 0.01, False), (0.005, 0.01, False)],
)
def test_as_many_frames_are_lost_as_was_said(given, wanted, right):
    with switch([Port("a", (Lose(round(given * LOSS_UNIT)),)), Port("b")]) as made:
        if right:
            check_loss(wanted, made)
        else:
            with pytest.raises(AssertionError):
                check_loss(wanted, made)


def test_all_or_nothing_is_lost():
    with switch([Port("a", (Lose(LOSS_UNIT),)), Port("b"), Port("c", (Lose(0),))]) as made:
        made.cables["a"].send(*[frame(1)] * 100)
        assert made.seen() == {}
        made.cables["c"].send(*[frame(3)] * 100)
        assert len(made.seen(200)["b"]) == 100


# ---------------------------------------------------------------- sizes


def carried(stage, mtu, hop_mtu, family=4):
    """Bytes of TCP that cross a hop within half a second, of 1 MB; and the hop's counters."""
    host, a, b = names("host"), names("a"), names("b")
    wires = [
        Veth(End(host, "pa", mtu, "", master="br0"), End(a, "nic", mtu, "")),
        Veth(End(host, "pb", hop_mtu, "", master="br0"), End(b, "nic", mtu, "")),
    ]
    one, other = ("10.0.0.1", "10.0.0.2") if family == 4 else ("fd00::1", "fd00::2")
    bits = 24 if family == 4 else 64
    steps = (
        *(Netns(name, name, "host", NO_IPV6) for name in (host, a, b)),
        Bridge(host, "br0", mtu, ""),
        *wires,
        Address(a, "nic", f"{one}/{bits}", wires[0].key),
        Address(b, "nic", f"{other}/{bits}", wires[1].key),
        Chain(host, "pb", wires[1].key, (), (stage,), switch="br0"),
    )
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with ExitStack() as undo:
        builder.build(steps)
        undo.callback(remove, steps)
        with netns.inside(b):
            listener = undo.enter_context(socket.create_server((other, 5001), family=kind))
        with netns.inside(a):
            sender = undo.enter_context(socket.socket(kind))
        sender.connect((other, 5001))
        receiver = undo.enter_context(listener.accept()[0])
        sender.settimeout(0.5)
        receiver.settimeout(0.5)
        total, block = 0, bytes(1 << 16)
        try:
            for sent in range(1, 17):
                sender.sendall(block)
                while total < sent * len(block):
                    total += len(receiver.recv(len(block)))
        except TimeoutError:
            pass
        return total, chain_ports.counters(host, "pb").outgoing


@pytest.mark.parametrize("family", [4, 6])
def test_a_train_of_segments_too_long_for_the_hop_is_dropped(family):
    # Else the kernel forwards it, though not single packets that are longer than the MTU.
    total, _ = carried(MaxSize(9000), 9000, 1500, family)
    assert total > 9000
    total, counted = carried(MaxSize(1500), 9000, 1500, family)
    assert total == 0
    assert counted.drops["max_size"] > 0


@pytest.mark.parametrize("family", [4, 6])
def test_a_train_that_fits_passes_and_counts_as_its_packets(family):
    total, counted = carried(MaxSize(1500), 1500, 1500, family)
    assert total == 1 << 20
    assert counted.drops == {}
    header = 14 + 32 + (20 if family == 4 else 40)
    packets = total / (1514 - header)
    assert counted.packets == pytest.approx(packets, rel=0.1)  # ends of trains are shorter
    assert counted.bytes == pytest.approx(total + counted.packets * header, rel=0.01)


def test_single_packets_are_measured_without_their_tag():
    ports = [Port("a", (Tag(10),)), Port("b", outgoing=(MaxSize(1500),)), Port("c")]
    with switch([replace(port, mtu=9000) for port in ports], mtu=9000) as made:
        made.cables["a"].send(frame(1, size=1514), frame(1, size=1515))
        seen = made.seen(3)
        assert [len(one) for one in seen["b"]] == [1518]
        assert [len(one) for one in seen["c"]] == [1518, 1519]


# ---------------------------------------------------------------- queues


def shaped(made, port):
    """HTB with the classes 10, 20 and, for what names none, 30."""
    classes = tuple(
        TrafficClass(minor, str(minor), 10**6, 10**9, 65536, 10**6) for minor in (10, 20, 30)
    )
    wire = made.chain(port).wire
    return Shape(made.host, port, 10**10, 1500, 10**9, 10**6, wire, classes=classes, default=30)


def counted_classes(made, port, send):
    """How many packets each class of a port has sent."""
    step = shaped(made, port)
    builder.build([step])
    try:
        send()
        made.seen(1)
        with netns.inside(made.host), Socket() as opened:
            index = socket.if_nametoindex(port)
            found = htb_facts.by_minor(htb_facts.read_classes(opened, index))
        return [found[minor].sent_packets for minor in (10, 20, 30)]
    finally:
        remove([step])


def test_an_uplink_queues_by_the_class_that_the_port_noted():
    ports = [
        Port("a", (Classify(1, 10), Team()), uplink=1),
        Port("b", (Classify(2, 20), Team()), uplink=1),
        Port("c", (Team(),), uplink=1),
        Port("u", (Arrive(1),), (Leave(1), Queue())),
    ]
    with switch(ports) as made:

        def send():
            made.cables["a"].send(frame(1, 9))
            made.cables["b"].send(*[frame(2, 9)] * 2)
            made.cables["c"].send(*[frame(3, 9)] * 3)

        assert counted_classes(made, "u", send) == [1, 2, 3]


def test_a_switch_queues_by_cos():
    minors = (0, 10, 0, 0, 20, 20, 0, 10)
    with switch([Port("a"), Port("b", outgoing=(QueueByCos(minors),))]) as made:

        def send():
            made.cables["a"].send(*(frame(1, 9, vid=5, cos=cos) for cos in range(8)), frame(1, 9))

        assert counted_classes(made, "b", send) == [2, 2, 5]


def test_a_switch_queues_by_dscp():
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    minors = tuple(10 if dscp == 26 else 20 if dscp in {0, 63} else 0 for dscp in range(64))
    with switch([Port("a"), Port("b", outgoing=(QueueByDscp(minors),))]) as made:

        def send():
            ether = Ether(src=mac(1), dst=mac(9))
            for dscp in (26, 26, 0, 63, 46):
                four, six = IP(tos=dscp << 2 | 1), IPv6(tc=dscp << 2 | 1)
                made.cables["a"].send(bytes(ether / four), bytes(ether / six))
            made.cables["a"].send(frame(1, 9))

        assert counted_classes(made, "b", send) == [4, 4, 3]


def test_the_mark_does_not_reach_the_stack_of_the_same_namespace():
    """A vmk's wire has both ends in the host's namespace: marks would cross it."""
    where, wanted = names("host"), socket.SO_MARK
    receive_mark = 75  # SO_RCVMARK, Linux 6.0
    wires = [
        Veth(End(where, "pa", 1500, "", master="br0"), End(where, "vmk", 1500, "", mac=mac(1))),
        Veth(End(where, "pb", 1500, "", master="br0"), End(where, "src", 1500, "")),
    ]
    steps = (
        Netns(where, where, "host", NO_IPV6),
        Bridge(where, "br0", 1500, ""),
        *wires,
        Address(where, "vmk", "10.0.0.1/24", wires[0].key),
        Chain(where, "pa", wires[0].key, (), (Team(),), switch="br0", uplink=1),
        Chain(where, "pb", wires[1].key, (Arrive(1),), (), switch="br0"),
    )
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    with ExitStack() as undo:
        builder.build(steps)
        undo.callback(remove, steps)
        with netns.inside(where):
            opened = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        opened.bind(("10.0.0.1", 9))
        opened.settimeout(2)
        opened.setsockopt(socket.SOL_SOCKET, receive_mark, 1)
        cable = Cable(where, "src")
        undo.callback(cable.socket.close)
        packet = (
            Ether(src=mac(5), dst=mac(1)) / IP(src="10.0.0.2", dst="10.0.0.1") / UDP(dport=9) / b"x"
        )
        cable.send(bytes(packet))
        _, ancillary, _, _ = opened.recvmsg(100, 256)
        marks = [struct.unpack("=I", data)[0] for _, kind, data in ancillary if kind == wanted]
        assert marks == [0]


# ---------------------------------------------------------------- its life in the kernel


def in_channels(work):
    def away(_):
        with Channels() as channels:
            return work(channels)

    return netns.in_thread(away)


def filters(made, port):
    shown = [
        subprocess.run(
            ["tc", "-n", made.host, "filter", "show", "dev", port, way],
            check=True, capture_output=True, text=True,
        ).stdout
        for way in ("ingress", "egress")
    ]  # fmt: skip
    return ["iochain" in one for one in shown]


def test_a_replaced_chain_keeps_its_counters_its_pin_and_the_switch():
    with switch([Port("a", (Tag(10),), uplink=3), Port("b")]) as made:
        made.cables["a"].send(frame(1))
        assert made.seen(1) == {"b": [frame(1, vid=10)]}
        made.rechain("a", incoming=(Tag(20, 5),), uplink=1)
        made.cables["a"].send(frame(1))
        assert made.seen(1) == {"b": [frame(1, vid=20, cos=5)]}
        counted = chain_ports.counters(made.host, "a")
        assert (counted.incoming.packets, counted.uplink) == (2, 3)
        made.rechain("a", address=mac(7))
        assert chain_ports.addresses(made.host, "b") == {mac(7)}


def test_frames_pass_while_a_chain_is_replaced_again_and_again():
    with switch([Port("a", (Tag(10),)), Port("b")]) as made:
        for round_ in range(100):
            made.rechain("a", incoming=(Tag(10, round_ % 8),))
            made.cables["a"].send(frame(1), frame(1))
        found = made.seen(200)["b"]
        assert len(found) == 200
        assert {one[14] >> 5 for one in found} == set(range(8))


def test_check_notices_what_differs():
    with switch([Port("a", (Tag(10),), (Untag(10),), address=mac(1)), Port("b")]) as made:
        right = made.chain("a")
        in_channels(lambda channels: chains.check(channels, right))
        for wrong in (
            replace(right, incoming=(Tag(11),)),
            replace(right, outgoing=()),
            replace(right, address=mac(2)),
        ):
            with pytest.raises(KernelError, match="keep chain"):
                in_channels(lambda channels, wrong=wrong: chains.check(channels, wrong))
        command = ["tc", "-n", made.host, "filter", "del", "dev", "a", "egress"]
        subprocess.run(command, check=True)
        with pytest.raises(KernelError, match="iochain_out of a: wanted a program"):
            in_channels(lambda channels: chains.check(channels, right))


def test_a_detached_chain_leaves_nothing_and_frames_pass():
    with switch([Port("a", (Lose(LOSS_UNIT),), address=mac(1)), Port("b")]) as made:
        in_channels(lambda channels: chains.detach(channels, made.chain("a")))
        assert filters(made, "a") == [False, False]
        qdiscs = subprocess.run(
            ["tc", "-n", made.host, "qdisc", "show", "dev", "a"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert "clsact" not in qdiscs
        assert chain_ports.addresses(made.host, "b") == set()
        made.cables["a"].send(frame(1))
        assert made.copies(frame(1), 1) == {"b": 1}
        with pytest.raises(KernelError, match="it has none"):
            chain_ports.counters(made.host, "a")
        in_channels(lambda channels: chains.detach(channels, made.chain("a")))  # again


def test_of_chains_attached_together_all_or_none_are():
    with switch([Port("a", chained=False), Port("b", (Tag(5),)), Port("c", chained=False)]) as made:
        wire = made.chain("b")
        steps = [replace(wire, dev=dev) for dev in ("a", "b", "c")]
        with pytest.raises(KernelError, match=r"b in .*EEXIST"):
            in_channels(lambda channels: chains.attach_all(channels, steps))
        assert [filters(made, port) for port in "abc"] == [[False] * 2, [True] * 2, [False] * 2]


def test_cells_held_open_are_read_and_pinned():
    with switch([Port("a", (Team(),), uplink=1), Port("u", (), (Leave(2),))]) as made:
        with netns.inside(made.host), Socket() as opened:
            index = socket.if_nametoindex("a")
            cells = chain_ports.open_cells(opened, index, "a")
        with cells:
            made.cables["a"].send(frame(1))
            assert made.seen() == {}
            cells.pin(2)
            made.cables["a"].send(frame(1))
            assert made.copies(frame(1), 1) == {"u": 1}
            counted = cells.counters()
            assert (counted.incoming.packets, counted.uplink) == (2, 2)
            assert isinstance(cells, Cells)


def test_a_refused_program_shows_what_the_verifier_says():
    code = assemble([load(8, R0, R6, 0), compute(R0, "=", 0), leave()]).link({})
    with pytest.raises(KernelError, match=r"(?s)load program wrong for nowhere: .*R6 !read_ok"):
        bpf.load_program("wrong", code, "nowhere")
