"""Echo requests at intervals down to 1 ms, each with its own monotonic times.

An own sender, as iputils isn't in Debian's base system and its `-i 0.01` sends every 16 ms.
The kernel answers a ping: it shows how long the network was away, not the vCPUs.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import InputError, MeasurementError
from testbed.measure.endpoint import require_same_ip_version
from testbed.measure.icmp import (
    HEADER,
    IP_HEADER_BYTES,
    LEAST_PAYLOAD_BYTES,
    decode_reply,
    encode_request,
    open_socket,
    received_ttl,
)
from testbed.measure.ping_result import PingResult, summarize
from testbed.measure.socket_errors import arrival_ns, next_error

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from testbed.measure.endpoint import Endpoint

LEAST_INTERVAL_NS = 1_000_000
TRANSIENT = frozenset({errno.ENOBUFS, errno.EAGAIN})
"""The link's queue is full: this echo is lost, as it would be in a switch."""


@dataclass(frozen=True, slots=True)
class PingTest:
    """`count` echoes, `interval_ns` apart; without a count until the caller's event is set.

    `payload_bytes` is ICMP's payload (56 in iputils; MTU 1500 holds 1472 over IPv4, 1452 over
    IPv6). An answer later than `timeout_ns` is late, none by then after the last echo is lost.

    Raises:
        InputError: a number out of range.
    """

    count: int | None = 10
    interval_ns: int = 100_000_000
    payload_bytes: int = 56
    dont_fragment: bool = False
    timeout_ns: int = 1_000_000_000

    def __post_init__(self) -> None:
        bounds = (
            ("count", self.count, 1, 10**7),
            ("interval in ns", self.interval_ns, LEAST_INTERVAL_NS, 3600 * 10**9),
            ("payload in bytes", self.payload_bytes, LEAST_PAYLOAD_BYTES, 65000),
            ("timeout in ns", self.timeout_ns, LEAST_INTERVAL_NS, 3600 * 10**9),
        )
        for name, value, least, most in bounds:
            if value is not None and not least <= value <= most:
                raise InputError(f"ping {name} {value}: give {least} to {most}")


