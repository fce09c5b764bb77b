"""What HTB is told, so that a link carries what Ethernet of its rate carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.measure.theory import ETHERNET_HEADER_BYTES, ETHERNET_OVERHEAD_BYTES
from testbed.plan.policies import Shape

if TYPE_CHECKING:
    from testbed.topology.policy import TrafficShaping

LEAST_BURST_BYTES = 16 * 1024
FULL_BURST_BYTES = 640_000


def htb_rate_bytes_per_s(rate_bps: int, mtu: int) -> int:
    """The rate that HTB must enforce on the bytes it sees, bytes per second.

    A full frame is MTU + 38 bytes of line time and MTU + 14 bytes to HTB (design.md), so
    1 Gb/s at MTU 1500 carries 941 Mb/s of TCP payload with timestamps, as the real one does.
    """
    return rate_bps * (mtu + ETHERNET_HEADER_BYTES) // (8 * (mtu + ETHERNET_OVERHEAD_BYTES))


def burst_bytes(rate_bps: int) -> int:
    """Bytes that HTB lets pass at once.

    Half a millisecond of the link, 16 KiB at least (measured: smaller ones lose 5-9 % of a
    link; 256 KiB at 10 Gb/s still 1 % on a busy machine, which is later than that to refill
    the bucket); above 10 Gb/s it is the same 640 kB, and then a fifth of a millisecond.
    """
    half_ms = rate_bps // 8 // 2000
    fifth_ms = rate_bps // 8 // 5000
    return max(LEAST_BURST_BYTES, min(half_ms, FULL_BURST_BYTES), fifth_ms)


def shape(netns: str, dev: str, rate_bps: int, mtu: int, wire: str) -> Shape:
    """The shaping step of one end of a wire."""
    rate = htb_rate_bytes_per_s(rate_bps, mtu)
    return Shape(netns, dev, rate_bps, mtu, rate, burst_bytes(rate_bps), wire)


def port_shape(netns: str, dev: str, mtu: int, shaping: TrafficShaping, wire: str) -> Shape:
    """A port's traffic shaping: the average, and bursts at the peak.

    A virtual port has no preamble and gap, so the rates are those of the frames themselves.
    """
    return Shape(
        netns, dev, shaping.average_bps, mtu, shaping.average_bps // 8, shaping.burst_bytes, wire,
        ceil_bytes_per_s=shaping.peak_bps // 8, queue_bytes=queue_bytes(0, mtu, RING_FRAMES, 0),
    )  # fmt: skip


RING_FRAMES = 1000
"""A NIC's ring, and the queue of a switch's port, unless the file says otherwise."""


def queue_bytes(rate_bps: int, mtu: int, frames: int | None, longest_rtt_ns: int) -> int:
    """How much may wait to be sent by a link's end.

    Unless a number of frames is given: 1000 full ones, and the bandwidth-delay product of the
    lab's longest path, as a network of that length is built with, or TCP could not fill it. The
    kernel's own queue is 1000 packets of up to 64 KB each: at 1 Gb/s half a second.
    """
    full = mtu + ETHERNET_HEADER_BYTES
    if frames is not None:
        return frames * full
    return RING_FRAMES * full + rate_bps * longest_rtt_ns // (8 * 10**9)


_FASTEST_BPS = 10**11
_LEAST_PACKET_BYTES = 64
_MOST_PACKETS = 10**7


def delayed_packets(rate_bps: int | None, delay_ns: int) -> int:
    """How many packets a wire may hold: twice its bandwidth-delay product in small packets.

    An unshaped wire is sized for 100 Gb/s in full frames; never fewer than 1000.
    """
    size = _LEAST_PACKET_BYTES if rate_bps is not None else 1500
    in_flight = (rate_bps or _FASTEST_BPS) * delay_ns // (8 * 10**9 * size)
    return max(1000, min(2 * in_flight, _MOST_PACKETS))
