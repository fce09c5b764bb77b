"""Frames: what is packed is unpacked, and nothing that a peer sends is trusted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.migration import wire
from testbed.migration.wire import Frame, Kind, Resumed, WireError

PAGES = 262144
int64 = st.integers(-(2**63), 2**63 - 1)


@given(st.sampled_from(list(Kind)), st.integers(1, 256), int64)
def test_headers_round_trip(kind, count, value):
    assert wire.unpack(wire.pack(kind, count, value)) == Frame(kind, count, value)


@given(st.binary(min_size=wire.HEADER_BYTES, max_size=wire.HEADER_BYTES))
def test_garbage_is_refused_or_within_every_limit(data):
    try:
        frame = wire.unpack(data)
    except WireError:
        return
    assert frame.kind is not Kind.RUN or 0 < frame.count <= wire.RUN_PAGES
    assert frame.kind is not Kind.GATHER or 0 < frame.count <= wire.GATHER_PAGES
    assert frame.kind is not Kind.ERROR or 0 < frame.count <= wire.ERROR_BYTES


@pytest.mark.parametrize("kind", [Kind.RUN, Kind.GATHER, Kind.ERROR])
@pytest.mark.parametrize("count", [0, 4097, 2**32 - 1])
def test_lengths_beyond_the_limits_are_refused(kind, count):
    with pytest.raises(WireError, match=kind.name):
        wire.unpack(wire.pack(kind, count))


@given(st.integers(1, wire.RUN_PAGES), int64)
def test_a_run_is_accepted_exactly_if_it_lies_in_memory(count, first):
    if first >= 0 and first + count <= PAGES:
        wire.check_run(Frame(Kind.RUN, count, first), PAGES)
    else:
        with pytest.raises(WireError):
            wire.check_run(Frame(Kind.RUN, count, first), PAGES)


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, PAGES), min_size=1, max_size=512))
def test_a_gather_is_accepted_exactly_if_it_ascends_in_memory(numbers):
    pages = np.array(numbers, wire.NUMBER)
    if max(numbers) < PAGES and sorted(set(numbers)) == numbers:
        wire.check_gather(pages, PAGES)
    else:
        with pytest.raises(WireError):
            wire.check_gather(pages, PAGES)


@given(st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=wire.GATHER_PAGES))
def test_zero_pages_round_trip(numbers):
    pages = np.array(sorted(numbers), wire.NUMBER)
    data = wire.pack_zero(pages)
    frame = wire.unpack(data[: wire.HEADER_BYTES])
    body = data[wire.HEADER_BYTES :]
    assert (frame.kind, frame.count * 8) == (Kind.ZERO, len(body))
    np.testing.assert_array_equal(wire.unpack_zero(body, PAGES), pages)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), min_size=1))
def test_zero_pages_are_in_memory_ascending_and_few_or_refused(runs):
    try:
        pages = wire.unpack_zero(np.array(runs, wire.NUMBER).tobytes(), PAGES)
    except WireError:
        return
    assert 0 < len(pages) <= wire.GATHER_PAGES
    assert pages[-1] < PAGES
    assert (pages[1:] > pages[:-1]).all()


@given(st.builds(Resumed, int64, int64, int64, int64, int64))
def test_resumed_round_trips(resumed):
    data = wire.pack_resumed(resumed)
    assert wire.unpack(data[: wire.HEADER_BYTES]).kind is Kind.RESUMED
    assert len(data) == wire.HEADER_BYTES + wire.RESUMED_BYTES
    assert wire.unpack_resumed(data[wire.HEADER_BYTES :]) == resumed


@given(st.text())
def test_errors_are_cut_to_their_most(text):
    data = wire.pack_error(text * 100)
    frame = wire.unpack(data[: wire.HEADER_BYTES])
    assert frame.count == len(data) - wire.HEADER_BYTES <= wire.ERROR_BYTES