class MessageTooLongError(MeasurementError):
    """An echo may not be fragmented and doesn't fit; `mtu` is what does, 0 if nobody said.

    `reported_by` is the router that said so, None for this host.
    """

    def __init__(self, text: str, mtu: int, reported_by: str | None) -> None:
        self.mtu, self.reported_by = mtu, reported_by
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it arrives: to which echo, its size as ICMP message, TTL and round trip."""

    number: int
    message_bytes: int
    ttl: int | None
    rtt_ns: int


@dataclass(frozen=True, slots=True)
class Echoes:
    """What was sent when, what arrived as (number, time), and what the network said of others."""

    what: str
    sent_ns: Sequence[int]
    arrivals: Sequence[tuple[int, int]]
    errors: Mapping[str, int]


def measure(
    source: Endpoint, destination: Endpoint, test: PingTest, stop: threading.Event | None = None
) -> PingResult:
    """Pings `destination` from `source`; an event that is set ends it early.

    Raises:
        InputError, MeasurementError: as `echo`; or not one echo was answered.
    """
    got = echo(source, destination, test, stop)
    return summarize(got.what, got.sent_ns, got.arrivals, test.timeout_ns, got.errors)


def echo(
    source: Endpoint,
    destination: Endpoint,
    test: PingTest,
    stop: threading.Event | None = None,
    on_reply: Callable[[Reply], None] | None = None,
) -> Echoes:
    """As `measure`, without a judgement: nothing answered is no error. Tells of each answer.

    Raises:
        InputError: neither a count nor an event would ever end it.
        MessageTooLongError: a message that mustn't be fragmented exceeds the path's MTU.
        MeasurementError: the namespace, address or device isn't there, or no route leads.
    """
    if test.count is None and stop is None:
        raise InputError("ping without a count never ends; give a count")
    version = require_same_ip_version(source, destination)
    opened = open_socket(source, destination, dont_fragment=test.dont_fragment)
    with opened:
        run = _Run(opened, version, test, f"ping from {source} to {destination}", on_reply)
        run.send_all(stop)
        run.receive_until(time.monotonic_ns() + test.timeout_ns, until_all=True)
    return Echoes(run.what, run.sent_ns, run.arrivals, run.errors)


@dataclass(slots=True)
class _Run:
    opened: socket.socket
    version: int
    test: PingTest
    what: str
    on_reply: Callable[[Reply], None] | None
    token: bytes = field(default_factory=lambda: secrets.token_bytes(8))
    identifier: int = field(default_factory=lambda: secrets.randbelow(1 << 16))
    sent_ns: list[int] = field(default_factory=list)
    arrivals: list[tuple[int, int]] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    errors: dict[str, int] = field(default_factory=dict)

    def send_all(self, stop: threading.Event | None) -> None:
        due_ns = time.monotonic_ns()
        while self.test.count is None or len(self.sent_ns) < self.test.count:
            if stop is not None and stop.is_set():
                return
            self.send()
            # After a stall the echoes missed are not sent in a burst.
            due_ns = max(due_ns + self.test.interval_ns, time.monotonic_ns())
            self.receive_until(due_ns, until_all=False)

    def send(self) -> None:
        number = len(self.sent_ns)
        request = encode_request(
            self.version, self.identifier, number, self.token, self.test.payload_bytes
        )
        self.sent_ns.append(time.monotonic_ns())
        try:
            self.opened.send(request)
        except OSError as error:
            if error.errno not in TRANSIENT:
                queued = next_error(self.opened)  # the same error, with the path's MTU
                self.note(error.errno or errno.EIO, queued.mtu if queued else 0)

    def note(self, code: int, mtu: int = 0, reported_by: str | None = None) -> None:
        """Counts an error that a later echo may not meet; raises what no echo can escape."""
        if code == errno.EMSGSIZE:
            size = self.test.payload_bytes + HEADER.size + IP_HEADER_BYTES[self.version]
            limit = f"; the path's MTU is {mtu}" if mtu else ""
            raise MessageTooLongError(
                f"{self.what}: message too long: {size} bytes may not be fragmented{limit}; "
                "send fewer, or raise the MTU all along the path",
                mtu,
                reported_by,
            )
        cause = os.strerror(code)
        self.errors[cause] = self.errors.get(cause, 0) + 1

    def receive_until(self, deadline_ns: int, *, until_all: bool) -> None:
        """Takes in answers and errors until a time, or until nothing is missing."""
        while not (until_all and len(self.answered) == len(self.sent_ns)):
            left_ns = max(0, deadline_ns - time.monotonic_ns())
            # select() waits to the microsecond, poll() and epoll to the millisecond; it
            # reports a queued error as readable
            if not select.select([self.opened], [], [], left_ns / 1e9)[0]:
                return
            self.take_in()

    def take_in(self) -> None:
        while (found := next_error(self.opened)) is not None:
            self.note(found.number, found.mtu, found.offender)
        while True:
            try:
                packet, ancillary, _, _ = self.opened.recvmsg(1 << 16, 256)
            except BlockingIOError:
                return
            except OSError as error:  # an error of an earlier echo; its details are queued
                self.note(error.errno or errno.EIO)
                return
            number = decode_reply(self.version, packet, self.token)
            if number is not None and number < len(self.sent_ns):
                self.arrive(number, packet, ancillary)

    def arrive(self, number: int, packet: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        at_ns = arrival_ns(ancillary)
        self.arrivals.append((number, at_ns))
        self.answered.add(number)
        if self.on_reply is not None:
            size = len(packet) - (IP_HEADER_BYTES[4] if self.version == 4 else 0)
            ttl = received_ttl(self.version, packet, ancillary)
            self.on_reply(Reply(number, size, ttl, max(0, at_ns - self.sent_ns[number])))
