"""The largest packet that passes a path unfragmented, found by sending some."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError
from testbed.measure.icmp import HEADER, IP_HEADER_BYTES, LEAST_PAYLOAD_BYTES
from testbed.measure.ping import MessageTooLongError, PingTest, echo

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.measure.endpoint import Endpoint

ECHOES = PingTest(count=3, interval_ns=20_000_000, dont_fragment=True, timeout_ns=1_000_000_000)
"""Three, as one may be lost for another reason."""
LEAST_WAIT_NS = 200_000_000


def largest(passes: Callable[[int], bool], least: int, most: int) -> int | None:
    """The largest number from `least` to `most` that passes, if all up to it do; None if none."""
    if not passes(least):
        return None
    low, high = least, most + 1  # low passes, high doesn't or isn't asked
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def payload_of(mtu: int, ip_version: int) -> int:
    """What an echo that fills an MTU carries, in bytes."""
    return mtu - HEADER.size - IP_HEADER_BYTES[ip_version]


def find(source: Endpoint, destination: Endpoint, most_payload_bytes: int) -> int:
    """The largest IP packet, in bytes, that passes unfragmented, up to a payload's.

    Raises:
        MeasurementError: not even the smallest echo is answered.
    """
    wait_ns = ECHOES.timeout_ns

    def passes(payload_bytes: int) -> bool:
        nonlocal wait_ns
        test = replace(ECHOES, payload_bytes=payload_bytes, timeout_ns=wait_ns)
        round_trips: list[int] = []
        try:
            echo(source, destination, test, on_reply=lambda r: round_trips.append(r.rtt_ns))
        except MessageTooLongError:
            return False
        if round_trips:  # the answers to larger ones will not take many times as long
            wait_ns = min(wait_ns, max(LEAST_WAIT_NS, 4 * max(round_trips)))
        return bool(round_trips)

    found = largest(passes, LEAST_PAYLOAD_BYTES, most_payload_bytes)
    if found is None:
        raise MeasurementError(
            f"find the MTU from {source} to {destination}: not even small echoes are answered;"
            " check addresses, links and routes of the path"
        )
    return found + HEADER.size + IP_HEADER_BYTES[source.ip_version]
