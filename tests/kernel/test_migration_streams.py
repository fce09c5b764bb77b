"""One migration over several streams: all of them work, none holds the others, all end together."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest

from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.kernel import netns
from testbed.migration.incoming import Incoming
from testbed.migration.listening import Listening
from testbed.migration.outgoing import Outgoing
from testbed.migration.specification import MigrationSpec, StreamSpec
from testbed.migration.stream import PeerError
from testbed.migration.wire import Kind, WireError, pack
from tests.kernel.migration_paths import address, paths, run, shape

pytestmark = pytest.mark.root

MIB = 1 << 20
PAGES = 16 * MIB // 4096


def no_turn():
    pass


def specification(*numbers, **changes):
    """A stream for each of these paths."""
    streams = tuple(
        StreamSpec(address(0, number), address(1, number), f"eth{number}") for number in numbers
    )
    return MigrationSpec(
        **{
            "migration_id": time.time_ns() // 1000,
            "secret": os.urandom(32),
            "guest": GuestSpec("vm", PAGES * 4096, 1),
            "source_address": streams[0].source_address,
            "destination_address": streams[0].destination_address,
            "streams": streams,
            "timeout_ns": 5_000_000_000,
            **changes,
        }
    )


@contextmanager
def at(name, work):
    """A process in a namespace that does the work; killed at the end if it hasn't ended."""
    told, tells = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            netns.enter(name)
            os.write(tells, repr(work(lambda: os.write(tells, b"ready"))).encode())
        except BaseException as error:
            os.write(tells, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(tells)

    def said(seconds=30):
        assert select.select([told], [], [], seconds)[0], "nothing was said"
        return os.read(told, 1 << 16).decode()

    try:
        yield said, pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)


def taking(spec):
    """Take in a whole migration; says how its pages add up."""

    def work(ready):
        with GuestMemory("b", PAGES * 4096) as memory:
            listening = Listening(spec)
            ready()
            with Incoming(spec, listening.accept(spec), memory) as streams:
                last = streams.copy()
                streams.first.send(pack(Kind.LOADED, 0, last))
                with suppress(PeerError, WireError):
                    streams.first.expect(Kind.RESUME)
                return int(memory.words.sum(dtype=np.uint64))

    return work


def filled(memory):
    memory.words[:] = np.random.default_rng(3).integers(1, 2**63, memory.words.shape, np.uint64)


def moved(spec, names, rounds=2):
    """Move a memory in so many iterations; the reports of its streams and the time of the first."""

    def sending(ready):
        with GuestMemory("a", PAGES * 4096) as memory, Outgoing(spec, memory, no_turn) as streams:
            filled(memory)
            streams.connect()
            began_ns = time.monotonic_ns()
            streams.copy(None, -1)
            first_ns = time.monotonic_ns() - began_ns
            for number in range(rounds):
                pages = np.arange(number % 2, PAGES, 2)
                memory.words[pages] += np.uint64(number + 1)
                streams.copy(pages, number)
            last = np.arange(0, PAGES, 5)
            memory.words[last] += np.uint64(7)
            announced = (Kind.BITMAP, last) if spec.bitmap else None
            streams.switch_over(last, rounds, announced)
            reports = streams.reports(0)
            return (
                int(memory.words.sum(dtype=np.uint64)),
                first_ns,
                [(one.source_address, one.bytes, one.most_in_flight_bytes) for one in reports],
                streams.bitmap_bytes,
            )

    with ExitStack() as undo:
        there, _ = undo.enter_context(at(names[1], taking(spec)))
        assert there() == "ready"
        here, _ = undo.enter_context(at(names[0], sending))
        said = here()
        assert said.startswith("("), said
        total, *rest = eval(said)
        assert int(there()) == total
        return rest


def test_every_path_carries_its_share_and_memory_is_whole():
    with paths(150 * 10**6, 150 * 10**6) as names:
        spec = specification(0, 1, bitmap="compacted", zero_pages=True)
        _, reports, bitmap_bytes = moved(spec, names)
        assert [at for at, *_ in reports] == [address(0, 0), address(0, 1)]
        assert all(size > 4 * MIB for _, size, _ in reports)
        assert 0 < bitmap_bytes <= PAGES // 8 + 1


def test_a_slow_path_does_not_hold_the_others():
    """Half of the pages over 5 Mb/s would take 13 s."""
    with paths(200 * 10**6, 5 * 10**6) as names:
        first_ns, reports, _ = moved(specification(0, 1), names, rounds=0)
        assert first_ns < 10_000_000_000
        assert 0 < reports[1][1] < reports[0][1] / 4


def test_several_streams_of_one_path_end_together():
    with paths(None) as names:
        _, reports, _ = moved(specification(0, 0, 0, 0, bitmap="full"), names, rounds=4)
        assert len(reports) == 4
        assert all(size for _, size, _ in reports)


def test_a_window_is_what_is_in_flight():
    """Acknowledgements that come late keep in flight whatever is let in flight."""
    with paths(None) as names:
        shape(names[1], "eth0", 200_000, burst="1600")
        most = []
        for window_bytes in (100_000, None):
            _, reports, _ = moved(specification(0, window_bytes=window_bytes), names, rounds=0)
            most.append(reports[0][2])
        assert 50_000 <= most[0] <= 100_000
        assert most[1] > 200_000


@pytest.mark.parametrize("broken", [0, 1])
def test_a_path_that_breaks_fails_the_migration_for_both(broken):
    with paths(20 * 10**6, 20 * 10**6) as names, ExitStack() as undo:
        spec = specification(0, 1, timeout_ns=1_000_000_000)

        def sending(ready):
            with GuestMemory("a", PAGES * 4096) as memory:
                filled(memory)
                with Outgoing(spec, memory, no_turn) as streams:
                    streams.connect()
                    ready()
                    try:
                        streams.copy(None, -1)
                    except PeerError as error:
                        streams.tell_failure("a wire broke")
                        return str(error)
                    return "it did not fail"

        there, _ = undo.enter_context(at(names[1], taking(spec)))
        assert there() == "ready"
        here, _ = undo.enter_context(at(names[0], sending))
        assert here() == "ready"
        run("ip", "-n", names[1], "link", "set", f"eth{broken}", "down")
        assert f"stream {broken}: " in here()
        assert there().startswith(("GaveUpError", "PeerError"))


def test_all_streams_are_needed():
    with paths(None) as names, ExitStack() as undo:
        spec = specification(0, 0, timeout_ns=500_000_000)
        there, _ = undo.enter_context(at(names[1], taking(spec)))
        assert there() == "ready"

        def one_alone(ready):
            streams = Outgoing(spec, GuestMemory("a", PAGES * 4096), no_turn)
            streams._connect(0)  # and never the other
            ready()
            time.sleep(5)

        here, _ = undo.enter_context(at(names[0], one_alone))
        assert here() == "ready"
        assert "1 of 2 streams" in there()
