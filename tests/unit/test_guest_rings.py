"""A ring is a queue, wherever its records lie."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.guest import layout
from testbed.guest.nic import records
from testbed.guest.nic.rings import HEADER_BYTES, Record, Ring
from testbed.guest.specification import SMALL_PAGE_BYTES


def ring(size: int = 256, start: int = 0) -> Ring:
    positions = memoryview(bytearray(128)).cast("q")
    positions[0] = positions[8] = start
    return Ring(positions, memoryview(bytearray(size)))


@given(
    st.integers(0, 40).map(lambda n: n * 16),
    st.lists(st.one_of(st.none(), st.binary(max_size=270)), max_size=60),
)
def test_a_ring_is_a_queue(start: int, actions: list[bytes | None]) -> None:
    """None takes, bytes are put; what is refused has no room, and is not there."""
    real, model = ring(256, start), deque[Record]()
    for number, payload in enumerate(actions):
        if payload is None:
            record = real.first()
            assert record == (model.popleft() if model else None)
            if record is not None:
                real.drop(record)
        else:
            fits = len(payload) <= real.room()
            one = Record(number, number % 64, number * 10**12, payload)
            assert real.put(*one) is fits
            if fits:
                model.append(one)
        used = sum(HEADER_BYTES + -(-len(one.payload) // 16) * 16 for one in model)
        assert real.room() == 256 - used - HEADER_BYTES
        assert real.waiting() is bool(model)


def test_a_record_may_fill_the_ring_and_no_more() -> None:
    one = ring(256)
    assert not one.put(1, 0, 0, bytes(241))
    assert one.put(1, 0, 0, b"\7" * 240)
    assert not one.put(1, 0, 0)
    record = one.first()
    assert record is not None
    assert record.payload == b"\7" * 240


def test_what_is_no_record_is_told() -> None:
    positions = memoryview(bytearray(128)).cast("q")
    positions[0] = 16
    area = memoryview(bytearray(256))
    area[0] = 200
    with pytest.raises(ValueError, match="no record"):
        Ring(positions, area).first()


def test_the_nic_pages_have_their_parts_and_no_part_touches_another() -> None:
    pages = memoryview(bytearray(layout.NIC_PAGES * SMALL_PAGE_BYTES))
    parts = records.divide(pages)
    assert parts.received.put(1, 2, 3, b"in" * 32000)
    assert parts.to_send.put(1, 2, 3, b"out" * 21000)
    parts.epoch[0] = 5
    parts.table[:] = b"\xee" * len(parts.table)
    again = records.divide(pages)
    assert again.received.first() == (1, 2, 3, b"in" * 32000)
    assert again.to_send.first() == (1, 2, 3, b"out" * 21000)
    assert again.epoch[0] == 5
    assert len(parts.table) == records.CONNECTIONS * records.CONNECTION_BYTES
