"""What an IOChain keeps: a port's cells, and a virtual switch's set of local addresses."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import get_args

from testbed.errors import KernelError
from testbed.kernel.iochain import bpf
from testbed.plan.stages import UPLINK_MASK, Stage

PORT_MAP, SWITCH_MAP = "iochain_port", "iochain_switch"
INCOMING, OUTGOING = 0, 1
DIRECTIONS = (INCOMING, OUTGOING)
STAGE_KINDS: tuple[str, ...] = tuple(kind.kind for kind in get_args(Stage))
ADDRESS_BYTES = 6
MOST_ADDRESSES = 1024
"""Of one virtual switch's ports."""

# The layout is every port's, whatever its policy: programs are replaced, the cells stay.
# Cell 0 is the uplink; then for each direction packets, bytes, and drops by kind of stage.
_UPLINK_CELL = 0
_CELLS_A_DIRECTION = 2 + len(STAGE_KINDS)
_VALUE = struct.Struct(f"={1 + 2 * _CELLS_A_DIRECTION}Q")
UPLINK_AT = 8 * _UPLINK_CELL


def passed_at(direction: int) -> int:
    """Where the packets that passed are counted, in bytes; their bytes in the cell after it."""
    return 8 * (1 + direction * _CELLS_A_DIRECTION)


def dropped_at(direction: int, kind: str) -> int:
    """Where a stage's drops are counted, in bytes."""
    return passed_at(direction) + 8 * (2 + STAGE_KINDS.index(kind))


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction's counters, since the chain was attached.

    A train of TCP segments counts as its packets, its bytes as theirs, headers included; tags
    are not counted. `drops` are by kind of stage, those that dropped nothing left out. What
    `leave`, `team`, `untag` and `carry` drop is mostly the copies that a bridge makes for each
    of its ports: they are filters.
    """

    packets: int
    bytes: int
    drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class ChainCounters:
    """What a port's chain counted, and the uplink that it is pinned to (0: none)."""

    incoming: Direction
    outgoing: Direction
    uplink: int


def create_cells(uplink: int) -> int:
    """A port's map, the port pinned to an uplink; its descriptor.

    Raises:
        KernelError: the kernel refuses.
    """
    return bpf.create_cells(PORT_MAP, _VALUE.pack(uplink, *[0] * (2 * _CELLS_A_DIRECTION)))


def create_addresses() -> int:
    """A virtual switch's map; its descriptor.

    Raises:
        KernelError: the kernel refuses.
    """
    return bpf.create_set(SWITCH_MAP, ADDRESS_BYTES, MOST_ADDRESSES)


class Cells:
    """A port's cells, mapped: read and pinned without a system call.

    Args:
        map_fd: the port's map; it may be closed afterwards.
        target: the port, for messages.

    Raises:
        KernelError: the map can't be mapped.
    """

    def __init__(self, map_fd: int, target: str) -> None:
        try:
            self._memory = mmap.mmap(map_fd, mmap.PAGESIZE)
        except OSError as error:
            raise KernelError("map the counters of", target, str(error.strerror)) from error
        self._target = target

    def counters(self) -> ChainCounters:
        """What has been counted so far."""
        values = _VALUE.unpack_from(self._memory)
        return ChainCounters(_direction(values, INCOMING), _direction(values, OUTGOING), values[0])

    def pin(self, uplink: int) -> None:
        """Have the port's frames leave by this uplink from the next one on (0: by none).

        Raises:
            KernelError: there can be no such uplink.
        """
        if not 0 <= uplink <= UPLINK_MASK:
            cause = f"uplinks are numbered 1 to {UPLINK_MASK}, not {uplink}"
            raise KernelError("pin", self._target, cause)
        struct.pack_into("=Q", self._memory, UPLINK_AT, uplink)

    def close(self) -> None:
        """Let go of the cells; the chain goes on."""
        self._memory.close()

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _direction(values: tuple[int, ...], direction: int) -> Direction:
    at = passed_at(direction) // 8
    drops = zip(STAGE_KINDS, values[at + 2 :], strict=False)
    return Direction(values[at], values[at + 1], {kind: count for kind, count in drops if count})
