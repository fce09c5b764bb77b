"""ESXi's tools in a network of the test's own: host a, router r, host b; and what a capture sees.

a and b are wired to r at MTU 9000; a sends VLAN tags by itself, as nothing here has 8021q.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import PcapNgReader

from testbed.errors import InputError, MeasurementError
from testbed.measure import netcat, path_mtu
from testbed.measure.capture import Captured, CaptureTest, Tap, capture
from testbed.measure.capture_filter import parse
from testbed.measure.endpoint import Endpoint, socket_in
from testbed.measure.pcapng import Interface, PcapngWriter
from testbed.measure.ping import MessageTooLongError, PingTest, Reply, echo
from testbed.measure.source import source_address
from testbed.measure.traceroute import TraceTest, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.needs_program("ip", "sysctl")]
MS = 10**6
S = 10**9
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


@dataclass(frozen=True, slots=True)
class Chain:
    """a -- r -- b; links are called after the node at their other end."""

    a: str
    r: str
    b: str

    def a_end(self, version: int, device: str | None = None) -> Endpoint:
        return Endpoint(self.path(self.a), {4: "10.231.1.1", 6: "fd00:1::1"}[version], device)

    def b_end(self, version: int) -> Endpoint:
        return Endpoint(self.path(self.b), {4: "10.231.2.1", 6: "fd00:2::1"}[version])

    def path(self, name: str) -> str:
        return f"/run/netns/{name}"


@pytest.fixture
def chain(request: pytest.FixtureRequest) -> Iterator[Chain]:
    a, r, b = names = [f"tb-test-{os.getpid()}-{node}" for node in "arb"]
    with ExitStack() as stack:
        for name in names:
            run(f"ip netns add {name}")
            stack.callback(run, f"ip netns del {name}")
        for number, host, link in ((1, a, "a"), (2, b, "b")):
            run(f"ip link add r netns {host} mtu 9000 type veth peer name {link} netns {r}")
            run(f"ip -n {r} link set dev {link} mtu 9000")
            for where, dev, last in ((host, "r", 1), (r, link, 2)):
                run(f"ip -n {where} addr add 10.231.{number}.{last}/24 dev {dev}")
                run(f"ip -n {where} addr add fd00:{number}::{last}/64 dev {dev} nodad")
                run(f"ip -n {where} link set dev {dev} up")
        run(f"ip netns exec {r} sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for number, host in ((1, a), (2, b)):
            run(f"ip -n {host} route add default via 10.231.{number}.2 dev r")
            run(f"ip -n {host} -6 route add default via fd00:{number}::2 dev r")
        made = Chain(a, r, b)
        callspec = getattr(request.node, "callspec", None)
        version = callspec.params.get("version", 4) if callspec else 4
        wait_for(lambda: bool(pinged(made, version, PingTest(count=1))))
        yield made


def wait_for(condition: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline


def pinged(chain: Chain, version: int, test: PingTest) -> list[Reply]:
    replies: list[Reply] = []
    echo(chain.a_end(version), chain.b_end(version), test, on_reply=replies.append)
    return replies


# ---------------------------------------------------------------- vmkping

FULL = {4: 8972, 6: 8952}
WHOLE = PingTest(count=3, interval_ns=10 * MS, dont_fragment=True, timeout_ns=300 * MS)


@VERSIONS
def test_every_answer_is_told_with_its_size_and_ttl(chain: Chain, version: int) -> None:
    replies = pinged(chain, version, replace(WHOLE, payload_bytes=FULL[version]))
    assert [reply.number for reply in replies] == [0, 1, 2]
    assert {reply.message_bytes for reply in replies} == {FULL[version] + 8}
    assert {reply.ttl for reply in replies} == {63}  # 64, less one router
    assert all(0 < reply.rtt_ns < S for reply in replies)


@VERSIONS
def test_more_than_the_adapter_s_mtu_is_told_without_a_router(chain: Chain, version: int) -> None:
    with pytest.raises(MessageTooLongError, match="the path's MTU is 9000") as told:
        pinged(chain, version, replace(WHOLE, payload_bytes=FULL[version] + 1))
    assert (told.value.mtu, told.value.reported_by) == (9000, None)


@VERSIONS
def test_a_router_that_passes_less_says_so_and_how_much(chain: Chain, version: int) -> None:
    run(f"ip -n {chain.r} link set dev b mtu 4000")
    with pytest.raises(MessageTooLongError) as told:
        pinged(chain, version, replace(WHOLE, payload_bytes=FULL[version]))
    assert told.value.mtu == 4000
    assert told.value.reported_by == {4: "10.231.1.2", 6: "fd00:1::2"}[version]
    ends = chain.a_end(version), chain.b_end(version)
    assert path_mtu.find(*ends, FULL[version]) == 4000


@VERSIONS
def test_a_narrow_hop_that_says_nothing_is_found_by_searching(chain: Chain, version: int) -> None:
    """As a switch: the far end's link takes less than the router sends."""
    run(f"ip -n {chain.b} link set dev r mtu 4000")
    assert pinged(chain, version, replace(WHOLE, payload_bytes=FULL[version])) == []
    ends = chain.a_end(version), chain.b_end(version)
    # a veth takes an Ethernet and a VLAN header more than its MTU
    assert path_mtu.find(*ends, FULL[version]) in (4000, 4004)
    assert len(pinged(chain, version, WHOLE)) == 3


