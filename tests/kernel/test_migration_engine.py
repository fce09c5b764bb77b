"""Guests really move between two namespaces, over TCP and by nothing else."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from testbed.guest import layout
from testbed.guest.machine import Guest
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.guest.trace import parse_mode
from testbed.guest.workloads import Writer
from testbed.migration import wire
from testbed.migration.handshake import Offering
from testbed.migration.incoming import Incoming
from testbed.migration.listening import Listening
from testbed.migration.phase import MigrationFailed, MigrationUncertain, Phase
from testbed.migration.sockets import connect
from testbed.migration.source import SourceHooks, migrate
from testbed.migration.stream import Stream
from testbed.migration.wire import Kind
from tests.kernel.migration_pair import (
    A6,
    B6,
    SLOW_BPS,
    SLOW_BURST_BYTES,
    A,
    B,
    advances,
    destination,
    joined,
    memory_of,
    slow,
    source,
    specification,
    starting,
)

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def namespaces():
    with joined() as names:
        yield names


@pytest.fixture
def start(namespaces):
    with starting(namespaces) as at:
        yield at


def records(data):
    from testbed.guest.layout import VCPU

    return np.frombuffer(data, VCPU)


@pytest.mark.needs_feature("pagemap_scan")
@pytest.mark.parametrize("text", ["stop-based", "loose", "loose/1GiB"])
def test_a_migration_tells_what_tracing_cost_the_guest(start, text):
    spec = specification(source_device="eth0", trace=parse_mode(text))
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    trace = here.told()[0].trace
    there.told()
    entries = spec.guest.vcpus * spec.guest.memory_bytes // 4096
    assert trace.mode == parse_mode(text)
    assert trace.modelled == text.endswith("1GiB")
    operations = {"1GiB": spec.guest.vcpus} if trace.modelled else {"4KiB": entries}
    assert trace.operations == operations
    assert trace.page_fires > 0
    assert 0 < trace.longest_stop_ns <= min(sum(trace.stopped_ns), trace.measured_install_ns)
    assert all(trace.stopped_ns)


@pytest.mark.parametrize(
    "tracking",
    [pytest.param("pagemap", marks=pytest.mark.needs_feature("pagemap_scan")), "bytemap"],
)
def test_a_guest_moves_and_goes_on(start, tracking):
    spec = specification(source_device="eth0")
    there, here = start(1, destination(spec, tracking)), start(0, source(spec, tracking))
    new_pids, _ = there.told()
    old_pids, _ = here.told()
    here.go()
    report, at_source, cuts = here.told()
    at_destination, opened = there.told()
    assert not set(new_pids) & set(old_pids)
    assert (cuts, opened) == (["cut"], ["open"])

    before, after = records(at_source), records(at_destination)
    assert (after["steps"] > before["steps"]).all()
    assert (before["steps"] > 0).all()
    assert 0 < report.stun_ns < report.total_ns
    assert 0 < report.guest_gap_ns < report.stun_ns + 500_000_000
    assert report.guest_gap_ns == after["resume_gap_ns"].max()

    first, *_, last = report.iterations
    assert (first.number, first.pages) == (-1, spec.guest.memory_bytes // 4096)
    assert (last.stunned, last.dirty_pages) == (True, 0)
    assert [it.number for it in report.iterations] == list(range(-1, len(report.iterations) - 1))
    for before, after in pairwise(report.iterations):
        assert after.pages >= before.dirty_pages
        assert after.at_ns >= before.at_ns + before.duration_ns
    sent = sum(it.wire_bytes for it in report.iterations)
    assert sent <= report.samples[-1].acknowledged_bytes < sent + 1000
    (stream,) = report.streams
    assert (stream.congestion_control, stream.source_address) == ("cubic", A)
    assert stream.mss_bytes > 8000
    assert report.tracking == tracking
    here.go()
    assert here.told() == ("end", "gone")
    there.go()
    assert there.told() == ("end", "gone")


def test_a_guest_moves_over_ipv6(start):
    spec = specification(source_address=A6, destination_address=B6)
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    report, *_ = here.told()
    assert report.streams[0].destination_address == B6
    there.told()


def test_no_page_differs_while_both_are_at_rest(start):
    spec = specification(verify=True)
    there, here = start(1, destination(spec)), start(0, source(spec))
    _, there_fd = there.told()
    _, here_fd = here.told()
    here.go()
    assert there.told() == "held"
    ours, theirs = memory_of(here.pid, here_fd), memory_of(there.pid, there_fd)
    assert int((ours != theirs).any(axis=1).sum()) == 0
    assert ours[layout.first_data_page(2) :].any(axis=1).all()
    assert (memory_of(there.pid, there_fd) == theirs).all()
    there.go()
    report, *_ = here.told()
    assert report.stun_ns is None
    assert report.guest_gap_ns is None
    there.told()


def test_strangers_are_refused_without_a_word(start, namespaces):
    spec = specification()
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()

    def strangers(tell, told):
        liar = replace(spec, secret=bytes(32))
        wrong = [Offering(liar, 0).hello, Offering(replace(spec, migration_id=7), 0).hello]
        answers = []
        with ExitStack() as undo:
            for data in (*wrong, b"GET / HTTP/1.1\r\n" * 9):
                sock = undo.enter_context(socket.create_connection((B, spec.port), 5))
                sock.sendall(data)
                try:
                    answers.append(sock.recv(100))
                except ConnectionResetError:
                    answers.append(b"")
            for data in (b"", Offering(spec, 0).hello, Offering(spec, 0).hello[:-1]):
                sock = undo.enter_context(socket.create_connection((B, spec.port), 5))
                sock.sendall(data)  # these only keep silent from now on
            tell(answers)
            told.recv(10)

    stranger = start(0, strangers)
    assert stranger.told() == [b""] * 3
    here.go()
    report, *_ = here.told()
    assert report.iterations
    there.told()


def test_the_destination_waits_no_longer_than_its_timeout(start):
    there = start(1, destination(specification(timeout_ns=200_000_000)))
    there.told()
    kind, name, text = there.told()
    assert (kind, name) == ("error", "MigrationFailed")
    assert "did not come" in text


def test_a_stun_lasts_as_long_as_its_pages_take_on_the_path(start, namespaces):
    """The guest rewrites 4 MiB faster than the path carries them: all that is left to the stun."""
    slow(namespaces)
    late_ns = []
    for _ in range(3):
        guest = GuestSpec("vm", 16 * MIB, 2, (Writer("uniform", 100 * 10**6, 4 * MIB),), seed=11)
        spec = specification(guest=guest, switchover_goal_ns=500_000_000)
        there, here = start(1, destination(spec)), start(0, source(spec))
        there.told()
        here.told()
        here.go()
        report, *_ = here.told()
        there.told()
        last = report.iterations[-1]
        assert last.memory_bytes > 0.9 * 4 * MIB
        # What the shaper lets pass at once leaves with no delay, and all the rest at its rate.
        least_ns = (last.wire_bytes - SLOW_BURST_BYTES) * 8e9 / SLOW_BPS
        assert report.stun_ns >= least_ns
        assert report.guest_gap_ns >= least_ns
        late_ns.append(report.guest_gap_ns - report.stun_ns)
        for vmx in (here, there):
            vmx.go()
            assert vmx.told() == ("end", "gone")
        if late_ns[-1] <= 5_000_000:
            return
    pytest.fail(f"vCPUs stood still longer than the stun by {late_ns} ns")


def runs_on_at_source(told, phase):
    kind, (error, where, _, running, advanced, cuts) = told
    assert (kind, error, where) == ("end", MigrationFailed, phase)
    assert running
    assert advanced
    return cuts


def test_the_destination_dies_during_the_copy(start, namespaces):
    spec = specification()
    slow(namespaces)
    there, here = start(1, destination(spec)), start(0, source(spec, during=True))
    there.told()
    here.told()
    here.go()
    assert here.told() == "copying"
    there.kill()
    while (told := here.told()) == "copying":
        pass
    assert runs_on_at_source(told, Phase.PRECOPY) == []


def test_the_source_dies_during_the_copy(start, namespaces):
    spec = specification()
    slow(namespaces)
    there, here = start(1, destination(spec)), start(0, source(spec, during=True))
    pids, _ = there.told()
    here.told()
    here.go()
    assert here.told() == "copying"
    here.kill()
    kind, name, text = there.told()
    assert (kind, name) == ("error", "MigrationFailed")
    assert "pre-copy" in text
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_nobody_listens(start):
    spec = specification()
    here = start(0, source(spec))
    here.told()
    here.go()
    assert runs_on_at_source(here.told(), Phase.CONNECT) == []


def test_a_guest_that_is_faster_than_the_path_stays_and_says_so(start, namespaces):
    spec = specification(dirty_rate=100 * 10**6)
    slow(namespaces)
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    told = here.told(30)
    assert runs_on_at_source(told, Phase.PRECOPY) == []
    assert "does not converge" in told[1][2]
    assert there.told()[:2] == ("error", "MigrationFailed")


def test_a_hold_that_fails_resumes_the_source(start):
    """The destination ends during the switchover, before it was told to resume."""
    spec = specification(verify=True)
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    assert there.told() == "held"
    there.kill()
    assert runs_on_at_source(here.told(), Phase.SWITCHOVER) == ["cut", "uncut"]


def test_a_silent_destination_after_resume_leaves_the_guest_to_the_lab(start):
    spec = specification(timeout_ns=1_000_000_000)

    def takes_and_says_nothing(tell, told):
        listening = Listening(spec)
        with GuestMemory("b", spec.guest.memory_bytes) as memory:
            tell("ready")
            with Incoming(spec, listening.accept(spec), memory) as streams:
                streams.first.send(wire.pack(Kind.PREPARED))
                last = streams.copy()
                streams.first.send(wire.pack(Kind.LOADED, 0, last))
                streams.first.expect(Kind.RESUME)
                told.recv(10)

    there, here = start(1, takes_and_says_nothing), start(0, source(spec))
    assert there.told() == "ready"
    here.told()
    here.go()
    error, text = here.told()
    assert error is MigrationUncertain
    assert "find out" in text
    there.kill()
    here.go()
    assert here.told() == ("end", (True, True, ["cut", "uncut"]))


def test_a_cancelled_migration_leaves_both_sides_as_they_were(start, namespaces):
    spec = specification()
    slow(namespaces)

    def work(tell, told):
        began = []
        hooks = SourceHooks(progress=began.append, cancelled=lambda: bool(began))
        with Guest.power_on(spec.guest) as guest:
            with pytest.raises(MigrationFailed, match="cancelled"):
                migrate(guest, spec, hooks)
            return guest.running, advances(guest)

    there = start(1, destination(spec))
    there.told()
    here = start(0, work)
    assert here.told() == ("end", (True, True))
    kind, _, text = there.told()
    assert kind == "error"
    assert "cancelled" in text or "closed" in text


def test_socket_options_are_as_specified(start):
    spec = specification(send_buffer_bytes=300_000, receive_buffer_bytes=200_000)

    def work(tell, told):
        with connect(spec, 0, lambda: None) as sock:
            stream = Stream(sock, spec.timeout_ns)
            return stream.report(stream.receive_buffer_bytes())

    there = start(1, destination(spec))
    there.told()
    kind, report = start(0, work).told()
    assert kind == "end"
    assert report.congestion_control == "cubic"
    assert (report.send_buffer_bytes, report.receive_buffer_bytes) == (600_000, 400_000)
    assert (report.source_address, report.destination_address) == (A, B)
