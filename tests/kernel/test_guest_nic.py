"""What a VM says over the network is said by its vCPU: not while it stands still, and wherever."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from testbed.content import content
from testbed.errors import MeasurementError
from testbed.guest import layout
from testbed.guest.workloads import Echo, Web, Writer
from testbed.measure import ping, session
from testbed.measure.endpoint import socket_in
from testbed.measure.ping import PingTest
from testbed.measure.tcp_session import SessionTest
from testbed.migration.specification import MigrationSpec
from tests.kernel.nic_wires import MS, SPEC, WORKLOADS, Nic, Vmx, wire

pytestmark = [pytest.mark.root, pytest.mark.needs_program("ip")]
WEB, MEDIA, ECHO = 80, 554, 7
STILL_NS = 750 * MS
MINUTE_NS = 60 * 10**9
SETTLED_NS = 600 * MS  # what the client had in hand has been counted by then


@pytest.fixture
def undo():
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def wires():
    with ExitStack() as stack:
        yield wire(stack)


@pytest.fixture
def nic(undo, wires):
    made = Nic(wires.vm)
    undo.callback(made.end)
    made.serve(WORKLOADS)
    return made


@pytest.fixture
def start(undo):
    def vmx(spec=SPEC, **how):
        made = Vmx(spec, **how)
        undo.callback(made.end)
        return made

    return vmx


@pytest.fixture
def vmx(nic, start):
    made = start()
    nic.attach(made)
    return made


class InBackground:
    """A client in a thread of its own, until its result is asked for."""

    def __init__(self, measure, ends, port, seed=SPEC.seed, **test):
        def run():
            try:
                self._found = measure(*ends, SessionTest(port, seed, MINUTE_NS, **test), self._stop)
            except MeasurementError as error:
                self._found = error

        self._found = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=run)
        self._thread.start()

    def result(self, after_s=0.5):
        """What it found until so long from now."""
        time.sleep(after_s)
        self._stop.set()
        return self.ended()

    def ended(self):
        """What it found when it ended of its own accord."""
        self._thread.join(30)
        assert self._found is not None
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def stand_still(vmx):
    """Suspend it for a while; from when on the network must have been silent, and until when."""
    vmx.call("suspend")
    from_ns = time.monotonic_ns() + SETTLED_NS
    time.sleep(STILL_NS / 1e9)
    until_ns = time.monotonic_ns()
    vmx.call("resume")
    return from_ns, until_ns


def ignores_echoes(wires):
    names = ("net.ipv4.icmp_echo_ignore_all", "net.ipv6.icmp.echo_ignore_all")
    command = ["ip", "netns", "exec", wires.vm, "sysctl", "-n", *names]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("version", [4, 6])
def test_pings_are_answered_by_the_guest_alone(wires, nic, vmx, version):
    a_few = PingTest(count=20, interval_ns=5 * MS)
    found = ping.measure(*wires.ends(version), a_few)
    assert (found.received, found.lost, found.duplicates) == (20, 0, 0)
    counted = vmx.call("task_counters")[3, 0]
    assert counted["operations"] == 20
    assert counted["latency"].sum() == 20
    vmx.call("suspend")
    with pytest.raises(MeasurementError, match="none of 20"):
        ping.measure(*wires.ends(version), PingTest(count=20, interval_ns=MS, timeout_ns=100 * MS))
    assert ignores_echoes(wires) == ["1", "1"]
    # Without the workload the VM's kernel does it, as it does for a VM that has none.
    assert nic.serve(WORKLOADS[:3])["ping"] is False
    assert ignores_echoes(wires) == ["0", "0"]
    assert ping.measure(*wires.ends(version), a_few).lost == 0


@pytest.mark.parametrize("bytes_", [16, 1473, 40_000])
def test_pings_of_any_size(wires, vmx, bytes_):
    # The ring has room for one of the largest at a time.
    test = PingTest(count=5, interval_ns=100 * MS, payload_bytes=bytes_)
    assert ping.measure(*wires.ends(), test).lost == 0


def test_a_guest_does_not_wait_for_a_nic_that_was_killed(nic, vmx):
    nic.serve(WORKLOADS[:3])  # no ping, of which it would leave settings behind
    os.kill(nic.pid, signal.SIGKILL)
    for _ in range(2):
        vmx.call("suspend")
        vmx.call("resume")
    assert len(vmx.call("state_pages")) == layout.state_pages(SPEC.vcpus)


def test_streams_stand_still_with_the_guest_and_go_on(wires, vmx):
    echo = InBackground(session.echo, wires.ends(6), ECHO, grain_ns=5 * MS)
    media = InBackground(session.media, wires.ends(), MEDIA)
    web = InBackground(session.download, wires.ends(6), WEB)
    time.sleep(0.3)
    silences = [stand_still(vmx)]
    time.sleep(0.3)
    silences.append(stand_still(vmx))
    echo, media, web = echo.result(), media.result(0), web.result(0)
    for one in (echo, media, web):
        assert one.wrong_bytes == 0
        assert one.broken is None
    echoed_ns = [at + int(rtt) for at, rtt in zip(echo.rtt.at_ns, echo.rtt.values, strict=True)]
    for from_ns, until_ns in silences:
        assert not [at for at in echoed_ns if from_ns < at < until_ns]
        assert len(media.gaps.window(from_ns, until_ns)) == 0
        grains = web.rate.window(from_ns, until_ns - 10 * MS)
        assert grains.values
        assert not any(grains.values)
    last_ns = silences[1][1]
    assert [at for at in echoed_ns if at > last_ns]
    assert len(media.gaps.window(last_ns, last_ns + 10**10))
    assert any(web.rate.window(last_ns, last_ns + 10**10).values)
    assert media.late + media.missing >= 2 * 50  # 75 were due in each
    assert media.longest_gap.length_ns >= STILL_NS
    assert echo.longest_interruption.length_ns >= STILL_NS


def test_what_is_late_by_more_than_a_second_is_left_out(wires, vmx):
    media = InBackground(session.media, wires.ends(), MEDIA)
    time.sleep(0.3)
    vmx.call("suspend")
    time.sleep(1.3)
    vmx.call("resume")
    found = media.result()
    assert found.missing >= 100
    assert found.wrong_bytes == 0
    assert found.parts >= 30


def test_bytes_are_right_over_many_suspends(wires, vmx):
    web = InBackground(session.download, wires.ends(), WEB)
    echo = InBackground(session.echo, wires.ends(), ECHO, grain_ns=MS, message_bytes=1400)
    for number in range(25):
        time.sleep(0.01 + number % 5 * 0.004)
        vmx.call("suspend")
        time.sleep(number % 3 * 0.005)
        vmx.call("resume")
    web, echo = web.result(), echo.result(0)
    assert (web.wrong_bytes, web.broken) == (0, None)
    assert web.received_bytes > SPEC.workloads[0].file_bytes
    assert (echo.wrong_bytes, echo.broken) == (0, None)
    assert echo.answered >= 50


@pytest.mark.parametrize("backing", ["real", "synthetic"])
def test_open_connections_survive_a_move_with_every_byte_right(wires, nic, start, backing):
    spec = replace(SPEC, backing=backing)
    at = start(spec)
    nic.attach(at)
    clients = [
        InBackground(session.echo, wires.ends(), ECHO, grain_ns=2 * MS),
        InBackground(session.media, wires.ends(), MEDIA),
        InBackground(session.download, wires.ends(6), WEB),
    ]
    for _ in range(3):
        time.sleep(0.2)
        there = start(spec, masked=True)
        nic.attach(there)
        at.call("suspend")
        at.copy_memory_to(there)
        there.call("resume")
        moved_ns = time.monotonic_ns()
        assert nic.ask("detach", pid=at.pid) == {"detached": at.pid, "ask": 1}
        at.call("power_off")
        at = there
    assert nic.guests_mapped() == 1  # the memory of those before is free
    time.sleep(0.5)
    echo, media, web = (one.result(0) for one in clients)
    for one in (echo, media, web):
        assert one.wrong_bytes == 0
        assert one.broken is None
    assert echo.rtt.at_ns[-1] > moved_ns
    assert media.gaps.at_ns[-1] > moved_ns
    assert any(web.rate.window(moved_ns, moved_ns + 10**10).values)
    counted = at.call("task_counters")[:3, 0]["operations"]
    assert counted[0] == web.downloads or counted[0] == web.downloads + 1
    assert counted[1] >= media.parts
    assert counted[2] >= 1


def test_a_migration_while_clients_work(wires, nic, start):
    """By the engine, over the network, with a writer beside them."""
    writer = Writer("uniform", dirty_rate_bytes_per_s=20_000_000, working_set_bytes=8 << 20)
    spec = replace(SPEC, memory_bytes=32 << 20, workloads=(*WORKLOADS, writer))
    at = start(spec, netns_name=wires.client)
    nic.attach(at)
    clients = [
        InBackground(session.echo, wires.ends(6), ECHO, grain_ns=2 * MS),
        InBackground(session.media, wires.ends(), MEDIA),
        InBackground(session.download, wires.ends(), WEB),
    ]
    time.sleep(0.3)
    addresses = [end.address for end in wires.ends()]
    move = MigrationSpec(time.time_ns() // 1000, secrets.token_bytes(32), spec, *addresses)
    there = start(netns_name=wires.vm, arrives=move)
    assert "error" not in nic.ask("attach", pid=there.pid, line=there.line, vcpus=spec.vcpus)
    there.socket.send(b"attached")
    report = at.call("migrate", move)
    at.end()
    resumed_ns = time.monotonic_ns()
    time.sleep(0.5)
    found = [one.result(0) for one in clients]
    for one in found:
        assert one.wrong_bytes == 0
        assert one.broken is None
    assert nic.guests_mapped() == 1  # the source has ended, which it noticed
    echo, media, web = found
    assert echo.rtt.at_ns[-1] > resumed_ns
    assert media.gaps.at_ns[-1] > resumed_ns
    assert any(web.rate.window(resumed_ns, resumed_ns + MINUTE_NS).values)
    assert echo.longest_interruption.length_ns >= report.guest_gap_ns
    counted = there.call("task_counters")["operations"]
    assert (counted[:3, 0] > 0).all()


def test_a_move_that_fails_goes_on_at_the_source(wires, nic, vmx, start):
    there = start(masked=True)
    nic.attach(there)
    echo = InBackground(session.echo, wires.ends(), ECHO, grain_ns=2 * MS)
    time.sleep(0.2)
    vmx.call("suspend")
    vmx.copy_memory_to(there)
    there.call("detach_nic")
    assert "error" not in nic.ask("detach", pid=there.pid)
    vmx.call("resume")
    resumed_ns = time.monotonic_ns()
    found = echo.result()
    assert (found.wrong_bytes, found.broken) == (0, None)
    assert found.rtt.at_ns[-1] > resumed_ns


def test_another_guest_does_not_get_the_connections_of_the_one_before(wires, nic, undo):
    first = Vmx()
    nic.attach(first)
    echo = InBackground(session.echo, wires.ends(), ECHO, grain_ns=2 * MS)
    time.sleep(0.2)
    first.end()
    second = Vmx()
    undo.callback(second.end)
    nic.attach(second)
    found = echo.ended()
    assert found.broken is not None
    assert found.wrong_bytes == 0
    again = session.echo(*wires.ends(), SessionTest(ECHO, 1, 200 * MS, 5 * MS))
    assert again.answered
    assert again.wrong_bytes == 0


def test_other_workloads_end_the_connections(wires, nic, vmx):
    echo = InBackground(session.echo, wires.ends(), ECHO, grain_ns=2 * MS)
    time.sleep(0.2)
    others = (Echo(port=1007), Web(port=8080, file_bytes=1000))
    assert nic.serve(others)["ports"] == [1007, 8080]
    vmx.call("switch_workloads", others)
    assert echo.ended().broken is not None
    found = session.download(*wires.ends(), SessionTest(8080, SPEC.seed, 200 * MS))
    assert found.downloads
    assert found.wrong_bytes == 0
    with pytest.raises(MeasurementError, match="refused"):
        session.echo(*wires.ends(), SessionTest(ECHO, 1, 200 * MS))


def connect(wires, port):
    source, destination = wires.ends()
    made = socket_in(source.netns_path, socket.AF_INET, socket.SOCK_STREAM, 0)
    made.settimeout(10)
    made.connect((destination.address, port))
    return made


def test_one_who_does_not_listen_holds_up_nobody(wires, vmx):
    """Neither a download nor echoes that nobody reads take room that others need."""
    with connect(wires, WEB) as lazy, connect(wires, ECHO) as shouting:
        lazy.sendall(b"GET /1 HTTP/1.1\r\n\r\n")
        shouting.setblocking(False)
        sent, deadline = 0, time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                sent += shouting.send(bytes(65536))
            except BlockingIOError:
                time.sleep(0.2)
                try:
                    sent += shouting.send(bytes(65536))
                except BlockingIOError:
                    break
        else:
            pytest.fail(f"{sent} bytes of echoes taken, and nobody reads them")
        found = session.download(*wires.ends(), SessionTest(WEB, SPEC.seed, 300 * MS))
        assert found.received_bytes
        assert found.wrong_bytes == 0
        assert ping.measure(*wires.ends(), PingTest(count=10, interval_ns=5 * MS)).lost == 0
        shouting.settimeout(10)
        got = 0
        while got < sent:  # it is all there once somebody reads
            part = shouting.recv(1 << 18)
            assert part == bytes(len(part))
            got += len(part)
        lazy.recv(1 << 12)


def test_a_peer_that_goes_away_is_forgotten(wires, vmx):
    """Whichever way: its number is used again, and there are only so many of them."""
    for number in range(150):
        with connect(wires, (WEB, MEDIA, ECHO)[number % 3]) as made:
            if number % 2:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if number % 3 == 0:
                made.sendall(b"GET /1 HTTP/1.1\r\n\r\n")
                made.recv(100)
    assert session.echo(*wires.ends(), SessionTest(ECHO, 1, 200 * MS, 5 * MS)).answered


def test_a_client_beyond_the_last_number_waits(wires, vmx):
    with ExitStack() as closing:
        made = [closing.enter_context(connect(wires, ECHO)) for _ in range(64)]
        for one in made:
            one.sendall(b"x")
            assert one.recv(1) == b"x"
        late = closing.enter_context(connect(wires, ECHO))
        late.sendall(b"y")
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.recv(1)
        made[10].close()
        late.settimeout(10)
        assert late.recv(1) == b"y"


def test_half_closed_and_one_request_only(wires, vmx):
    size = SPEC.workloads[0].file_bytes
    with connect(wires, WEB) as made:
        made.sendall(b"GET /5 HTTP/1.1\r\nHost: x\r\n\r\n")
        made.shutdown(socket.SHUT_WR)
        data = b"".join(iter(lambda: made.recv(1 << 18), b""))
    assert data.endswith(b"\r\n\r\n" + content(SPEC.seed, 5, 0, size))
    with connect(wires, ECHO) as made:
        made.sendall(b"abc" * 1000)
        made.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: made.recv(1 << 18), b"")) == b"abc" * 1000


def test_what_cannot_be_done_is_said(wires, nic, vmx):
    def refusal(command, **fields):
        return nic.ask(command, **fields)["error"]["message"]

    assert "attached to process" in refusal("attach", pid=vmx.pid, line=vmx.line, vcpus=2)
    gone = Vmx()
    gone.end()
    assert "No such process" in refusal("attach", pid=gone.pid, line=gone.line, vcpus=2)
    assert "not attached" in refusal("detach", pid=1)
    assert "knows no command" in refusal("sing")
    twice = [{"kind": "echo", "port": port} for port in (9000, 9000)]
    assert "share a TCP port" in refusal("services", workloads=twice)
    with socket_in(f"/run/netns/{wires.vm}", socket.AF_INET6, socket.SOCK_STREAM, 0) as other:
        other.bind(("::", 9001))
        other.listen()
        taken = [{"kind": "echo", "port": 9001}]
        assert "Address already in use" in refusal("services", workloads=taken)
    assert nic.serve((Echo(port=9001),))["ports"] == [9001]
