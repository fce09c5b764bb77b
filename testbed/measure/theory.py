"""What Ethernet, IP and TCP leave of a link's rate: the figure to hold a measurement against."""

from __future__ import annotations

ETHERNET_HEADER_BYTES = 14  # IEEE 802.3: two addresses and the type
ETHERNET_OVERHEAD_BYTES = 38  # the header, checksum 4, preamble 8, gap 12
IP_HEADER_BYTES = {4: 20, 6: 40}  # RFC 791, RFC 8200, without options
TCP_HEADER_BYTES = 20  # RFC 9293
TCP_TIMESTAMPS_BYTES = 12  # RFC 7323, padded; Linux has them on


def tcp_payload_bytes(mtu: int, ip_version: int = 4) -> int:
    """Payload of a full TCP segment with timestamps: 1448 at MTU 1500 over IPv4."""
    return mtu - IP_HEADER_BYTES[ip_version] - TCP_HEADER_BYTES - TCP_TIMESTAMPS_BYTES


def tcp_goodput_bps(
    rate_bps: float, mtu: int, ip_version: int = 4, overhead_bytes: int = ETHERNET_OVERHEAD_BYTES
) -> float:
    """TCP payload per second that a link of `rate_bps` can carry: 941.5 Mb/s of 1 Gb/s.

    `overhead_bytes` are added to each MTU: 38 on a real wire (and on the lab's links, whose
    HTB rates are derated to it), 14 where a bare HTB counts.
    """
    return rate_bps * tcp_payload_bytes(mtu, ip_version) / (mtu + overhead_bytes)
