"""Measurements across a veth between two namespaces of the test's own."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.errors import MeasurementError
from testbed.measure import iperf, ping
from testbed.measure.endpoint import Endpoint
from testbed.measure.iperf_result import IperfTest
from testbed.measure.ping import PingTest
from testbed.measure.theory import ETHERNET_HEADER_BYTES, tcp_goodput_bps

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.needs_program("ip", "tc", "iperf3")]
MS = 10**6
MBIT = 10**6


@dataclass(frozen=True, slots=True)
class Pair:
    """Two namespaces, a and b, with `wire` in each and IPv4 and IPv6 addresses on it."""

    a: str
    b: str

    def end(self, name: str, address: str, device: str | None = "wire") -> Endpoint:
        return Endpoint(f"/run/netns/{name}", address, device)

    def ends(self, version: str) -> tuple[Endpoint, Endpoint]:
        return self.ipv4 if version == "ipv4" else self.ipv6

    @property
    def ipv4(self) -> tuple[Endpoint, Endpoint]:
        return self.end(self.a, "10.231.7.1"), self.end(self.b, "10.231.7.2")

    @property
    def ipv6(self) -> tuple[Endpoint, Endpoint]:
        return self.end(self.a, "fd00:231::1"), self.end(self.b, "fd00:231::2")


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


def answers(ends: tuple[Endpoint, Endpoint], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            ping.measure(*ends, PingTest(count=1, timeout_ns=1500 * MS))  # solicited each second
        except MeasurementError:
            assert time.monotonic() < deadline
        else:
            return


@pytest.fixture
def pair() -> Iterator[Pair]:
    names = [f"tb-test-{os.getpid()}-{end}" for end in "ab"]
    with ExitStack() as stack:
        for name in names:
            run(f"ip netns add {name}")
            stack.callback(run, f"ip netns del {name}")
        a, b = names
        run(f"ip link add wire netns {a} mtu 1500 type veth peer name wire netns {b} mtu 1500")
        for number, name in enumerate(names, 1):
            run(f"ip -n {name} addr add 10.231.7.{number}/24 dev wire")
            run(f"ip -n {name} addr add fd00:231::{number}/64 dev wire nodad")
            run(f"ip -n {name} link set wire up")
        made = Pair(a, b)
        answers(made.ipv6)  # IPv6 begins when the kernel's link watch has seen the carrier
        yield made


def no_iperf3_left() -> bool:
    own = str(os.getpid())
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if "Name:\tiperf3" in text and f"PPid:\t{own}\n" in text:
            return False
    return True


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_ping_at_one_millisecond(pair: Pair, version: str) -> None:
    began = time.monotonic_ns()
    result = ping.measure(*pair.ends(version), PingTest(count=200, interval_ns=MS))
    assert (result.sent, result.received, result.lost) == (200, 200, 0)
    assert result.duplicates == 0
    assert result.median_ns < MS  # a veth takes some 10 us
    assert result.rtt.at_ns[0] >= began
    gaps = [b - a for a, b in pairwise(result.rtt.at_ns)]
    assert MS * 0.9 <= sorted(gaps)[100] < 10 * MS


def test_ping_counts_what_a_shaped_link_delays(pair: Pair) -> None:
    """1 Mbit/s serialises 1042 bytes of frame in 8.3 ms."""
    run(f"ip netns exec {pair.b} tc qdisc add dev wire root handle 1: htb default 1")
    run(
        f"ip netns exec {pair.b} tc class add dev wire parent 1: classid 1:1 "
        "htb rate 1mbit ceil 1mbit burst 1100 cburst 1100"
    )
    result = ping.measure(
        *pair.ipv4, PingTest(count=40, interval_ns=4 * MS, payload_bytes=1000, timeout_ns=5 * 10**9)
    )
    assert result.lost == 0
    last = result.rtt.values[-1]  # 40 frames of 8.3 ms, sent within 160 ms
    assert 0.5 * 170 * MS < last < 10 * 170 * MS


def test_ping_sees_how_long_the_link_was_down(pair: Pair) -> None:
    stop = threading.Event()

    def cut() -> None:
        time.sleep(0.3)
        run(f"ip -n {pair.b} link set wire down")
        time.sleep(0.4)
        run(f"ip -n {pair.b} link set wire up")
        time.sleep(0.5)
        stop.set()

    thread = threading.Thread(target=cut)
    thread.start()
    result = ping.measure(*pair.ipv4, PingTest(count=None, interval_ns=5 * MS), stop)
    thread.join()
    assert result.sent == result.received + result.late + result.lost
    assert 0 < result.lost < result.sent
    assert 350 * MS < result.outage_ns < 4000 * MS
    assert len(result.lost_at_ns) == result.lost


@pytest.mark.parametrize(("version", "largest"), [("ipv4", 1472), ("ipv6", 1452)])
def test_without_fragments_the_mtu_is_the_limit(pair: Pair, version: str, largest: int) -> None:
    def send(size: int, *, whole: bool) -> int:
        test = PingTest(count=3, interval_ns=MS, payload_bytes=size, dont_fragment=whole)
        return ping.measure(*pair.ends(version), test).received

    assert send(largest, whole=True) == 3
    with pytest.raises(MeasurementError, match="message too long: 1501 bytes"):
        send(largest + 1, whole=True)
    assert send(largest + 1, whole=False) == 3


def test_ping_names_what_is_wrong(pair: Pair) -> None:
    a, b = pair.ipv4
    quick = PingTest(count=3, interval_ns=MS, timeout_ns=50 * MS)
    with pytest.raises(MeasurementError, match="Network is unreachable"):
        ping.measure(pair.end(pair.a, "10.231.7.1", None), pair.end(pair.b, "10.99.0.1"), quick)
    with pytest.raises(MeasurementError, match="none of 3 echoes was answered"):
        ping.measure(a, pair.end(pair.b, "10.231.7.99"), quick)
    with pytest.raises(MeasurementError, match="No such device"):
        ping.measure(pair.end(pair.a, a.address, "nothing"), b, quick)
    with pytest.raises(MeasurementError, match="No such file"):
        ping.measure(pair.end("tb-test-absent", a.address), b, quick)
    with pytest.raises(MeasurementError, match="one version"):
        ping.measure(a, pair.ipv6[1], quick)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_iperf_reads_what_theory_says_of_a_shaped_link(pair: Pair, version: str) -> None:
    run(f"ip netns exec {pair.a} tc qdisc add dev wire root handle 1: htb default 1")
    run(
        f"ip netns exec {pair.a} tc class add dev wire parent 1: classid 1:1 "
        "htb rate 100mbit ceil 100mbit burst 64k cburst 64k quantum 65536"
    )
    result = iperf.measure(*pair.ends(version), IperfTest(duration_s=3))
    theory = tcp_goodput_bps(100 * MBIT, 1500, int(version[-1]), ETHERNET_HEADER_BYTES)
    assert 0.1 * theory < result.received_bps < 1.02 * theory
    assert result.congestion_control == "cubic"
    assert result.clock_error_ns < 10**9
    assert no_iperf3_left()


def test_iperf_directions_streams_and_udp(pair: Pair) -> None:
    a, b = pair.ipv4
    back = iperf.measure(a, b, IperfTest(volume_bytes=20_000_000, streams=2, reverse=True))
    assert (back.sender, back.receiver, back.streams) == (b.address, a.address, 2)
    assert back.sent_bytes >= 20_000_000
    udp = iperf.measure(a, b, IperfTest(duration_s=1, udp_rate_bps=5 * MBIT, block_bytes=1000))
    assert 0.5e6 < udp.received_bps < 5.5e6
    assert 62 < udp.packets < 688


def test_iperf_says_why_there_is_no_result(pair: Pair) -> None:
    a, b = pair.ipv4
    short = IperfTest(duration_s=1)
    with pytest.raises(MeasurementError, match=r"server ended: .*annot assign requested address"):
        iperf.measure(a, pair.end(pair.b, "10.231.7.99"), short)
    with pytest.raises(MeasurementError, match=r"server ended: .*tb-test-absent"):
        iperf.measure(a, pair.end("tb-test-absent", b.address), short)
    with pytest.raises(MeasurementError, match=r"unable to connect|TCP_CONGESTION|not supported"):
        iperf.measure(a, b, IperfTest(duration_s=1, congestion_control="nonsense"))
    run(f"ip -n {pair.b} link set wire down")
    with pytest.raises(MeasurementError, match="unable to connect"):
        iperf.measure(a, pair.end(pair.b, b.address, None), short)
    assert no_iperf3_left()


def test_iperf_never_takes_another_server_for_its_own(pair: Pair) -> None:
    a, b = pair.ipv4
    command = ["nsenter", f"--net={b.netns_path}", "iperf3", "-s", "-B", b.address, "--forceflush"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            while b"listening" not in (line := other.stdout.readline()):
                assert line, "the other server ended"
            with pytest.raises(MeasurementError, match="Address already in use"):
                iperf.measure(a, b, IperfTest(duration_s=1))
            assert iperf.measure(a, b, IperfTest(volume_bytes=10**6, port=5202)).sent_bytes >= 10**6
        finally:
            other.kill()


def test_a_link_that_goes_down_ends_the_run_in_its_time(pair: Pair) -> None:
    thread = threading.Timer(0.5, run, [f"ip -n {pair.b} link set wire down"])
    thread.start()
    began = time.monotonic()
    with pytest.raises(MeasurementError, match=r"not done within 2\.5 s"):
        iperf.measure(*pair.ipv4, IperfTest(duration_s=1, timeout_s=2.5))
    assert time.monotonic() - began < 25
    thread.join()
    assert no_iperf3_left()
