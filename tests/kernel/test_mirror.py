"""Captures before and after the IOChain of an access port: it tags, untags and drops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether

from testbed.errors import KernelError
from testbed.kernel.channels import Channels
from testbed.kernel.iochain import attaching as chains
from testbed.kernel.iochain import filters as chain_filters
from testbed.kernel.iochain.cells import INCOMING, OUTGOING
from testbed.kernel.iochain.mirror import AFTER, BEFORE, mirror
from testbed.measure.capture import Captured, CaptureTest, Tap, capture
from testbed.measure.capture_filter import parse
from testbed.measure.endpoint import socket_in
from testbed.plan.policies import Chain
from testbed.plan.stages import Tag, Untag

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.needs_program("ip", "tc")]
S = 10**9
FRAME = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP() / UDP(dport=9) / bytes(64)
TAGGED = Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:02") / Dot1Q(vlan=20) / IP() / UDP()


def run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True, slots=True)
class Port:
    """A bridge with `port`, into which `vmk` is plugged, and another port, `nic` behind it."""

    netns: str

    def send(self, device: str, frame: bytes) -> None:
        path = f"/run/netns/{self.netns}"
        with socket_in(path, socket.AF_PACKET, socket.SOCK_RAW, 0) as opened:
            opened.bind((device, 0))
            opened.send(frame)

    def seen(self, direction: int, preference: int, sender: str, *frames: bytes) -> list[bytes]:
        """The UDP packets that a mirror shows of what is sent."""
        found: list[Captured] = []
        with mirror(self.netns, "port", direction, preference) as device:
            tap = Tap(f"/run/netns/{self.netns}", device, "out")
            test = CaptureTest(duration_ns=S // 2, frames=parse({"proto": "udp"}))

            def send() -> None:
                for frame in frames:
                    self.send(sender, frame)

            capture([tap], test, found.append, on_ready=send)
        return [one.data for one in found]

    def left(self) -> tuple[str, str, str]:
        """All links, and the filters of the port."""
        where = f"-n {self.netns}"
        return (
            run(f"ip -o {where} link"),
            run(f"tc {where} filter show dev port ingress"),
            run(f"tc {where} filter show dev port egress"),
        )


@pytest.fixture
def port() -> Iterator[Port]:
    name = f"tb-test-{os.getpid()}-mirror"
    with ExitStack() as stack:
        run(f"ip netns add {name}")
        stack.callback(run, f"ip netns del {name}")
        run(f"ip -n {name} link add bridge type bridge")
        for device, other in (("port", "vmk"), ("uplink", "nic")):
            run(f"ip -n {name} link add {device} type veth peer name {other}")
            run(f"ip -n {name} link set {device} master bridge")
        for device in ("bridge", "port", "vmk", "uplink", "nic"):
            run(f"ip -n {name} link set {device} up")
        yield Port(name)


@pytest.fixture
def chained(port: Port) -> Iterator[Port]:
    """The port is an access port: what comes in gets VLAN 20, what goes out loses it."""
    step = Chain(port.netns, "port", "", (Tag(20, 4),), (Untag(20),))
    with Channels() as channels:
        chains.attach(channels, step)
    yield port
    with Channels() as channels:
        chains.check(channels, step)  # captures have left it as it was


def test_before_and_after_the_chain_let_in(chained: Port) -> None:
    frame = FRAME.build()
    (before,) = chained.seen(INCOMING, BEFORE, "vmk", frame, TAGGED.build())[:1]
    assert before == frame
    (after,) = chained.seen(INCOMING, AFTER, "vmk", frame, TAGGED.build())  # one was dropped
    assert (Ether(after)[Dot1Q].vlan, Ether(after)[Dot1Q].prio) == (20, 4)
    assert Ether(after)[IP] == Ether(frame)[IP]


def test_before_and_after_the_chain_sent(chained: Port) -> None:
    both = [FRAME.build(), TAGGED.build()]
    before = chained.seen(OUTGOING, BEFORE, "nic", *both)
    assert sorted(before) == sorted(both)
    (after,) = chained.seen(OUTGOING, AFTER, "nic", *both)
    assert Dot1Q not in Ether(after)
    assert Ether(after).src == TAGGED.src


def test_a_port_without_a_chain_can_be_seen_and_is_left_as_it_was(port: Port) -> None:
    before = port.left()
    assert port.seen(INCOMING, AFTER, "vmk", FRAME.build()) == [FRAME.build()]
    assert port.left() == before
    assert "clsact" not in run(f"tc -n {port.netns} qdisc show dev port")


def test_two_captures_at_a_port_do_not_disturb_each_other(chained: Port) -> None:
    with mirror(chained.netns, "port", INCOMING, AFTER) as first:
        assert len(chained.seen(INCOMING, AFTER, "vmk", FRAME.build())) == 1
        found: list[Captured] = []
        tap = Tap(f"/run/netns/{chained.netns}", first)
        capture(
            [tap], CaptureTest(count=1, duration_ns=10 * S, frames=parse({"proto": "udp"})),
            found.append, on_ready=lambda: chained.send("vmk", FRAME.build()),
        )  # fmt: skip
        assert len(found) == 1


def test_a_capture_at_a_bridge_shows_what_is_for_others(port: Port) -> None:
    """As a VM's NIC in a promiscuous port group, which is a bridge with the NIC's address."""
    found: list[Captured] = []
    tap = Tap(f"/run/netns/{port.netns}", "bridge", "in")
    test = CaptureTest(duration_ns=S // 2, frames=parse({"proto": "udp"}))
    capture([tap], test, found.append, on_ready=lambda: port.send("vmk", FRAME.build()))
    assert [one.data for one in found] == [FRAME.build()]
    assert "PROMISC" not in port.left()[0].partition("bridge:")[2].partition(">")[0]


def test_nobody_answers_what_is_only_a_copy(chained: Port) -> None:
    """The sink's kernel must not take part: an ARP request for an address of this namespace."""
    run(f"ip -n {chained.netns} addr add 10.231.9.1/24 dev lo")
    request = Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / ARP(
        psrc="10.231.9.2", pdst="10.231.9.1"
    )
    with mirror(chained.netns, "port", INCOMING, BEFORE) as device:
        found: list[Captured] = []
        capture(
            [Tap(f"/run/netns/{chained.netns}", device, "in")],
            CaptureTest(duration_ns=S // 2),
            found.append,
            on_ready=lambda: chained.send("vmk", request.build()),
        )
    assert found == []


def test_what_a_killed_capture_left_is_taken_away_by_the_next(chained: Port) -> None:
    before = chained.left()
    code = (
        "import os, sys; from testbed.kernel.iochain.mirror import *\n"
        f"with mirror({chained.netns!r}, 'port', {INCOMING}, {AFTER}):\n"
        "    os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert chained.left() != before
    assert len(chained.seen(INCOMING, AFTER, "vmk", FRAME.build())) == 1
    assert chained.left() == before


def test_a_port_that_is_not_there_is_named(port: Port) -> None:
    before = port.left()
    with (
        pytest.raises(KernelError, match="find link vmnic9 in"),
        mirror(port.netns, "vmnic9", INCOMING, AFTER),
    ):
        pass
    assert port.left() == before


def test_a_refusal_leaves_nothing(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    before = port.left()
    with Channels() as channels:
        index = channels.index(port.netns, "port")
        channels.socket(port.netns).request([chain_filters.create_clsact(index)])
    monkeypatch.setattr("testbed.kernel.iochain.mirror._CLONE_REDIRECT", 9999)
    with (
        pytest.raises(KernelError, match="load program capture"),
        mirror(port.netns, "port", INCOMING, AFTER),
    ):
        pass
    assert port.left() == before
