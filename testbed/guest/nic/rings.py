"""A ring of records in guest memory: one process puts, another takes, nothing is locked.

Both positions count bytes since the ring was zeroed and only ever grow, each written by one side.
Who puts stores the record first and the position after it; who takes reads the position first.
x86 shows stores of one core in their order to all others, and does not let a load overtake an
earlier one, so a record below the position is whole. A position is one aligned 8-byte store.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_HEADER = struct.Struct("<IHHq")
HEADER_BYTES = _HEADER.size
_ALIGN = HEADER_BYTES  # a header then never lies around the end
PUT, TAKEN = 0, 8  # words of a ring's positions, each in a cache line of its own
POSITION_WORDS = 16


class Record(NamedTuple):
    """One record: what it is, of which connection, when it was put (CLOCK_MONOTONIC), bytes."""

    kind: int
    connection: int
    at_ns: int
    payload: bytes


class Ring:
    """A ring over memory that somebody else owns.

    Args:
        positions: 16 signed 64-bit words, all 0 in a fresh ring.
        area: the ring's bytes, a multiple of 16.
    """

    def __init__(self, positions: memoryview, area: memoryview) -> None:
        self._positions, self._area, self._size = positions, area, len(area)

    @property
    def put_position(self) -> int:
        """How far the side that puts is, in bytes since the ring was zeroed."""
        return int(self._positions[PUT])

    @property
    def taken_position(self) -> int:
        """How far the side that takes is."""
        return int(self._positions[TAKEN])

    def room(self) -> int:
        """The payload bytes that a record put now could have; negative: none fits."""
        used = self._positions[PUT] - self._positions[TAKEN]
        return self._size - int(used) - HEADER_BYTES

    def waiting(self) -> bool:
        """Whether there is a record to take."""
        return bool(self._positions[PUT] != self._positions[TAKEN])

    def put(
        self, kind: int, connection: int, at_ns: int, payload: bytes | memoryview = b""
    ) -> bool:
        """Put a record; False, and nothing done, if there is no room for it."""
        put = self._positions[PUT]
        length = len(payload)
        taking = _taken_by(length)
        if put + taking - self._positions[TAKEN] > self._size:
            return False
        start = put % self._size
        _HEADER.pack_into(self._area, start, length, kind, connection, at_ns)
        start = (start + HEADER_BYTES) % self._size
        before_end = min(length, self._size - start)
        self._area[start : start + before_end] = payload[:before_end]
        if length > before_end:
            self._area[: length - before_end] = payload[before_end:]
        self._positions[PUT] = put + taking
        return True

    def first(self) -> Record | None:
        """The oldest record, left where it is; None if there is none.

        Raises:
            ValueError: what lies there is no record: this is not the memory that it should be.
        """
        taken = self._positions[TAKEN]
        there = self._positions[PUT] - taken
        if not there:
            return None
        start = taken % self._size
        length, kind, connection, at_ns = _HEADER.unpack_from(self._area, start)
        if not 0 <= _taken_by(length) <= there <= self._size:
            raise ValueError(f"a ring of the guest holds no record at position {taken}")
        start = (start + HEADER_BYTES) % self._size
        payload = bytes(self._area[start : start + length])
        if len(payload) < length:
            payload += bytes(self._area[: length - len(payload)])
        return Record(kind, connection, at_ns, payload)

    def drop(self, record: Record) -> None:
        """Take away the oldest record, as `first` returned it: its room is free again."""
        self._positions[TAKEN] += _taken_by(len(record.payload))


def _taken_by(length: int) -> int:
    return HEADER_BYTES + -(-length // _ALIGN) * _ALIGN
