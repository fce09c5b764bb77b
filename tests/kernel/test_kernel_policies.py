"""What decides about frames on a link: all or nothing, read back, changed in place, taken back."""

from __future__ import annotations

import socket
import statistics
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from testbed.errors import KernelError
from testbed.kernel import builder, netns, readback
from testbed.kernel.alteration import alter
from testbed.kernel.htb_change import RunningShape
from testbed.kernel.iochain import ports as chain_ports
from testbed.kernel.link_state import set_link_state
from testbed.kernel.port import PortSwitch
from testbed.kernel.undo import remove
from testbed.kernel.watch import LinkWatch
from testbed.plan.policies import Chain, Netem, Offloads, Shape, TrafficClass
from testbed.plan.stages import Arrive, Classify, Leave, Lose, Queue, Tag, Team, Untag
from testbed.plan.steps import Address, Bridge, End, Netns, Veth

pytestmark = pytest.mark.root

NO_IPV6 = ("net/ipv6/conf/default/disable_ipv6", "1")
HOST, TOR, VM = "tb-pol.host", "tb-pol.tor", "tb-pol.vm"
MAC = "00:50:56:00:00:2a"
LINK = 123_000_000


def base():
    """A host with a virtual switch, an uplink, a vmk and a VM whose port is closed."""
    uplink = End(HOST, "vmnic0", 1500, "", None, "sw", isolated=True, learning=False)
    port = {"master": "sw", "flooding": False}
    return [
        Netns(TOR, "tor", "switch", (NO_IPV6,)),
        Netns(HOST, "host", "host", (NO_IPV6,)),
        Netns(VM, "vm", "vm", (NO_IPV6,)),
        Bridge(TOR, "tor", 1500, ""),
        Bridge(HOST, "sw", 1500, "", remembers=True),
        Veth(uplink, End(TOR, "host-vmnic0", 1500, "", None, "tor")),
        Veth(End(HOST, "vmk", 1500, ""), End(HOST, "vmk-port", 1500, "", **port)),
        Veth(End(VM, "eth0", 1500, "", MAC), End(HOST, "vm", 1500, "", forwarding=False, **port)),
        Address(HOST, "vmk", "10.0.0.1/24", ""),
        Address(VM, "eth0", "10.0.0.2/24", ""),
    ]


