"""What passes a virtual switch's port: two readings of its counters in, rates out.

Sent and received are the adapter's, as in esxtop: what a VM sends is TX, although it is what
the switch's port receives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Direction:
    """Counters of one direction since the port was made.

    Packets are those of a wire; at a port without an IOChain and a queue, trains of segments.
    """

    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class ClassReading:
    """Counters of a traffic class of an uplink, and what waits in its queue now."""

    packets: int
    bytes: int
    dropped: int
    queued_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PortReading:
    """A port at a time of CLOCK_MONOTONIC; `classes` by traffic type, on an uplink with HTB."""

    at_ns: int
    tx: Direction
    rx: Direction
    mtu: int = 0
    link_up: bool = True
    classes: Mapping[str, ClassReading] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """One direction between two readings; `packet_bytes` is the mean size, 0 without any."""

    packets_per_s: float
    bits_per_s: float
    packet_bytes: float
    dropped: int
    dropped_percent: float
    errors: int


@dataclass(frozen=True, slots=True)
class PortRates:
    """A port between two readings."""

    interval_ns: int
    tx: Rates
    rx: Rates
    classes: Mapping[str, Rates]


def port_rates(before: PortReading, after: PortReading) -> PortRates:
    """The rates between two readings of one port.

    A counter that went down belongs to a port made anew meanwhile, and counts from 0.

    Raises:
        ValueError: `after` is not later than `before`.
    """
    interval_ns = after.at_ns - before.at_ns
    if interval_ns <= 0:
        raise ValueError("rates need two readings at different times, the earlier one first")
    nothing = ClassReading(0, 0, 0)
    classes = {}
    for name, now in after.classes.items():
        then = before.classes.get(name, nothing)
        classes[name] = _rates(_direction(then), _direction(now), interval_ns)
    tx = _rates(before.tx, after.tx, interval_ns)
    return PortRates(interval_ns, tx, _rates(before.rx, after.rx, interval_ns), classes)


def _direction(reading: ClassReading) -> Direction:
    return Direction(reading.packets, reading.bytes, reading.dropped)


def _rates(before: Direction, after: Direction, interval_ns: int) -> Rates:
    if after.packets < before.packets or after.bytes < before.bytes:
        before = Direction()
    packets = after.packets - before.packets
    size = after.bytes - before.bytes
    dropped = max(0, after.dropped - before.dropped)
    offered = packets + dropped
    seconds = interval_ns / 1e9
    return Rates(
        packets_per_s=packets / seconds,
        bits_per_s=8 * size / seconds,
        packet_bytes=size / packets if packets else 0.0,
        dropped=dropped,
        dropped_percent=100 * dropped / offered if offered else 0.0,
        errors=max(0, after.errors - before.errors),
    )
