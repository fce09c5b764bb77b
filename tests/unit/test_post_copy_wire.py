"""Frames after resume: what is sent is what is received, and nothing else is taken."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.migration import post_copy_wire as wire
from testbed.migration.post_copy_wire import Fetched, Kind
from testbed.migration.stream import GaveUpError
from testbed.migration.wire import WireError, pack_error

PAGES = 5000


class Bytes:
    """As a stream, from which these come."""

    def __init__(self, data):
        self._data = memoryview(bytes(data))

    def receive(self, into):
        if len(into) > len(self._data):
            raise EOFError
        into[:] = self._data[: len(into)]
        self._data = self._data[len(into) :]


def everywhere():
    return np.ones(PAGES, np.bool_)


@given(st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=200))
def test_demands_arrive(pages):
    stream, found = Bytes(wire.pack_demand(pages)), []
    while len(found) < len(pages):
        head = wire.receive_head(stream, (Kind.DEMAND,))
        found += wire.receive_numbers(stream, head.count, everywhere()).tolist()
    assert found == sorted(pages)


def test_pages_carry_their_contents():
    memory = np.arange(PAGES * 512, dtype=np.uint64)
    pages = np.array([3, 4, 17])
    data = b"".join(wire.pages_frame(pages, memoryview(memory).cast("B")))
    stream, body = Bytes(data), bytearray(3 * 4096)
    assert wire.receive_head(stream, (Kind.PAGES,)).count == 3
    assert wire.receive_numbers(stream, 3, everywhere()).tolist() == [3, 4, 17]
    stream.receive(body)
    assert (np.frombuffer(body, np.uint64).reshape(3, 512)[:, 0] == pages * 512).all()


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=11, max_size=11),
    st.text(max_size=60, alphabet=st.characters(codec="utf-8")),
)
def test_what_was_fetched_arrives(numbers, cause):
    fetched = Fetched(*numbers, cause)
    assert wire.unpack_fetched(wire.pack_fetched(fetched)) == fetched


@given(st.binary(min_size=16, max_size=16))
def test_a_head_is_one_of_ours_or_refused(data):
    try:
        head = wire.unpack_head(data)
    except WireError:
        return
    assert wire.pack_head(head.kind, head.count, head.value) == data
    assert head.count <= 4096


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (struct.pack("<IIq", 77, 0, 0), "unknown kind 0x4d"),
        (wire.pack_head(Kind.PAGES, 0), "PAGES of 0"),
        (wire.pack_head(Kind.PAGES, wire.MOST_PAGES + 1), "at most 64"),
        (wire.pack_head(Kind.DEMAND, 1 << 30), "at most 64"),
        (wire.pack_head(Kind.LAST, 1), "LAST of 1"),
        (wire.pack_head(Kind.WHOLE, 5000), "WHOLE of 5000"),
        (wire.pack_head(Kind.DEMAND, 1), "DEMAND from the end that never sends it"),
    ],
)
def test_heads_that_are_refused(head, problem):
    with pytest.raises(WireError, match=problem):
        wire.receive_head(Bytes(head), (Kind.PAGES, Kind.LAST))


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ([5, 5], "do not ascend"),
        ([6, 5], "do not ascend"),
        ([PAGES], "not all of those that were missing"),
        ([2**32 - 1], "not all of those that were missing"),
        ([7, 8], "not all of those that were missing"),
    ],
)
def test_numbers_that_are_refused(numbers, problem):
    known = everywhere()
    known[8] = False
    data = np.array(numbers, "<u4").tobytes()
    with pytest.raises(WireError, match=problem):
        wire.receive_numbers(Bytes(data), len(numbers), known)


@pytest.mark.parametrize("body", [b"", bytes(87), bytes(88 + 257), b"\xff" * 88])
def test_a_whole_that_is_none_is_refused(body):
    with pytest.raises(WireError, match="WHOLE"):
        wire.unpack_fetched(body)


def test_an_end_that_gives_up_says_why():
    with pytest.raises(GaveUpError, match="vCPU 1 has died"):
        wire.receive_head(Bytes(pack_error("vCPU 1 has died")), (Kind.PAGES,))
