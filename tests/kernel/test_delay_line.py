"""A delay line on the wire: what is delayed, by how much, in which order, and its death."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from testbed.errors import KernelError
from testbed.kernel import builder, netns
from testbed.kernel.delay import line as delay_line
from testbed.kernel.delay import rules as delay_rules
from testbed.kernel.delay.lateness import DirectionStatistics, Lateness, verdict
from testbed.kernel.delay.nfqueue import Queues
from testbed.kernel.undo import remove
from testbed.plan.policies import Delay, DelayLine
from testbed.plan.shaping import shape
from testbed.plan.steps import Address, Bridge, End, Netns, Veth

pytestmark = [pytest.mark.root, pytest.mark.needs_program("iptables")]

MS = 10**6
NO_IPV6 = ("net/ipv6/conf/default/disable_ipv6", "1")
BUFFERS = tuple((f"net/ipv4/tcp_{way}mem", "4096\t131072\t134217728") for way in "rw")
NAMES = {"a": "tb-delay.a", "wire": "tb-delay.wire", "b": "tb-delay.b"}
PORTS = ("p0", "p1")
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
ETH_P_ALL = 3
SOL_PACKET, PACKET_AUXDATA = 263, 8
SO_TIMESTAMPNS = 35
MARK = b"testbed-frame-"


def steps(rate_bps=None):
    found = [Netns(NAMES[n], n, "host", (NO_IPV6, *BUFFERS)) for n in ("a", "b")]
    found += [Netns(NAMES["wire"], "wire", "wire", (NO_IPV6,))]
    found += [Bridge(NAMES["wire"], "wire", 1500, "")]
    for n, end in enumerate(("a", "b")):
        port = End(NAMES["wire"], PORTS[n], 1500, "", None, "wire")
        wire = Veth(End(NAMES[end], "eth0", 1500, "", MACS[n]), port)
        found.append(wire)
        found.append(Address(NAMES[end], "eth0", f"10.0.0.{n + 1}/24", wire.key))
        found.append(Address(NAMES[end], "eth0", f"fd00::{n + 1}/64", wire.key))
        if rate_bps:
            found.append(shape(NAMES[end], "eth0", rate_bps, 1500, wire.key))
    return found


@contextmanager
def built(steps):
    builder.build(steps)
    try:
        yield
    finally:
        remove(steps)


@pytest.fixture
def ends():
    with built(steps()):
        yield


class Line:
    """A delay line's process, and the supervisor's side of its control connection."""

    def __init__(self, there_ns, back_ns=None, *, jitter_ns=0, ports=PORTS):
        delays = (
            Delay(there_ns, jitter_ns),
            Delay(there_ns if back_ns is None else back_ns, jitter_ns),
        )
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            with suppress(BaseException):
                ours.close()
                wire = DelayLine(NAMES["wire"], "a - b", ports, delays)
                delay_line.run(theirs, wire=wire, wires_cpu=0)
            os._exit(0)
        theirs.close()
        self._words = ours.makefile("rw")
        ours.close()
        self.asked = 0
        self.first = json.loads(self._words.readline())

    def call(self, **message):
        self.asked += 1
        self._words.write(json.dumps({**message, "ask": self.asked}) + "\n")
        self._words.flush()
        answer = json.loads(self._words.readline())
        assert answer["ask"] == self.asked
        return answer

    def delays(self, there_ns, back_ns):
        self.call(command="delays", delays=[[there_ns, 0], [back_ns, 0]])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._words.close()
        os.waitpid(self.pid, 0)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


@contextmanager
def serving(*delays_ns, **more):
    with Line(*delays_ns, **more) as line:
        assert line.first == {"event": "ready"}
        yield line


def ip_frame(way, number, *, version=4, tag=None):
    """A UDP datagram as it is on the wire; `tag` is (PID, VID) of a VLAN."""
    payload = MARK + b"%06d" % number
    udp = struct.pack(">HHHH", 9, 9, 8 + len(payload), 0) + payload
    source, destination = 1 + way, 99  # a host that isn't there, so that none answers
    if version == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
        head += bytes((10, 0, 0, source, 10, 0, 0, destination))
        total = sum(struct.unpack(">10H", head))
        total = (total & 0xFFFF) + (total >> 16)
        head = head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:]
        kind = 0x0800
    else:
        head = struct.pack(">IHBB", 6 << 28, len(udp), 17, 64)
        head += b"".join(bytes((0xFD, *bytes(14), last)) for last in (source, destination))
        kind = 0x86DD
    return ethernet(way, kind, head + udp, tag)


def ethernet(way, kind, packet, tag=None):
    macs = [bytes.fromhex(mac.replace(":", "")) for mac in MACS]
    tagging = struct.pack(">HH", 0x8100, tag[0] << 13 | tag[1]) if tag else b""
    return macs[1 - way] + macs[way] + tagging + struct.pack(">H", kind) + packet


class Tap:
    """Raw sockets at both ends."""

    def __init__(self):
        self.sockets = []
        for end in ("a", "b"):
            with netns.inside(NAMES[end]):
                opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            opened.bind(("eth0", ETH_P_ALL))
            opened.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            opened.settimeout(5)
            self.sockets.append(opened)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for opened in self.sockets:
            opened.close()

    def receive(self, way):
        """When the next of our frames arrives at the far end, its number and its tag.

        The time is the kernel's (CLOCK_REALTIME): a busy machine wakes this process late.
        """
        while True:
            data, auxiliary, _, sender = self.sockets[1 - way].recvmsg(2048, 256)
            at = data.find(MARK)
            if at < 0 or sender[2] == socket.PACKET_OUTGOING:
                continue
            told = {(level, kind): value for level, kind, value in auxiliary}
            # tpacket_auxdata: status (VLAN_VALID: 1 << 4) ... tci, tpid
            status, *_, tci, _ = struct.unpack("=IIIHHHH", told[SOL_PACKET, PACKET_AUXDATA])
            tag = (tci >> 13, tci & 0xFFF) if status & 1 << 4 else None
            seconds, rest = struct.unpack("=qq", told[socket.SOL_SOCKET, SO_TIMESTAMPNS])
            return seconds * 10**9 + rest, int(data[at + len(MARK) :][:6]), tag

    def one_way_ns(self, way, make, count=15):
        """The median of some frames, one at a time, and the tags they arrive with."""
        found, tags = [], set()
        for number in range(count):
            start = time.time_ns()
            self.sockets[way].send(make(way, number))
            arrived, got, tag = self.receive(way)
            assert got == number
            found.append(arrived - start)
            tags.add(tag)
        return statistics.median(found), tags


EARLY_NS = 150_000
LATE_NS = 10 * EARLY_NS


def near(measure, want_ns, *, below_ns=EARLY_NS):
    """Never early; late by at most ten times what an idle machine shows.

    How near it is on an idle machine is what scripts/bench network judges.
    """
    found = []
    for _ in range(8):
        found.append(measure())
        assert found[-1] >= want_ns - below_ns
        if found[-1] <= want_ns + LATE_NS:
            return
    pytest.fail(f"{found}, not {want_ns}")


@pytest.mark.parametrize("tag", [None, (5, 20)], ids=["untagged", "tagged"])
@pytest.mark.parametrize("version", [4, 6])
def test_each_direction_has_its_own_delay_tagged_or_not(ends, version, tag):
    def make(way, number):
        return ip_frame(way, number, version=version, tag=tag)

    with serving(3 * MS, 8 * MS), Tap() as tap:
        assert tap.one_way_ns(0, make)[1] == {tag}
        for way, want in ((0, 3 * MS), (1, 8 * MS)):
            near(lambda way=way: tap.one_way_ns(way, make)[0], want)


@pytest.mark.parametrize("rtt_ms", [0.5, 1, 2, 5, 10, 20, 50, 100, 150])
def test_an_unloaded_round_trip_is_the_delay(ends, rtt_ms):
    def round_trip():
        there, back = (tap.one_way_ns(way, ip_frame, 9)[0] for way in (0, 1))
        return there + back

    with serving(round(rtt_ms * MS / 2)), Tap() as tap:
        round_trip()  # the lead is found, and the bridge learns
        near(round_trip, rtt_ms * MS, below_ns=2 * EARLY_NS)


def test_a_direction_may_have_no_delay(ends):
    with serving(0, 5 * MS), Tap() as tap:
        near(lambda: tap.one_way_ns(0, ip_frame)[0], 0)
        near(lambda: tap.one_way_ns(1, ip_frame)[0], 5 * MS)


def test_arp_passes_at_once(ends):
    """As the documentation says: what isn't IP isn't delayed."""

    def arp(way, number):
        words = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + bytes(20)
        return ethernet(way, 0x0806, words + MARK + b"%06d" % number)

    with serving(50 * MS), Tap() as tap:
        assert tap.one_way_ns(0, arp, 5)[0] < 25 * MS
        assert tap.one_way_ns(0, ip_frame, 3)[0] > 49 * MS


def test_delays_change_while_frames_are_on_their_way_and_none_overtakes(ends):
    with serving(300 * MS) as line, Tap() as tap:
        tap.sockets[0].send(ip_frame(0, 1))

        line.delays(2 * MS, 2 * MS)
        start = time.time_ns()
        tap.sockets[0].send(ip_frame(0, 2))
        arrivals = [tap.receive(0) for _ in range(2)]
        assert [number for _, number, _ in arrivals] == [1, 2]
        assert arrivals[1][0] - start > 100 * MS  # behind the first: 300, less a busy machine's
        near(lambda: tap.one_way_ns(0, ip_frame)[0], 2 * MS)


def test_jitter_spreads_frames_and_keeps_their_order(ends):
    sent = {}

    def send():
        for number in range(150):
            sent[number] = time.time_ns()
            tap.sockets[0].send(ip_frame(0, number))
            time.sleep(0.001)

    with serving(10 * MS, jitter_ns=5 * MS), Tap() as tap:
        thread = threading.Thread(target=send)
        thread.start()
        arrivals = [tap.receive(0) for _ in range(150)]
        thread.join()
    assert [number for _, number, _ in arrivals] == list(range(150))
    delays = [arrived - sent[number] for arrived, number, _ in arrivals]
    assert min(delays) > 4.5 * MS
    assert max(delays) - min(delays) > 2 * MS


def goodput_bps(seconds):
    with netns.inside(NAMES["b"]):
        listener = socket.create_server(("10.0.0.2", 5001))
    with netns.inside(NAMES["a"]):
        sender = socket.socket()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    sender.connect(("10.0.0.2", 5001))
    receiver, _ = listener.accept()
    done = threading.Event()

    def send():
        with suppress(OSError):
            while not done.is_set():
                sender.sendall(bytes(65536))

    thread = threading.Thread(target=send)
    with listener, sender, receiver:
        thread.start()
        buffer = bytearray(1 << 20)
        start = time.monotonic()
        while time.monotonic() < start + 1:  # slow start
            receiver.recv_into(buffer)
        start, taken = time.monotonic(), 0
        while (now := time.monotonic()) < start + seconds:
            taken += receiver.recv_into(buffer)
        done.set()
        receiver.shutdown(socket.SHUT_RDWR)
        sender.shutdown(socket.SHUT_RDWR)
        thread.join()
    return taken * 8 / (now - start)


@pytest.mark.parametrize("rtt_ms", [10, 50])
def test_tcp_goes_on_at_a_gigabit_over_a_delayed_wire(rtt_ms):
    """A fifth of it at least, however busy the machine: a queue too short leaves a tenth.

    How much of the 0.9415 Gb/s that Ethernet carries is reached, scripts/bench network judges.
    """
    found = []
    with built(steps(10**9)), serving(rtt_ms * MS // 2) as line:
        for _ in range(8):
            found.append(goodput_bps(1))
            assert found[-1] < 0.96e9
            if found[-1] > 0.2e9:
                break
        else:
            pytest.fail(f"{found}")
        report = line.call(command="report")
    assert [one["queue_drops"] + one["user_drops"] for one in report["directions"]] == [0, 0]


def test_a_dead_line_is_a_dead_wire_and_a_new_one_delays_again(ends):
    with Tap() as tap:
        with serving(5 * MS) as line:
            tap.sockets[0].send(ip_frame(0, 1))
            assert tap.receive(0)[1] == 1
            tap.sockets[0].send(ip_frame(0, 2))  # on its way when the line dies
            line.kill()
        for number in range(3, 20):
            for version in (4, 6):
                tap.sockets[0].send(ip_frame(0, number, version=version))
                tap.sockets[0].send(ip_frame(0, number, version=version, tag=(0, 5)))
        tap.sockets[1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            tap.receive(0)
        tap.sockets[1].settimeout(5)
        with serving(5 * MS):
            near(lambda: tap.one_way_ns(0, ip_frame)[0], 5 * MS)


def test_frames_on_a_cable_that_is_pulled_are_lost_and_the_line_lives_on(ends):
    with serving(1000 * MS, 5 * MS), Tap() as tap:
        for number in range(5):
            tap.sockets[0].send(ip_frame(0, number))
        for state in ("down", "up"):
            command = ["ip", "-n", NAMES["wire"], "link", "set", "p0", state]
            subprocess.run(command, check=True)
        tap.sockets[0].send(ip_frame(0, 77))
        assert tap.receive(0)[1] == 77
        near(lambda: tap.one_way_ns(1, ip_frame)[0], 5 * MS)


def test_a_line_ends_with_its_supervisor_and_tells_the_wire_is_dead(ends):
    with serving(MS) as line:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(line.pid, 0)
    lost = subprocess.run(
        ["ip", "netns", "exec", NAMES["a"], "ping", "-c1", "-W0.3", "10.0.0.2"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert lost.returncode == 1


def test_a_report_counts_frames_by_direction_and_from_a_reading_on(ends):
    with serving(MS, 2 * MS) as line, Tap() as tap:
        tap.one_way_ns(0, ip_frame, 20)
        first = line.call(command="report")
        tap.one_way_ns(0, ip_frame, 3)
        tap.one_way_ns(1, ip_frame, 5)
        whole = line.call(command="report")
        part = line.call(command="report", since=first["reading"], reset=True)
        after = line.call(command="report")
        bad = line.call(command="fly")
    frames = [
        [one["frames"] for one in report["directions"]] for report in (first, whole, part, after)
    ]
    # The kernel sends a few of its own (IPv6 multicast), never fewer.
    assert frames[0][0] >= 20
    assert frames[1] == [frames[0][0] + frames[2][0], frames[0][1] + frames[2][1]]
    assert frames[2][0] >= 3
    assert frames[2][1] >= 5
    assert max(frames[3]) < 3
    assert whole["directions"][0]["late_p50_ns"] < 2 * MS
    assert "fly" in bad["error"]["message"]


def test_a_full_queue_is_counted_and_condemned(ends):
    def fill():
        netns.enter(NAMES["wire"])
        delay_rules.install(PORTS, NAMES["wire"])
        with Queues((0, 1), most_packets=10) as queues, Tap() as tap:
            for number in range(50):
                tap.sockets[0].send(ip_frame(0, number))
            deadline = time.monotonic() + 5
            while queues.status()[0].queue_drops < 40 and time.monotonic() < deadline:
                time.sleep(0.001)
            return queues.status()

    status = netns.in_thread(lambda _: fill())
    assert status[0].queue_drops >= 40
    assert status[1].queue_drops == 0
    found = DirectionStatistics(status[0].queue_drops, status[0].user_drops, Lateness())
    assert "queue in the kernel was full" in (verdict(found, Delay(MS)) or "")


def test_frames_are_let_go_up_to_the_one_named_and_their_arrival_is_the_kernel_s(ends):
    def look():
        netns.enter(NAMES["wire"])
        delay_rules.install(PORTS, NAMES["wire"])
        with Queues((0, 1)) as queues, Tap() as tap:
            frames, sent = [], 0
            deadline = time.monotonic() + 5
            # The kernel starts to note arrivals a moment after it is asked to.
            while time.monotonic() < deadline:
                before = time.monotonic_ns()
                for number in range(sent, sent + 4):
                    tap.sockets[0].send(ip_frame(0, number))
                sent += 4
                after = time.monotonic_ns()
                time.sleep(0.02)
                frames = [frame for frame in queues.receive(99) if frame[0] == 0][-4:]
                if all(before - 10_000 <= at <= after + 2 * MS for _, _, at in frames):
                    break
            else:
                pytest.fail(f"{before}-{after}: {frames}")
            queues.accept(0, frames[-2][1])
            got = [tap.receive(0)[1] for _ in range(sent - 1)]
            tap.sockets[1].settimeout(0.1)
            with pytest.raises(TimeoutError):
                tap.receive(0)
            return got, sent

    got, sent = netns.in_thread(lambda _: look())
    assert got == list(range(sent - 1))  # all but the last


def test_a_second_line_on_one_wire_is_refused(ends):
    with serving(MS), Line(MS) as second:
        pass
    assert second.first["error"]["type"] == "KernelError"
    assert "NFQUEUE" in second.first["error"]["message"]


def test_a_port_that_is_not_there_is_refused(ends):
    with Line(MS, ports=("p0", "p9")) as line:
        pass
    assert "p9" in line.first["error"]["message"]


def test_rules_that_do_not_read_back_are_an_error(ends, monkeypatch):
    monkeypatch.setattr(delay_rules, "rules", lambda ports: ["-A PREROUTING -j NFQUEUE"])

    def away():
        netns.enter(NAMES["wire"])
        delay_rules.install(PORTS, NAMES["wire"])

    with pytest.raises(KernelError, match="read back"):
        netns.in_thread(lambda _: away())