@VERSIONS
def test_no_answer_at_all_is_no_mtu(chain: Chain, version: int) -> None:
    run(f"ip -n {chain.b} link set dev r down")
    with pytest.raises(MeasurementError, match="not even small echoes"):
        path_mtu.find(chain.a_end(version), chain.b_end(version), 2000)


@VERSIONS
def test_the_source_is_the_kernel_s_choice(chain: Chain, version: int) -> None:
    a, b = chain.a_end(version), chain.b_end(version)
    assert source_address(a.netns_path, b.address) == a.address
    run(f"ip -n {chain.a} -{version} route del default")
    with pytest.raises(MeasurementError, match="Network is unreachable"):
        source_address(a.netns_path, b.address)


# ---------------------------------------------------------------- traceroute


@VERSIONS
def test_a_trace_names_each_router_and_ends_at_the_destination(chain: Chain, version: int) -> None:
    told = []
    test = TraceTest(probes=2)
    hops = trace(chain.a_end(version, "r"), chain.b_end(version), test, told.append)
    assert list(hops) == told
    assert [hop.ttl for hop in hops] == [1, 2]
    router = {4: "10.231.1.2", 6: "fd00:1::2"}[version]
    assert [probe.address for probe in hops[0].probes] == [router, router]
    assert {probe.address for probe in hops[1].probes} == {chain.b_end(version).address}
    assert [hop.last for hop in hops] == [False, True]
    assert all(0 < probe.rtt_ns < S for hop in hops for probe in hop.probes if probe.rtt_ns)


@VERSIONS
def test_a_trace_ends_where_a_router_knows_no_way(chain: Chain, version: int) -> None:
    nowhere = replace(chain.b_end(version), address={4: "10.99.0.1", 6: "fd00:99::1"}[version])
    (hop,) = trace(chain.a_end(version), nowhere, TraceTest(probes=1))
    assert [probe.mark for probe in hop.probes] == ["!N"]


def test_a_trace_waits_its_time_for_who_is_silent(chain: Chain) -> None:
    run(f"ip netns exec {chain.r} sysctl -w net.ipv4.icmp_ratemask=0")
    run(f"ip -n {chain.r} route add blackhole 10.231.2.1/32")
    began = time.monotonic()
    hops = trace(chain.a_end(4), chain.b_end(4), TraceTest(2, 2, 50 * MS))
    assert 0.9 * 4 * 0.05 < time.monotonic() - began < 10 * 4 * 0.05
    assert {probe.rtt_ns for hop in hops for probe in hop.probes} == {None}


# ---------------------------------------------------------------- nc


@VERSIONS
def test_nc_carries_both_directions_and_ends_with_them(chain: Chain, version: int) -> None:
    heard: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        connection, peer, _ = netcat.accept(listening, 10 * S)
        with connection:
            heard.append(peer.encode())
            while part := connection.recv(1 << 16):
                heard.append(part)
            connection.sendall(b"thanks")

    question, answer = os.pipe(), os.memfd_create("answer")
    with netcat.listen(chain.path(chain.b), None, 8000) as listening:
        server = threading.Thread(target=serve, args=[listening])
        server.start()
        source, destination = chain.a_end(version), chain.b_end(version).address
        with netcat.connect(source, destination, 8000, S) as connection:
            os.write(question[1], b"hello")
            os.close(question[1])
            assert netcat.exchange(connection, question[0], answer, 10 * S) == (5, 6)
        server.join()
    assert b"".join(heard) == source.address.encode() + b"hello"
    assert os.pread(answer, 100, 0) == b"thanks"
    os.close(answer)
    os.close(question[0])


def test_nc_says_why_there_is_no_connection(chain: Chain) -> None:
    a, b = chain.a_end(4), chain.b_end(4).address
    with pytest.raises(MeasurementError, match="Connection refused; nothing listens"):
        netcat.connect(a, b, 8000, S)
    run(f"ip -n {chain.r} route add blackhole 10.231.2.1/32")
    with pytest.raises(MeasurementError, match=r"timed out|Invalid argument"):
        netcat.connect(a, b, 8000, 100 * MS)
    with (
        netcat.listen(a.netns_path, a.address, 8000),
        pytest.raises(MeasurementError, match="Address already in use"),
    ):
        netcat.listen(a.netns_path, a.address, 8000)
    with (
        netcat.listen(a.netns_path, None, 8000) as listening,
        pytest.raises(MeasurementError, match="nobody connected"),
    ):
        netcat.accept(listening, 50 * MS)


