"""Bitmaps say exactly which pages are still to come, in as many bytes as published."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.migration.bitmap import Encoding, decode, encode, most_bytes
from testbed.migration.wire import WireError

counts = st.integers(1, 5000)


@st.composite
def memories(draw):
    page_count = draw(counts)
    return page_count, np.array(sorted(draw(st.sets(st.integers(0, page_count - 1)))), np.int64)


@given(memories(), st.booleans())
def test_what_is_encoded_is_decoded(memory, compacted):
    page_count, pages = memory
    encoding, data = encode(pages, page_count, compacted=compacted)
    assert len(data) <= most_bytes(page_count)
    np.testing.assert_array_equal(decode(encoding, data, page_count), pages)
    if not compacted:
        assert len(data) == -(-page_count // 8)


@given(st.sampled_from([0, 1, 2, 3]), st.binary(max_size=200), counts)
def test_garbage_is_refused_or_tells_of_pages_that_there_are(encoding, data, page_count):
    try:
        pages = decode(encoding, data, page_count)
    except WireError:
        return
    assert (pages[1:] > pages[:-1]).all()
    if len(pages):
        assert pages[0] >= 0
        assert pages[-1] < page_count


@given(st.sets(st.integers(0, 9 * (3 << 20)), max_size=50))
def test_a_full_bitmap_of_several_parts_is_decoded(numbers):
    pages = np.array(sorted(numbers), np.int64)
    page_count = 9 * (3 << 20) + 1
    np.testing.assert_array_equal(
        decode(*encode(pages, page_count, compacted=False), page_count), pages
    )


def test_full_is_32_kb_for_each_gb():
    """Facts row 39: 6 TB are 192 MB."""
    gib = (1 << 30) // 4096
    assert len(encode(np.arange(5), gib, compacted=False)[1]) == 32 << 10
    assert len(encode(np.arange(0), 6 * 1024 * gib, compacted=False)[1]) == 192 << 20


def test_compacted_is_as_long_as_what_remains_whatever_the_vm_s_size():
    pages = np.sort(np.random.default_rng(1).integers(0, 24 << 28, 1000, np.int64))
    pages = np.unique(pages)
    encoding, data = encode(pages, 24 << 28, compacted=True)
    assert encoding is Encoding.COMPACTED
    assert len(data) < 5 * len(pages)
    np.testing.assert_array_equal(decode(encoding, data, 24 << 28), pages)


def test_compacted_is_never_longer_than_full():
    pages = np.arange(0, 1 << 16, 2)
    encoding, data = encode(pages, 1 << 16, compacted=True)
    assert (encoding, len(data)) == (Encoding.FULL, 8192)


@pytest.mark.parametrize(
    "data",
    [b"\x00", b"\x80", b"\x00\x80", b"\x00\x00\x00\x00", b"\xff" * 5 + b"\x01\x00", b"\x64\x00"],
    ids=["half a run", "half a number", "a cut number", "touching", "too long", "beyond"],
)
def test_a_compacted_bitmap_that_is_none_is_refused(data):
    with pytest.raises(WireError):
        decode(Encoding.COMPACTED, data, 100)
