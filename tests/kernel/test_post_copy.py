"""A guest that runs without all of its pages gets every one of them, or is said to have failed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import MigrationError
from testbed.guest.iometer_file import prepare_file
from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Iometer, Writer
from testbed.migration.post_copy import Fetching, PostCopyFailed
from testbed.migration.post_copy_wire import Kind as PostCopyKind
from testbed.migration.post_copy_wire import pack_head
from testbed.migration.stream import PeerError
from testbed.migration.wire import Kind, pack
from tests.kernel.post_copy_pair import Moved, Wire, specification

pytestmark = pytest.mark.root

MIB = 1 << 20
S = 1_000_000_000


@pytest.fixture(scope="module")
def wire():
    with Wire("qr") as made:
        yield made


@pytest.fixture
def own_wire():
    """One that may be shaped or cut."""
    with Wire("qr-own") as made:
        yield made


@pytest.fixture
def resume_file(tmp_path):
    path = tmp_path / "vm.resume"
    yield str(path)
    assert not path.exists()


def busy(rate=60 * 10**6, kind="uniform", **changes):
    fields = {"name": "vm", "memory_bytes": 16 * MIB, "vcpus": 3, "seed": 5}
    return GuestSpec(**{**fields, "workloads": (Writer(kind, rate, 12 * MIB),), **changes})


def wrote(guest):
    return (guest.task_counters()["batches"] > 5).all()


def half(random, count):
    return random.random(count) < 0.5


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def goes_on(moved):
    """The guest runs, and every word of it is what its workloads make of the source's memory."""
    before = moved.guest.task_counters()["batches"].copy()
    wait_until(lambda: bool((moved.guest.task_counters()["batches"] > before).all()))
    assert moved.different() == 0


@pytest.mark.parametrize(
    ("streams", "kind", "tracking"),
    [
        pytest.param(1, "uniform", "pagemap", marks=pytest.mark.needs_feature("pagemap_scan")),
        pytest.param(3, "sequential", "pagemap", marks=pytest.mark.needs_feature("pagemap_scan")),
        (2, "uniform", "bytemap"),
    ],
)
def test_every_page_comes_while_vcpus_read_and_write(wire, resume_file, streams, kind, tracking):
    spec = specification(busy(kind=kind))
    options = {"streams": streams, "resume_file": resume_file, "tracking": tracking}
    with Moved(spec, wire, half, ready=wrote, **options) as moved:
        moved.resume()
        fetched = moved.fetching.run(moved.streams)
        report = moved.source.told()
        assert report.pages_missing == fetched.pages_missing == len(moved.missing)
        assert report.pages_pushed + report.pages_demanded == len(moved.missing)
        assert 0 < report.pages_demanded <= report.waits <= report.faults
        assert report.wait_p50_ns <= report.wait_p99_ns <= report.wait_max_ns < report.whole_ns
        assert (report.duplicates, report.file_used, report.pages_through_file) == (0, False, 0)
        headers = report.wire_bytes - len(moved.missing) * 4096
        assert 0 < headers < len(moved.missing) * 20
        goes_on(moved)
        # and can be migrated again: no write escapes the tracking
        tracker = moved.guest.tracker()
        tracker.install()
        shadow = moved.guest.memory.words.copy()
        moved.guest.resume()
        goes_on(moved)
        pages = np.union1d(tracker.collect(), moved.guest.state_pages())
        shadow[pages] = moved.guest.memory.words[pages]
        assert (shadow == moved.guest.memory.words).all()
        tracker.remove()


def test_requests_to_a_disk_wait_for_their_buffers(wire, tmp_path):
    """The kernel itself reads and writes missing pages: they are the buffers of a disk's I/O."""
    workload = Iometer(file_bytes=4 * MIB, outstanding=24)
    guest = busy(workloads=(workload,), vcpus=2, directory=str(tmp_path))
    prepare_file(str(tmp_path), "vm", 4 * MIB)

    def did(guest):
        return (guest.task_counters()["operations"] > 200).all()

    spec = specification(guest)
    with Moved(spec, wire, lambda _, count: np.ones(count, np.bool_), ready=did) as moved:
        moved.resume()
        fetched = moved.fetching.run(moved.streams)
        assert fetched.faults > 0
        before = moved.guest.task_counters()["operations"].copy()
        wait_until(lambda: bool((moved.guest.task_counters()["operations"] > before + 200).all()))
        assert moved.guest.failed_tasks() == ()  # each block that is read is checked


def test_a_demand_overtakes_the_push(own_wire):
    """16 MiB take 1.3 s and more at 100 Mb/s; nobody waits for more than a small part of it."""
    own_wire.shape("100mbit")
    spec = specification(busy(rate=4 * 10**6, vcpus=1))
    with Moved(spec, own_wire, lambda _, count: np.ones(count, np.bool_), ready=wrote) as moved:
        moved.resume()
        fetched = moved.fetching.run(moved.streams)
        assert fetched.whole_ns > 1.2 * S
        assert fetched.waits > 20
        assert fetched.wait_p50_ns < fetched.whole_ns / 20
        goes_on(moved)


def cut_after(own_wire, count):
    """A `turn` that cuts the network some turns after the guest was resumed."""
    turns = iter(range(1 << 30))

    def turn():
        if next(turns) == count:
            own_wire.cut()

    return turn