# ---------------------------------------------------------------- capture

TAGGED = (
    Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    / Dot1Q(vlan=20, prio=4)
    / IP(src="10.1.1.1", dst="10.1.1.2", tos=26 << 2)
    / UDP(sport=5, dport=6)
    / bytes(100)
)


def sent(chain: Chain, frames: list[bytes]) -> None:
    with socket_in(chain.path(chain.a), socket.AF_PACKET, socket.SOCK_RAW, 0) as opened:
        opened.bind(("r", 0))
        for frame in frames:
            opened.send(frame)


def captured(tap: Tap, test: CaptureTest, during: Callable[[], None]) -> list[Captured]:
    found: list[Captured] = []
    capture([tap], test, found.append, on_ready=during)
    return found


@pytest.mark.parametrize("far", [False, True], ids=["sender", "receiver"])
def test_a_capture_keeps_tag_time_and_direction_and_opens_in_scapy(
    chain: Chain, tmp_path: Path, far: bool
) -> None:
    tap = Tap(chain.path(chain.r), "a") if far else Tap(chain.path(chain.a), "r")
    test = CaptureTest(count=2, duration_ns=10 * S, frames=parse({"vlan": 20}))
    plain = TAGGED.copy()
    plain[Dot1Q].underlayer.payload = TAGGED[IP]
    before = time.time_ns()
    frames = [TAGGED.build(), plain.build(), TAGGED.build()]
    found = captured(tap, test, lambda: sent(chain, frames))
    assert [frame.data for frame in found] == [TAGGED.build()] * 2
    assert {frame.direction for frame in found} == {"in" if far else "out"}
    assert before <= found[0].unix_ns <= found[1].unix_ns <= time.time_ns()

    file = tmp_path / "a.pcapng"
    with file.open("wb") as out:
        writer = PcapngWriter(out, "test")
        number = writer.add_interface(Interface("r/a"))
        for one in found:
            writer.packet(number, one.unix_ns, one.data, length=one.length, direction=one.direction)
    with PcapNgReader(str(file)) as reader:
        packets = list(reader)
    assert [(p[Dot1Q].vlan, p[Dot1Q].prio, p[IP].tos >> 2) for p in packets] == [(20, 4, 26)] * 2
    assert [int(p.time * 10**9) for p in packets] == [one.unix_ns for one in found]


def test_a_snapshot_is_short_and_its_frame_whole(chain: Chain) -> None:
    frame = TAGGED.build()
    tap = Tap(chain.path(chain.r), "a", "in")
    for frames in (parse({}), parse({"dstport": 6})):  # the port is beyond the snapshot
        test = CaptureTest(count=1, duration_ns=10 * S, snaplen_bytes=20, frames=frames)
        (found,) = captured(tap, test, lambda: sent(chain, [frame]))
        assert len(found.data) == 20
        assert found.data == frame[:20]
        assert found.length == len(frame)


def test_a_direction_alone_is_captured(chain: Chain) -> None:
    test = CaptureTest(count=6, duration_ns=S, frames=parse({"proto": "icmp"}))

    def ping() -> None:
        assert len(pinged(chain, 4, WHOLE)) == 3

    for direction, number in (("in", 3), ("out", 3), (None, 6)):
        found = captured(Tap(chain.path(chain.r), "a", direction), test, ping)
        assert len(found) == number
        assert {one.direction for one in found} == ({direction} if direction else {"in", "out"})


def test_a_capture_ends_by_its_time_or_event_and_counts(chain: Chain) -> None:
    tap = Tap(chain.path(chain.r), "a")
    began = time.monotonic()
    capture([tap], CaptureTest(duration_ns=200 * MS), lambda _: None)
    assert 0.2 <= time.monotonic() - began < 2
    stop = threading.Event()
    ready = lambda: (sent(chain, [TAGGED.build()] * 50), stop.set())  # noqa: E731
    (counts,) = capture([tap], CaptureTest(), lambda _: None, stop, ready)
    assert counts.seen >= 50
    assert counts.dropped == 0
    with pytest.raises(InputError, match="without an end"):
        capture([tap], CaptureTest(), lambda _: None)


def test_a_capture_says_what_is_missing(chain: Chain) -> None:
    with pytest.raises(MeasurementError, match="No such device"):
        capture([Tap(chain.path(chain.a), "vmnic9")], CaptureTest(count=1), lambda _: None)
    with pytest.raises(MeasurementError, match=r"Network is down|No such device"):
        capture(
            [Tap(chain.path(chain.b), "r")],
            CaptureTest(count=1, duration_ns=10 * S),
            lambda _: None,
            on_ready=lambda: run(f"ip -n {chain.b} link del r"),
        )
