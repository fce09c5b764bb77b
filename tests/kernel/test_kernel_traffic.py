"""Frames on what is built: rates as theory has them, ports that cut and restore, RARP."""

from __future__ import annotations

import select
import socket
import statistics
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from testbed.kernel import builder, netns
from testbed.kernel.alteration import alter
from testbed.kernel.port import Announcer, PortSwitch, rarp_frame
from testbed.kernel.undo import remove
from testbed.plan.shaping import shape
from testbed.plan.steps import Address, Bridge, End, Netns, Veth

pytestmark = pytest.mark.root

NO_IPV6 = ("net/ipv6/conf/default/disable_ipv6", "1")
MAC = "00:50:56:00:00:01"


@contextmanager
def built(steps):
    builder.build(steps)
    try:
        yield
    finally:
        remove(steps)


def goodput_bps(a, b, seconds):
    """What cubic carries from one namespace to the other, after its start."""
    with ExitStack() as undo:
        with netns.inside(b):
            listener = undo.enter_context(socket.create_server(("10.0.0.2", 5001)))
        with netns.inside(a):
            sender = undo.enter_context(socket.socket())
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        sender.connect(("10.0.0.2", 5001))
        receiver = undo.enter_context(listener.accept()[0])
        done = threading.Event()

        def send():
            block = bytes(65536)
            while not done.is_set():
                sender.sendall(block)

        thread = threading.Thread(target=send)
        thread.start()
        buffer = bytearray(1 << 20)
        start = time.monotonic()
        while time.monotonic() < start + 0.3:  # the burst and slow start
            receiver.recv_into(buffer)
        start, taken = time.monotonic(), 0
        while (now := time.monotonic()) < start + seconds:
            taken += receiver.recv_into(buffer)
        done.set()
        while thread.is_alive():
            receiver.recv_into(buffer)
        thread.join()
        return taken * 8 / (now - start)


@pytest.mark.parametrize("rate_bps", [10**8, 10**9])
@pytest.mark.parametrize("mtu", [1500, 9000])
def test_a_shaped_link_carries_what_ethernet_would(rate_bps, mtu):
    # A frame takes its preamble, header, checksum and gap of the line, and carries what IPv4,
    # TCP and its timestamps leave: 94.15 and 99.04 %.
    want_bps = rate_bps * (mtu - 20 - 32) / (mtu + 8 + 14 + 4 + 12)
    a, b = "tb-kt1.a", "tb-kt1.b"
    wire = Veth(End(a, "eth0", mtu, ""), End(b, "eth0", mtu, ""))
    steps = [Netns(a, "a", "host", (NO_IPV6,)), Netns(b, "b", "host", (NO_IPV6,)), wire]
    steps += [Address(a, "eth0", "10.0.0.1/24", ""), Address(b, "eth0", "10.0.0.2/24", "")]
    steps += [shape(n, "eth0", rate_bps, mtu, wire.key) for n in (a, b)]
    # HTB that is told the nominal rate carries 1.6 % more at MTU 1500, 0.3 % at 9000.
    most = 1.012 if rate_bps == 10**8 else 1.008
    found = []
    with built(steps):
        # A busy machine can only take away, so a few tries; too much would be too much in each.
        # How near 1 Gb/s is reached, scripts/bench network judges.
        for _ in range(8):
            found.append(goodput_bps(a, b, 0.7) / want_bps)
            assert found[-1] < most
            if found[-1] > (0.98 if rate_bps == 10**8 else 0.1):
                return
    pytest.fail(f"{found} of what Ethernet carries")


def vm_and_peer(vm, host):
    """A VM whose NIC is wired to a host's switch, beside a station on that switch."""
    steps = [Netns(vm, "vm", "vm", (NO_IPV6,)), Netns(host, "host", "host", (NO_IPV6,))]
    steps += [Bridge(vm, "eth0", 1500, "", MAC), Bridge(host, "sw", 1500, "")]
    steps.append(Veth(End(vm, "w1", 1500, "", None, "eth0"), End(host, "p1", 1500, "", None, "sw")))
    steps.append(Veth(End(host, "vmk", 1500, ""), End(host, "vmk-p", 1500, "", None, "sw")))
    for n, (where, dev) in enumerate(((vm, "eth0"), (host, "vmk")), 1):
        steps.append(Address(where, dev, f"10.0.0.{n}/24", ""))
        steps.append(Address(where, dev, f"fd00::{n}/64", ""))
    return steps


