"""Whatever comes over a stream, its reader takes it or refuses it: no crash, no hang, no memory.

What proves nothing of itself: test_migration_handshake.py; sealed records:
test_migration_encrypted.py.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest.memory import GuestMemory
from testbed.migration import bitmap, wire
from testbed.migration.receiver import Arrivals, Receiver
from testbed.migration.stream import PeerError, Stream
from testbed.migration.wire import Kind, WireError

PAGES = 256
MOST_BYTES = 8 << 20  # what reading may take, whatever is claimed: memory, frames and numpy's own

int64 = st.integers(-(2**63), 2**63 - 1)
near_memory = st.integers(-2, PAGES + 2)
counts = st.integers(0, 2**32 - 1) | st.integers(0, PAGES)
headers = st.builds(wire.pack, st.sampled_from(list(Kind)), counts, int64 | near_memory)


def array(numbers):
    return np.array(numbers, wire.NUMBER)


page = st.integers(0, 2**32 - 1) | st.integers(0, PAGES + 2)
numbers = st.lists(page, max_size=20).map(array) | st.lists(page, max_size=20).map(sorted).map(
    array
)
run = st.tuples(page, st.integers(0, 9) | page)
runs = st.lists(run, min_size=1, max_size=9) | st.lists(run, min_size=1, max_size=9).map(sorted)


def framed(kind, body):
    return wire.pack(kind, len(body)) + body.tobytes()


# Frames as a peer would send them, but for what is in them.
frames = st.one_of(
    headers,
    st.binary(max_size=64),
    st.builds(
        lambda first, count: wire.pack(Kind.RUN, count, first) + bytes(4096 * min(count, 4)),
        near_memory,
        st.integers(0, 4),
    ),
    numbers.map(lambda pages: framed(Kind.GATHER, pages) + bytes(4096 * len(pages))),
    runs.map(lambda found: framed(Kind.ZERO, array(found))),
    st.builds(
        lambda kind, encoding, body: wire.pack(kind, encoding, len(body)) + body,
        st.sampled_from([Kind.BITMAP, Kind.MISSING]),
        st.integers(0, 3),
        st.binary(max_size=bitmap.most_bytes(PAGES) + 2),
    ),
    st.builds(
        wire.pack,
        st.sampled_from([Kind.END, Kind.SWITCHOVER]),
        st.integers(0, 40),
        st.integers(-1, 3),
    ),
)


def received(data):
    """What a receiver makes of these bytes, at the end of which the peer closes."""
    near, far = socket.socketpair()
    with near, far, GuestMemory("fuzz", PAGES * 4096) as memory:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        outcome = []

        def receive():
            try:
                receiver = Receiver(Stream(far, 5_000_000_000), Arrivals(memory))
                outcome.append(receiver.copy())
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        try:
            near.sendall(data)
            near.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has been refused already
        thread.join(10)
        assert outcome, "it hangs"
        return outcome[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(frames, max_size=8))
def test_any_frames_are_taken_or_refused(pieces):
    outcome = received(b"".join(pieces))
    assert isinstance(outcome, WireError | PeerError | wire.Frame), repr(outcome)
    if isinstance(outcome, wire.Frame):
        assert outcome.kind is Kind.SWITCHOVER


def conversation():
    """All that a source says to a receiver, in frames, until the switchover."""
    some = np.arange(3, 60, 5, dtype=wire.NUMBER)
    last = some.astype(np.int64) * 4
    encoding, bits = bitmap.encode(last, PAGES, compacted=True)
    return [
        wire.pack(Kind.RUN, PAGES, 0) + os.urandom(PAGES * 4096),
        wire.pack(Kind.END, PAGES, -1),
        framed(Kind.GATHER, some) + os.urandom(4096 * len(some)),
        wire.pack_zero(some + 100),
        wire.pack(Kind.END, 2 * len(some), 0),
        wire.pack(Kind.BITMAP, encoding, len(bits)) + bytes(bits),
        framed(Kind.GATHER, last.astype(wire.NUMBER)) + os.urandom(4096 * len(last)),
        wire.pack(Kind.SWITCHOVER, len(last), 1),
    ]


def test_the_conversation_that_others_are_made_of_is_taken():
    assert received(b"".join(conversation())) == wire.Frame(Kind.SWITCHOVER, 12, 1)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_conversation_that_was_tampered_with_is_taken_or_refused(data):
    """Frames dropped, repeated or swapped, a byte changed near a frame's beginning, an end cut."""
    said = conversation()
    how = data.draw(st.sampled_from(["dropped", "repeated", "swapped", "changed", "cut"]))
    at = data.draw(st.integers(0, len(said) - 1))
    if how == "dropped":
        del said[at]
    elif how == "repeated":
        said.insert(data.draw(st.integers(0, len(said))), said[at])
    elif how == "swapped":
        other = data.draw(st.integers(0, len(said) - 1))
        said[at], said[other] = said[other], said[at]
    else:
        place = data.draw(st.integers(0, min(len(said[at]) - 1, 80)))
        frame = bytearray(said[at])
        frame[place] ^= 1 << data.draw(st.integers(0, 7))
        said[at:] = [frame[:place]] if how == "cut" else [frame, *said[at + 1 :]]
    outcome = received(b"".join(said))
    assert isinstance(outcome, WireError | PeerError | wire.Frame), repr(outcome)
    if how in {"dropped", "cut"}:
        assert not isinstance(outcome, wire.Frame) or at == 5  # none asks for a BITMAP


def test_nothing_is_kept_for_what_is_only_claimed():
    claims = itertools.product(
        Kind, (0, 1, 512, 4096, 2**31, 2**32 - 1), (-1, 0, PAGES // 8, 2**31, 2**62)
    )
    tracemalloc.start()
    try:
        for claim in claims:
            tracemalloc.reset_peak()
            outcome = received(wire.pack(*claim) + bytes(100))
            assert isinstance(outcome, WireError | PeerError | wire.Frame), (claim, outcome)
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES, claim
    finally:
        tracemalloc.stop()


@settings(max_examples=150)
@given(st.integers(0, 4), st.binary(max_size=2000), st.integers(1, 1 << 33))
def test_any_bytes_are_a_bitmap_of_pages_in_memory_or_none(encoding, data, page_count):
    try:
        pages = bitmap.decode(encoding, data, page_count)
    except WireError:
        return
    assert (np.diff(pages) > 0).all()
    assert not len(pages) or (pages[0] >= 0 and pages[-1] < page_count)


@pytest.mark.parametrize("page_count", [PAGES, 1 << 20, 6 << 30])
def test_a_short_bitmap_of_many_pages_takes_no_more_memory_than_the_vm_has_pages(page_count):
    """Ten bytes may tell of a run of 2^35 pages: more than there are is refused unseen."""
    longest = b"\x00\xff\xff\xff\xff\x7f"
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            bitmap.decode(bitmap.Encoding.COMPACTED, longest, page_count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@given(runs, st.integers(1, PAGES))
def test_any_numbers_are_runs_of_zero_pages_in_memory_or_none(found, page_count):
    try:
        pages = wire.unpack_zero(array(found).tobytes(), page_count)
    except WireError:
        return
    assert (np.diff(pages) > 0).all()
    assert pages[0] >= 0
    assert pages[-1] < page_count
    assert len(pages) <= wire.GATHER_PAGES
