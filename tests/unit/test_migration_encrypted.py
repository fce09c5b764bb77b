"""Encrypted streams carry bytes whole, show nothing of them, and take nothing but their peer's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest.memory import GuestMemory
from testbed.migration import wire
from testbed.migration.encrypted import RECORD_BYTES, TAG_BYTES, EncryptedStream
from testbed.migration.handshake import KEY_BYTES, PREFIX_BYTES, Keys
from testbed.migration.stream import PeerError, Stream
from testbed.migration.vector import PageVector
from testbed.migration.wire import Kind, WireError

TIMEOUT_NS = 10_000_000_000
KEYS = Keys(*(bytes(range(n, n + KEY_BYTES + PREFIX_BYTES)) for n in (0, 100)))
OVERHEAD_BYTES = 4 + TAG_BYTES
PAGES = 1024


@contextmanager
def pair(buffer_bytes=None):
    near, far = socket.socketpair()
    with near, far:
        if buffer_bytes:
            for sock in (near, far):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        yield near, far


def ends(near, far, keys=KEYS):
    return (
        EncryptedStream(near, TIMEOUT_NS, keys, at_source=True),
        EncryptedStream(far, TIMEOUT_NS, keys, at_source=False),
    )


@contextmanager
def meanwhile(work):
    """Do the work in a thread; what it raised is raised here."""
    raised = []

    def body():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    yield
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    assert raised == []


def on_the_wire(*messages):
    """What a source sends, each a list of parts."""
    with pair() as (near, far):
        stream = EncryptedStream(near, TIMEOUT_NS, KEYS, at_source=True)
        for parts in messages:
            stream.send(*parts)
        near.close()
        with far.makefile("rb") as file:
            return file.read()


def taken(data, size_bytes, *, at_source=False):
    """What a stream takes of these bytes, when this many are asked for, or the error."""
    with pair(4 << 20) as (near, far):
        near.sendall(data)
        near.close()
        stream = EncryptedStream(far, TIMEOUT_NS, KEYS, at_source=at_source)
        into = bytearray(size_bytes)
        stream.receive(into)
        return bytes(into)


sizes = st.integers(0, 3000) | st.sampled_from([RECORD_BYTES, 3 * RECORD_BYTES + 5])
asked_for = st.integers(1, 5000) | st.sampled_from([1 << 18, 1 << 20])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(sizes, min_size=1, max_size=4), max_size=6),
    st.lists(asked_for, min_size=1, max_size=5),
)
def test_bytes_come_whole_and_in_order_however_they_are_cut(messages, asked):
    parts = [[os.urandom(size) for size in sizes] for sizes in messages]
    content = b"".join(piece for pieces in parts for piece in pieces)
    asked = [max(size, len(content) // 500) for size in asked]
    with pair(20000) as (near, far):
        source, destination = ends(near, far)

        def send():
            for pieces in parts:
                source.send(*pieces)

        with meanwhile(send):
            got = bytearray()
            while len(got) < len(content):
                into = bytearray(min(asked[0], len(content) - len(got)))
                destination.receive(into)
                got += into
                asked.append(asked.pop(0))
        assert got == content
        assert not destination.readable()


def test_both_ends_send_at_once_and_frames_are_frames():
    with pair() as (near, far):
        source, destination = ends(near, far)
        for number in range(3):
            source.send(wire.pack(Kind.END, 7, number))
            destination.send(wire.pack(Kind.ENDED, 0, number))
        for number in range(3):
            assert destination.expect(Kind.END) == wire.Frame(Kind.END, 7, number)
            assert source.expect(Kind.ENDED) == wire.Frame(Kind.ENDED, 0, number)
        source.send(wire.pack_error("no more"))
        with pytest.raises(PeerError, match="gave up: no more"):
            destination.receive_frame()


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_pages_arrive_where_they_belong_and_nothing_else_changes(stride):
    with GuestMemory("a", PAGES * 4096) as a, GuestMemory("b", PAGES * 4096) as b:
        a.words[:] = np.random.default_rng(1).integers(1, 2**63, a.words.shape, np.uint64)
        numbers = np.arange(3, PAGES, stride, wire.NUMBER)[: wire.GATHER_PAGES]
        # A stretch of neighbours too, as long as what is copied at a time.
        numbers = np.unique(np.concatenate((numbers, np.arange(200, 290, dtype=wire.NUMBER))))
        numbers = numbers[: wire.GATHER_PAGES]
        count = len(numbers)
        with pair(20000) as (near, far):
            source, destination = ends(near, far)

            def send():
                vector = PageVector(a.address)
                vector.numbers[:count] = numbers
                vector.header[:] = wire.pack(Kind.GATHER, count)
                vector.fill(numbers, with_head=True)
                source.send_pages(vector)
                assert vector.left == 0

            with meanwhile(send):
                assert destination.expect(Kind.GATHER).count == count
                vector = PageVector(b.address)
                destination.receive(vector.numbers[:count].data.cast("B"))
                vector.fill(vector.numbers[:count], with_head=False)
                destination.receive_pages(vector)
                assert vector.left == 0
        wanted = np.zeros_like(a.words)
        wanted[numbers] = a.words[numbers]
        assert (b.words == wanted).all()


@contextmanager
def written_all_the_time(memory):
    """A process writes every page over and over, as a vCPU does."""
    parent, value = os.getpid(), 0
    pid = os.fork()
    if not pid:
        while os.getppid() == parent:
            value += 1
            memory.words[:] = value
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_guest_that_writes_while_its_pages_are_sealed_spoils_nothing():
    """A record opens, whatever its pages were at which instant: each byte is read once."""
    seen = set()
    with GuestMemory("a", 64 * 4096) as memory, pair(1 << 20) as (near, far):
        source, destination = ends(near, far)
        into = bytearray(memory.size_bytes)
        with written_all_the_time(memory):
            deadline = time.monotonic() + 10
            while len(seen) < 100:
                assert time.monotonic() < deadline
                with meanwhile(lambda: source.send(memory.bytes)):
                    destination.receive(into)
                seen |= set(np.frombuffer(into, np.uint64)[::512].tolist())


def test_the_wire_shows_nothing_of_what_is_sent():
    page = bytes(4096)
    first, second = (on_the_wire([page] * count) for count in (1, 2))
    assert len(first) == 4096 + OVERHEAD_BYTES
    assert second.startswith(first)  # the same key, number and content: for tests alone
    assert second[len(first) + 4 :] != first[4:]
    assert bytes(16) not in second
    both = on_the_wire([b"a secret of the guest" * 100])
    assert b"secret" not in both
    for key in (KEYS.to_destination, KEYS.to_source):
        assert key[:8] not in both


def records(data):
    """The records of what was on the wire."""
    found = []
    while data:
        size = 4 + int.from_bytes(data[:4], "little")
        found.append(data[:size])
        data = data[size:]
    return found


SENT = [[bytes([n]) * 100] for n in range(4)]
CONTENT = b"".join(parts[0] for parts in SENT)


def test_records_are_taken_in_the_order_in_which_they_were_sealed_or_not_at_all():
    a, b, c, d = records(on_the_wire(*SENT))
    assert taken(a + b + c + d, 400) == CONTENT
    wrong = {
        "dropped": a + c + d,
        "the first dropped": b + c + d,
        "repeated": a + a + b + c + d,
        "replayed later": a + b + a + d,
        "swapped": a + c + b + d,
    }
    for data in wrong.values():
        with pytest.raises(WireError, match="not as the peer sealed it"):
            taken(data, 400)


def test_a_streams_own_records_are_not_taken_back():
    with pytest.raises(WireError, match="record 0"):
        taken(on_the_wire(*SENT), 100, at_source=True)


def test_another_streams_records_are_not_taken():
    data = on_the_wire(*SENT)
    for keys in (
        Keys(bytes(36), KEYS.to_source),
        Keys(KEYS.to_destination[:-1] + b"?", KEYS.to_source),  # only the prefix differs
    ):
        with pair() as (near, far):
            near.sendall(data)
            with pytest.raises(WireError, match="record 0"):
                ends(near, far, keys)[1].receive(bytearray(100))


WHERE = {"length": (0, 4), "content": (4, 104), "tag": (104, 120)}


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_bit_changed_anywhere_is_found(where, data):
    good = on_the_wire(*SENT)
    number = data.draw(st.integers(0, 3))
    at = 120 * number + data.draw(st.integers(where[0], where[1] - 1))
    bad = good[:at] + bytes((good[at] ^ 1 << data.draw(st.integers(0, 7)),)) + good[at + 1 :]
    if number:
        assert taken(bad, 100 * number) == CONTENT[: 100 * number]
    # A length that grew waits for bytes that never come.
    with pytest.raises((WireError, PeerError)):
        taken(bad, 400)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 479))
def test_what_was_cut_short_is_an_error_after_all_that_came_whole(size):
    data = on_the_wire(*SENT)[:size]
    whole = size // 120 * 100
    assert taken(data, whole) == CONTENT[:whole]
    with pytest.raises(PeerError, match="closed"):
        taken(data, 400)


@pytest.mark.parametrize("size", [0, 1, TAG_BYTES, RECORD_BYTES + TAG_BYTES + 1, 2**32 - 1])
def test_a_length_that_no_peer_sends_is_refused_before_anything_is_read(size):
    with pytest.raises(WireError, match=f"record of {size} bytes"):
        taken(size.to_bytes(4, "little") + bytes(100), 50)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2000))
def test_garbage_is_never_taken(data):
    with pytest.raises((WireError, PeerError)):
        taken(data, 1)


def test_what_is_left_of_a_record_can_be_read_without_the_socket():
    with pair() as (near, far):
        source, destination = ends(near, far)
        assert not destination.readable()
        source.send(b"12345")
        assert destination.readable()
        destination.receive(bytearray(2))
        assert destination.readable()
        assert not Stream(far, TIMEOUT_NS).readable()
        destination.receive(bytearray(3))
        assert not destination.readable()


def test_plain_streams_load_no_cipher():
    code = "import sys, testbed.migration.encrypted; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