def policies():
    """All kinds of steps on those links."""
    classes = (
        TrafficClass(0x10, "management", LINK // 10, LINK, 81920, 65536),
        TrafficClass(0x11, "vms", LINK // 10, LINK, 163840, 65536),
        TrafficClass(0x8000, "other vms", LINK // 100, LINK, 81920, 65536, major=2),
    )
    uplink, vmk, vm = f"link {HOST}/vmnic0", f"link {HOST}/vmk", f"link {VM}/eth0"
    return [
        Shape(
            HOST, "vmnic0", 10**9, 1500, LINK, 65536, uplink, None, classes, 0x11,
            queue_bytes=757_000,
        ),
        Shape(HOST, "vmk-port", 10**9, 1500, LINK // 4, 10**6, vmk, LINK),
        Offloads(HOST, "vmnic0", uplink, segmentation=False),
        Chain(HOST, "vmnic0", uplink, (Arrive(1, True),), (Leave(1), Queue()), "sw"),
        Chain(
            HOST, "vmk-port", vmk, (Tag(5), Classify(1, 0x10), Team()), (Team(), Untag(5)), "sw",
            "00:50:56:00:00:01", uplink=1,
        ),
        Chain(HOST, "vm", vm, (Tag(5), Team()), (Team(), Untag(5)), "sw", MAC, False, 1),
        Chain(TOR, "host-vmnic0", uplink, (Lose(1 << 20),), ()),
    ]  # fmt: skip


@contextmanager
def built(steps):
    builder.build(steps)
    try:
        yield
    finally:
        remove(steps)


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def state():
    """The links, qdiscs, classes, filters and offloads of the lab, and all programs."""
    found = []
    for where in (HOST, TOR, VM):
        found += [
            run("ip", "-n", where, "link").replace("UNKNOWN", ""),
            run("tc", "-n", where, "qdisc"),
        ]
        for dev in ("vmnic0", "vmk", "vmk-port", "host-vmnic0", "vm", "eth0"):
            if f" {dev}@" in found[-2]:
                found.append(run("tc", "-n", where, "class", "show", "dev", dev))
                for hook in ("ingress", "egress"):
                    found.append(run("tc", "-n", where, "filter", "show", "dev", dev, hook))
                found.append(run("ip", "netns", "exec", where, "ethtool", "-k", dev))
    return found


def test_a_lab_with_all_kinds_of_steps_is_built_and_read_back():
    steps = [*base(), *policies()]
    with built(steps):
        readback.verify(steps)
        uplink = run("bridge", "-n", HOST, "-d", "link", "show", "dev", "vmnic0")
        assert "isolated on" in uplink
        assert "learning off" in uplink
        assert " flood on" in uplink
        closed = run("bridge", "-n", HOST, "-d", "link", "show", "dev", "vm")
        assert "state listening" in closed
        assert "learning on" in closed
        assert " flood off" in closed
        assert "isolated off" in closed
        leaves = run("tc", "-n", HOST, "qdisc", "show", "dev", "vmnic0")
        for leaf in ("1:10", "2:8000"):
            assert f"parent {leaf} limit 757000b" in leaves
        assert "htb 2: parent 1:11" in leaves


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("on_a_running_lab", [True, False])
def test_a_failure_anywhere_leaves_nothing(batch, on_a_running_lab):
    class InjectedError(Exception):
        pass

    first, then = (base(), policies()) if on_a_running_lab else ([], [*base(), *policies()])
    with built(first):
        before = state() if on_a_running_lab else netns.names()
        stops = [*policies(), None] if batch == 1 else [None]
        for stop in stops:
            # The last step cannot be: it is refused when all else is there.
            bad = Address(HOST, "vmk9", "10.0.0.9/24", "")

            def fail(step, stop=stop):
                if step == stop:
                    raise InjectedError

            with pytest.raises((InjectedError, KernelError)) as caught:
                builder.build([*then, bad], batch=batch, before=fail)
            assert stop is None or caught.type is InjectedError
            assert (state() if on_a_running_lab else netns.names()) == before, stop


def test_what_is_taken_off_a_running_lab_is_gone():
    with built(base()):
        before = state()
        builder.build(policies())
        remove(policies())
        assert state() == before
        remove(policies())  # once more harms nothing
        builder.build(policies())
        readback.verify(policies())


FOUND = {
    "isolated=True, learning=False, flooding=True), the kernel has PortSettings(isolated=False":
        f"bridge -n {HOST} link set dev vmnic0 isolated off",
    "flooding=False), the kernel has": f"bridge -n {HOST} link set dev vm flood on",
    "queue of class 1:10 in bytes: wanted 757000":
        f"tc -n {HOST} qdisc change dev vmnic0 parent 1:10 bfifo limit 1000000",
    "ageing in 1/100 s of sw": f"ip -n {HOST} link set sw type bridge ageing_time 30000",
    "rate in bytes/s of class 1:10": f"tc -n {HOST} class change dev vmnic0 parent 1:1 "
        "classid 1:10 htb rate 1mbit ceil 2mbit",
    "1:10, 1:11, 2:1, 2:8000": f"tc -n {HOST} class del dev vmnic0 classid 2:8000",
    "HTB default class of vmnic0: wanted 0x8000, the kernel has no HTB":
        f"tc -n {HOST} qdisc del dev vmnic0 parent 1:11",
    "ceil in bytes/s: wanted 123000000": f"tc -n {HOST} class change dev vmk-port parent 1: "
        "classid 1:1 htb rate 246mbit burst 1000000",
    "tx-tcp-segmentation of vmnic0: wanted off": f"ip netns exec {HOST} ethtool -K vmnic0 tso on",
    "iochain_in": f"tc -n {TOR} filter del dev host-vmnic0 ingress",
}  # fmt: skip


@pytest.mark.parametrize("what", FOUND)
def test_a_thing_that_is_not_as_planned_is_found(what):
    steps = [*base(), *policies()]
    with built(steps):
        run("sh", "-c", FOUND[what])
        with pytest.raises(KernelError) as caught:
            readback.verify(steps)
        assert what in str(caught.value)


def test_chains_are_replaced_in_place_and_put_back_when_refused():
    with built([*base(), *policies()]):
        chain = next(s for s in policies() if isinstance(s, Chain) and s.dev == "vmk-port")
        other = replace(chain, incoming=(Tag(7), Team()), outgoing=(Team(), Untag(7)))
        alter(chain, other)
        readback.verify([other])
        with pytest.raises(KernelError):
            readback.verify([chain])
        with pytest.raises(KernelError):
            alter(other, replace(other, switch="no-such-switch"))
        readback.verify([other])
        alter(other, chain)
        readback.verify(policies())


def test_idle_reservations_may_be_taken_off_the_root_but_nothing_else():
    shape = policies()[0]
    kept = replace(shape, lends_idle=False)
    with built([*base(), kept]), RunningShape(kept) as running:
        running.set_rate(1, LINK // 2, LINK // 2)
        readback.verify([kept])
        with pytest.raises(KernelError, match="rate in bytes/s of class 1:1: wanted 123000000"):
            readback.verify([shape])
        running.set_rate(1, 2 * LINK)
        with pytest.raises(KernelError, match="rate in bytes/s of class 1:1"):
            readback.verify([kept])
        alter(kept, shape)
        readback.verify([shape])
        running.set_rate(0x11, LINK // 2)
        with pytest.raises(KernelError, match="rate in bytes/s of class 1:11"):
            readback.verify([kept])


@pytest.mark.needs_feature("netem")
def test_netem_is_set_read_back_altered_and_taken_off():
    wire = f"link {HOST}/vmnic0"
    step = Netem(TOR, "host-vmnic0", wire, 5 * 10**6, 0, 1000)
    with built([*base(), step]):
        readback.verify([step])
        slower = replace(step, delay_ns=150 * 10**6, jitter_ns=10**6)
        alter(step, slower)
        readback.verify([slower])
        with pytest.raises(KernelError, match="delay in ns"):
            readback.verify([step])
        remove([slower])
        with pytest.raises(KernelError, match="wanted netem"):
            readback.verify([slower])


def test_an_address_is_listed_as_long_as_its_port_is_open():
    with built([*base(), *policies()]), ExitStack() as undo:
        port = undo.enter_context(PortSwitch(HOST, "vm", MAC))
        assert MAC not in chain_ports.addresses(HOST, "vmnic0")
        took_us = []
        for turn in range(20):
            start = time.perf_counter_ns()
            (port.close if turn % 2 else port.open)()
            took_us.append((time.perf_counter_ns() - start) / 1000)
            assert (MAC in chain_ports.addresses(HOST, "vmnic0")) == (turn % 2 == 0)
        assert statistics.median(took_us) < 2000  # 30-150 us, most of it the port's
        without = undo.enter_context(PortSwitch(TOR, "host-vmnic0", MAC))
        without.close()  # a chain, but no switch's
        without.open()
        assert without.is_open()


def test_frames_pass_the_whole_chain_tagged():
    """From the vmk through its port, the switch and the uplink, out with VLAN 5."""
    steps = [s for s in [*base(), *policies()] if s.key != f"chain {TOR}/host-vmnic0"]
    with built(steps), ExitStack() as undo:
        with netns.inside(TOR):
            capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            undo.enter_context(capture)
        capture.bind(("tor", 3))
        capture.settimeout(2)
        capture.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: the tag
        with netns.inside(HOST):
            sender = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender.sendto(b"who has it?", ("10.0.0.9", 9))  # ARP, a broadcast
        frame, ancillary, _, _ = capture.recvmsg(2000, 100)
        assert frame[12:14] == b"\x08\x06"
        ((_, _, auxiliary),) = ancillary
        assert int.from_bytes(auxiliary[16:18], "little") == 5  # tp_vlan_tci


def test_a_links_carrier_is_told_when_its_peer_goes_down():
    with built(base()), LinkWatch(HOST) as watch:
        assert watch.has_carrier("vmnic0")
        assert watch.read() == []
        for up in (False, True):
            set_link_state(TOR, "host-vmnic0", up=up)
            deadline = time.monotonic() + 5
            seen = []
            while not seen and time.monotonic() < deadline:
                seen = [change for change in watch.read() if change[0] == "vmnic0"]
            assert seen == [("vmnic0", up)]
            assert watch.has_carrier("vmnic0") is up
        readback.verify([step for step in base() if not isinstance(step, Address)])
        with pytest.raises(KernelError, match="there is no such link"):
            set_link_state(TOR, "host-vmnic9", up=False)