def test_a_network_that_fails_half_way_is_got_round_by_the_file(own_wire, resume_file):
    own_wire.shape("50mbit")
    spec = specification(busy(), timeout_ns=S)
    with Moved(
        spec,
        own_wire,
        half,
        streams=2,
        resume_file=resume_file,
        ready=wrote,
        turn=cut_after(own_wire, 8),
    ) as moved:
        moved.resume()
        fetched = moved.fetching.run(moved.streams)
        report = moved.source.told()
        assert 0 < report.pages_through_file < len(moved.missing)
        assert report.file_used
        assert report.network_failure == fetched.network_failure != ""
        goes_on(moved)


def test_without_a_file_both_ends_say_that_the_guest_has_failed(own_wire):
    own_wire.shape("50mbit")
    spec = specification(busy(), timeout_ns=S)
    turn = cut_after(own_wire, 4)
    with Moved(spec, own_wire, half, ready=wrote, turn=turn) as moved:
        moved.resume()
        with pytest.raises(
            PostCopyFailed, match=r"vm has failed: it runs without \d+ of its pages"
        ):
            moved.fetching.run(moved.streams)
        told = moved.source.told()
        assert isinstance(told, PostCopyFailed)
        assert "it can't go on here, as it was further there" in str(told)


@pytest.mark.parametrize("file", [False, True])
def test_a_source_that_is_killed_takes_the_guest_with_it(own_wire, tmp_path, file):
    own_wire.shape("50mbit")
    path = str(tmp_path / "vm.resume") if file else ""
    spec = specification(busy(), timeout_ns=S // 2)
    turns = iter(range(1 << 30))

    def turn():
        if next(turns) == 4:
            moved.source.kill()

    with Moved(spec, own_wire, half, resume_file=path, ready=wrote, turn=turn) as moved:
        moved.resume()
        why = "nothing was written to" if file else "there is no other way"
        with pytest.raises(PostCopyFailed, match=rf"vm has failed: .*{why}"):
            moved.fetching.run(moved.streams)
        with pytest.raises(MigrationError, match="missing still"):
            moved.guest.tracker()
    assert not Path(path).exists() or not file


@pytest.mark.parametrize("file", [False, True])
def test_a_destination_that_is_gone_is_not_waited_for(wire, tmp_path, file):
    path = str(tmp_path / "vm.resume") if file else ""
    spec = specification(busy(), timeout_ns=S // 2)
    with Moved(spec, wire, half, resume_file=path, ready=wrote) as moved:
        moved.source.go(moved.missing)
        for stream in moved.streams:
            stream.close()
        told = moved.source.told()
        assert isinstance(told, PostCopyFailed)
        assert ("nothing was written to" if file else "without a Quick Resume file") in str(told)


def test_a_vcpu_that_dies_ends_it_at_both_ends(own_wire):
    own_wire.shape("50mbit")
    turns = iter(range(1 << 30))

    def turn():
        if next(turns) == 2:
            os.kill(moved.guest.pids[1], signal.SIGKILL)

    spec = specification(busy())
    with Moved(spec, own_wire, half, ready=wrote, turn=turn) as moved:
        moved.resume()
        with pytest.raises(PostCopyFailed, match=r"vCPU 1 .*died"):
            moved.fetching.run(moved.streams)
        assert "vCPU 1" in str(moved.source.told())


GARBAGE = pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(pack(Kind.GATHER, 5), id="of pre-copy"),
        pytest.param(bytes(range(200)), id="no header"),
        pytest.param(pack_head(PostCopyKind.PAGES, 1) + b"\xff" * 4100, id="no such page"),
    ],
)


@GARBAGE
def test_a_destination_takes_no_garbage(wire, resume_file, garbage):
    """Nor is it kept from its pages by it: the file is authenticated."""

    def serve(streams):
        streams[0].send(garbage)

    spec = specification(busy(), timeout_ns=S)
    with Moved(spec, wire, half, resume_file=resume_file, ready=wrote, serve=serve) as moved:
        moved.resume()
        fetched = moved.fetching.run(moved.streams)
        assert fetched.pages_through_file > 0
        assert fetched.network_failure
        assert moved.source.told().pages_through_file == fetched.pages_through_file
        goes_on(moved)


def test_a_source_takes_no_garbage(wire, resume_file):
    spec = specification(busy(), timeout_ns=S)
    with Moved(spec, wire, half, resume_file=resume_file, ready=wrote) as moved:
        moved.resume()
        with suppress(PeerError):
            moved.streams[0].send(bytes(range(200)))
        moved.fetching.run(moved.streams)
        assert moved.source.told().network_failure
        goes_on(moved)


def test_a_source_does_not_wait_to_send_what_nobody_wants(wire):
    """Its destination says that it is whole, and takes no more, while most is still to be sent."""
    spec = specification(busy(), timeout_ns=S)
    with Moved(spec, wire, half, ready=wrote) as moved:
        moved.source.go(moved.missing)
        body = bytes(11 * 8)
        moved.streams[0].send(pack_head(PostCopyKind.WHOLE, len(body)) + body)
        told = moved.source.told()
        assert isinstance(told, PostCopyFailed)
        assert "WHOLE, but" in str(told)


def test_a_guest_that_can_not_be_prepared_has_not_run():
    with Guest.create_masked(busy(backing="synthetic")) as guest:
        with pytest.raises(MigrationError, match="can't be resumed quickly"):
            Fetching(guest)
        assert not guest.running
