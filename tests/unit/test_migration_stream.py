"""Pages through a socket pair: whole whatever the kernel splits, and only where they belong."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest.memory import GuestMemory
from testbed.guest.synthetic import SyntheticMemory
from testbed.migration import wire
from testbed.migration.receiver import Arrivals, Receiver, stamp
from testbed.migration.sender import Sender
from testbed.migration.stream import PeerError, Stream
from testbed.migration.wire import Kind, WireError
from testbed.migration.work import Work

SIZE = 4 << 20
PAGES = SIZE // 4096


@pytest.fixture
def streams():
    """A connection with small buffers, so that transfers are partial."""
    near, far = socket.socketpair()
    with near, far:
        for sock in (near, far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)
        yield Stream(near, 2_000_000_000), Stream(far, 2_000_000_000)


@pytest.fixture
def memories():
    with GuestMemory("a", SIZE) as a, GuestMemory("b", SIZE) as b:
        a.words[:] = np.random.default_rng(1).integers(1, 2**63, a.words.shape, np.uint64)
        yield a, b


def in_thread(work):
    """Run the work beside the test; returns how to wait for what it returned or raised."""
    outcome = []

    def body():
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=body)
    thread.start()

    def result():
        thread.join(10)
        assert outcome, "it hangs"
        return outcome[0]

    return result


def receiver(stream, memory):
    return Receiver(stream, Arrivals(memory))


def test_a_whole_memory_and_then_pages_of_it(streams, memories):
    (near, far), (a, b) = streams, memories
    received = in_thread(receiver(far, b).copy)
    sender = Sender(near, a)
    sender.send(Work(PAGES))
    sender.end(Kind.END, -1)
    sender.confirm(Kind.ENDED, -1)
    assert (a.words == b.words).all()
    assert sender.pages == PAGES
    assert SIZE < sender.wire_bytes < SIZE * 1.001

    before = b.words.copy()
    pages = np.unique(np.concatenate(([0, 1, 2, 700, PAGES - 1], np.arange(100, 690, 7))))
    a.words[:] += np.uint64(1)
    sender.begin()
    sender.send(Work(PAGES, pages))
    sender.end(Kind.SWITCHOVER, 0)
    frame = received()
    assert frame == wire.Frame(Kind.SWITCHOVER, len(pages), 0)
    changed = np.flatnonzero((b.words != before).any(axis=1))
    np.testing.assert_array_equal(changed, pages)
    assert (b.words[pages] == a.words[pages]).all()


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=PAGES))
def test_any_set_of_pages_arrives_and_no_other(numbers):
    pages = np.array(sorted(numbers))
    with GuestMemory("a", SIZE) as a, GuestMemory("b", SIZE) as b:
        a.words[:] = np.arange(1, PAGES + 1, dtype=np.uint64)[:, None]
        left, right = socket.socketpair()
        with left, right:
            left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10000)
            received = in_thread(receiver(Stream(right, 10**10), b).copy)
            Sender(Stream(left, 10**10), a).send(Work(PAGES, pages))
            left.close()
            assert isinstance(received(), PeerError)
        wanted = np.zeros_like(a.words)
        wanted[pages] = a.words[pages]
        assert (b.words == wanted).all()


BAD = {
    "run beyond memory": wire.pack(Kind.RUN, 2, PAGES - 1),
    "run before memory": wire.pack(Kind.RUN, 1, -1),
    "run too long": wire.pack(Kind.RUN, wire.RUN_PAGES + 1, 0),
    "gather too long": wire.pack(Kind.GATHER, wire.GATHER_PAGES + 1, 0),
    "gather beyond memory": wire.pack(Kind.GATHER, 1) + PAGES.to_bytes(4, "little"),
    "gather that repeats": wire.pack(Kind.GATHER, 2) + bytes(8),
    "unknown kind": b"\xff" * wire.HEADER_BYTES,
    "wrong count": wire.pack(Kind.END, 5, -1),
    "another iteration": wire.pack(Kind.END, 0, 3),
    "zeros beyond memory": wire.pack(Kind.ZERO, 1) + np.array([PAGES - 1, 2], "<u4").tobytes(),
    "a long bitmap": wire.pack(Kind.BITMAP, 2, PAGES),
    "a short bitmap": wire.pack(Kind.BITMAP, 1, 5),
    "resume during the copy": wire.pack(Kind.RESUME),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_bad_frame_is_refused_and_memory_untouched(streams, memories, data):
    (near, far), (_, b) = streams, memories
    near.send(data, os.urandom(8192))
    with pytest.raises(WireError):
        receiver(far, b).copy()
    assert not b.words.any()


def test_memory_that_is_not_whole_is_no_memory(memories):
    arrivals = Arrivals(memories[1])
    arrivals.stamps[: PAGES - 3] = stamp(4)
    with pytest.raises(WireError, match="3 pages never came"):
        arrivals.check(4, PAGES - 3)


def test_the_last_pages_are_those_that_the_bitmap_announced(memories):
    arrivals = Arrivals(memories[1])
    arrivals.stamps[:] = stamp(-1)
    arrivals.stamps[5:9] = stamp(0)
    arrivals.announced = np.arange(5, 9)
    arrivals.check(0, 4)
    for pages, count in (np.arange(5, 10), 5), (np.arange(5, 9), 5), (np.arange(5, 8), 3):
        arrivals.announced = pages
        with pytest.raises(WireError, match="bitmap"):
            arrivals.check(0, count)


def test_zero_pages_are_told_and_take_the_place_of_what_was_there(streams, memories):
    (near, far), (a, b) = streams, memories
    a.words[: PAGES // 2] = 0
    a.words[5, 511] = 1  # not quite zero
    received = in_thread(receiver(far, b).copy)
    sender = Sender(near, a, zero_pages=True)
    sender.send(Work(PAGES))
    assert (sender.pages, sender.zero_pages) == (PAGES, PAGES // 2 - 1)
    assert sender.wire_bytes < SIZE * 0.51
    sender.end(Kind.END, -1)
    sender.confirm(Kind.ENDED, -1)
    assert (a.words == b.words).all()

    a.words[PAGES // 2 :: 2] = 0
    sender.begin()
    sender.send(Work(PAGES, np.arange(PAGES // 2 + 1, dtype=np.int64) + PAGES // 2 - 1))
    assert sender.zero_pages == PAGES // 4 + 1
    sender.end(Kind.SWITCHOVER, 0)
    assert isinstance(received(), wire.Frame)
    assert (a.words == b.words).all()


def test_zero_pages_of_synthetic_memory_are_those_never_written(streams):
    near, far = streams
    with SyntheticMemory("a", SIZE, 4) as a, SyntheticMemory("b", SIZE, 4) as b:
        a.fill(0, 2, 7)
        a.fill(100, 50, 7)
        received = in_thread(receiver(far, b).copy)
        sender = Sender(near, a, zero_pages=True)
        sender.send(Work(PAGES))
        assert sender.zero_pages == PAGES - 52
        sender.end(Kind.END, -1)
        sender.confirm(Kind.ENDED, -1)
        a.fill(200, 1, 7)
        sender.begin()
        sender.send(Work(PAGES, np.array([1, 3, 120, 200, 201])))
        assert sender.zero_pages == 2
        sender.end(Kind.SWITCHOVER, 0)
        assert isinstance(received(), wire.Frame)
        assert (a.versions[4:] == b.versions[4:]).all()  # of real pages their content counts
        assert (a.words == b.words).all()


def test_a_page_of_the_first_iteration_is_not_zeroed_twice(streams):
    """Memory begins as zeros: to write them again would cost what not sending them saves."""
    near, far = streams
    with GuestMemory("a", SIZE) as a, GuestMemory("b", SIZE) as b:
        b.words[7] = 1  # what no page of a fresh memory has
        received = in_thread(receiver(far, b).copy)
        sender = Sender(near, a, zero_pages=True)
        sender.send(Work(PAGES))
        sender.end(Kind.SWITCHOVER, -1)
        assert isinstance(received(), wire.Frame)
        assert b.words[7].all()


@pytest.mark.parametrize(
    "data",
    [wire.pack(Kind.RUN, 8, 0) + bytes(4096), wire.pack(Kind.GATHER, 9) + bytes(3), b"\x02"],
    ids=["run", "gather", "header"],
)
def test_a_truncated_frame_is_an_error(streams, memories, data):
    (near, far), (_, b) = streams, memories
    near.send(data)
    near.close()
    with pytest.raises(PeerError, match="closed"):
        receiver(far, b).copy()


def test_a_peers_error_is_told_with_its_text(streams, memories):
    (near, far), (_, b) = streams, memories
    near.send(wire.pack_error("the source is on fire"))
    with pytest.raises(PeerError, match="on fire"):
        receiver(far, b).copy()


def test_silence_ends_after_the_timeout_and_turns_go_on(streams):
    near, _ = streams
    near.timeout_ns = 200_000_000
    turns = []
    near.turn = lambda: turns.append(1)
    with pytest.raises(PeerError, match=r"0\.2 s"):
        near.expect(Kind.LOADED)
    assert turns
    turns.clear()
    with pytest.raises(PeerError, match=r"0\.2 s"):
        near.send(bytes(64 << 20))
    assert turns


def test_a_peer_that_never_ends_is_not_heard_for_ever(streams):
    near, far = streams
    near.send(wire.pack(Kind.ENDED) * 1000)
    assert far.last_words() is None
    assert far.readable()