class Probe:
    """Datagrams from the VM to the station and back, both ends in this process."""

    def __init__(self, undo, vm, host, family):
        addresses = ("10.0.0.1", "10.0.0.2") if family == socket.AF_INET else ("fd00::1", "fd00::2")
        self.ends = []
        for where, address in zip((vm, host), addresses, strict=True):
            with netns.inside(where):
                end = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            end.bind((address, 7))
            end.setblocking(False)
            self.ends.append(end)
        self.addresses = addresses
        self.sent = 0

    def passes(self, source, within_s):
        """The seconds until a datagram sent from now on gets through; None if none does."""
        first = self.sent
        start = time.monotonic()
        while (now := time.monotonic()) < start + within_s:
            self.sent += 1
            try:
                self.ends[source].sendto(b"%d" % self.sent, (self.addresses[1 - source], 7))
            except OSError:
                time.sleep(0.0002)
                continue
            if select.select([self.ends[1 - source]], [], [], 0.0005)[0]:
                data = self.ends[1 - source].recv(99)
                if int(data) > first:
                    return now - start
        return None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("side", ["vm", "host"])
def test_a_port_stops_and_restores_traffic_both_ways(side, family):
    vm, host = "tb-kt2.vm", "tb-kt2.host"
    where, port = (vm, "w1") if side == "vm" else (host, "p1")
    with built(vm_and_peer(vm, host)), ExitStack() as undo:
        probe = Probe(undo, vm, host, family)
        switch = undo.enter_context(PortSwitch(where, port))
        assert probe.passes(0, 2) is not None
        assert probe.passes(1, 2) is not None
        turns_us, back_s = [], []
        for outage_s in (0.005, 0.005, 0.1, 0.1, 1.2):  # linkwatch acts within 1 s
            start = time.perf_counter_ns()
            switch.close()
            turns_us.append((time.perf_counter_ns() - start) / 1000)
            assert not switch.is_open()
            assert probe.passes(0, outage_s / 2) is None
            assert probe.passes(1, outage_s / 2) is None
            start = time.perf_counter_ns()
            switch.open()
            turns_us.append((time.perf_counter_ns() - start) / 1000)
            assert switch.is_open()
            back_s.append(probe.passes(0, 3))
            assert probe.passes(1, 3) is not None
        assert statistics.median(turns_us) < 2000  # 25-150 us
        assert statistics.median(back_s) < 0.02  # 0.1-1.3 ms
        assert max(back_s) < 0.5  # not the second that a lost neighbour entry takes


def test_a_closed_port_stays_closed_whatever_happens_to_its_link():
    vm, host = "tb-kt3.vm", "tb-kt3.host"
    with built(vm_and_peer(vm, host)), PortSwitch(host, "p1") as switch:
        switch.close()
        wire = next(s for s in vm_and_peer(vm, host) if isinstance(s, Veth))
        alter(wire, wire)  # alias and flags are set anew: the kernel tells the bridge
        assert not switch.is_open()
        switch.open()
        assert switch.is_open()


def test_a_second_wire_that_starts_closed_makes_no_loop_and_takes_over():
    vm, one, two, tor = (f"tb-kt4.{name}" for name in ("vm", "one", "two", "tor"))
    steps = vm_and_peer(vm, one)
    steps += [Netns(n, n, "host", (NO_IPV6,)) for n in (two, tor)]
    steps += [Bridge(two, "sw", 1500, ""), Bridge(tor, "sw", 1500, "")]
    steps += [
        Veth(End(n, "up", 1500, "", None, "sw"), End(tor, name, 1500, "", None, "sw"))
        for n, name in ((one, "one"), (two, "two"))
    ]
    wire = Veth(
        End(vm, "w2", 1500, "", None, "eth0"),
        End(two, "p2", 1500, "", None, "sw", forwarding=False),
    )
    with built(steps), ExitStack() as undo:
        probe = Probe(undo, vm, one, socket.AF_INET)
        assert probe.passes(0, 2) is not None
        builder.build([wire])
        source = undo.enter_context(PortSwitch(one, "p1"))
        destination = undo.enter_context(PortSwitch(two, "p2"))
        announcer = undo.enter_context(Announcer(vm, "eth0", MAC))
        for old, new in ((source, destination), (destination, source)):
            assert old.is_open()
            assert not new.is_open()
            assert probe.passes(0, 1) is not None
            old.close()
            assert probe.passes(0, 0.05) is None
            new.open()
            announcer.send()
            assert probe.passes(0, 1) is not None
            assert probe.passes(1, 1) is not None  # the switches know where it is
        remove([wire])
        assert probe.passes(0, 1) is not None


def test_announcements_come_from_the_nic_five_times():
    vm, host = "tb-kt5.vm", "tb-kt5.host"
    with built(vm_and_peer(vm, host)), ExitStack() as undo:
        with netns.inside(host):
            capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035))
        undo.enter_context(capture)
        capture.bind(("vmk", 0x8035))
        capture.settimeout(2)
        with Announcer(vm, "eth0", MAC) as announcer:
            start = time.monotonic()
            announcer.send()
            announcer.repeat()
            spread_s = time.monotonic() - start
        assert [capture.recv(2000) for _ in range(5)] == [rarp_frame(MAC)] * 5
        assert 0.1 <= spread_s < 1.0
