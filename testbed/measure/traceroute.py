"""The routers on a path: datagrams whose time to live ends at one router after the other."""

from __future__ import annotations

import errno
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import InputError, MeasurementError
from testbed.measure.endpoint import require_same_ip_version, socket_in
from testbed.measure.socket_errors import ORIGIN_LOCAL, SocketError, next_error, report_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.measure.endpoint import Endpoint

FIRST_PORT = 33434  # as every traceroute since Van Jacobson's: nobody listens there
PAYLOAD = bytes(32)
# RFC 792 and RFC 4443: (IP version, type, code)
_PASSED_AWAY = {(4, 11, 0), (6, 3, 0)}
_NO_SUCH_PORT = {(4, 3, 3), (6, 1, 4)}
_MARKS = {
    (4, 3, 0): "!N", (4, 3, 1): "!H", (4, 3, 2): "!P", (4, 3, 4): "!F", (4, 3, 13): "!X",
    (6, 1, 0): "!N", (6, 1, 1): "!X", (6, 1, 3): "!H",
}  # fmt: skip
"""What traceroute writes for a router that doesn't pass a packet on."""


@dataclass(frozen=True, slots=True)
class TraceTest:
    """Up to `most_hops` routers, `probes` datagrams for each, none awaited for `timeout_ns`.

    Raises:
        InputError: a number out of range.
    """

    most_hops: int = 30
    probes: int = 3
    timeout_ns: int = 2_000_000_000

    def __post_init__(self) -> None:
        bounds = (
            ("hops", self.most_hops, 1, 255),
            ("probes", self.probes, 1, 10),
            ("timeout in ns", self.timeout_ns, 1_000_000, 60 * 10**9),
        )
        for name, value, least, most in bounds:
            if not least <= value <= most:
                raise InputError(f"traceroute {name} {value}: give {least} to {most}")


@dataclass(frozen=True, slots=True)
class Probe:
    """One datagram: who answered (None: nobody), after how long; `mark` is traceroute's (`!H`)."""

    address: str | None = None
    rtt_ns: int | None = None
    mark: str = ""
    arrived: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """The probes of one time to live."""

    ttl: int
    probes: tuple[Probe, ...]

    @property
    def last(self) -> bool:
        """Whether the destination has been reached, or a router knows no way on."""
        return any(probe.arrived or probe.mark for probe in self.probes)


def trace(
    source: Endpoint,
    destination: Endpoint,
    test: TraceTest,
    on_hop: Callable[[Hop], None] | None = None,
) -> tuple[Hop, ...]:
    """The routers from `source` to `destination`, which answers last; tells of each.

    Linux answers six of these at once, then one a second to each asker: a second trace soon
    after the first may miss some.

    Raises:
        MeasurementError: the namespace, address or device isn't there, or no route leads.
    """
    version = require_same_ip_version(source, destination)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    what = f"trace the route from {source} to {destination}"
    hops: list[Hop] = []
    with socket_in(source.netns_path, family, socket.SOCK_DGRAM, 0) as opened:
        run = _Run(opened, version, destination.address, what, test.timeout_ns)
        try:
            opened.setblocking(False)
            report_errors(opened)
            if source.device:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, source.device.encode())
            opened.bind((source.address, 0))
        except OSError as error:
            raise MeasurementError(f"{what}: {error.strerror}; is that adapter there?") from error
        for ttl in range(1, test.most_hops + 1):
            hops.append(Hop(ttl, tuple(run.probe(ttl) for _ in range(test.probes))))
            if on_hop is not None:
                on_hop(hops[-1])
            if hops[-1].last:
                break
    return tuple(hops)


@dataclass(slots=True)
class _Run:
    opened: socket.socket
    version: int
    destination: str
    what: str
    timeout_ns: int
    port: int = FIRST_PORT - 1

    def probe(self, ttl: int) -> Probe:
        self.port += 1
        while next_error(self.opened) is not None:
            pass  # a late answer to an earlier probe would be told again by sendto
        if self.version == 4:
            self.opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        else:
            self.opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        sent_ns = time.monotonic_ns()
        try:
            self.opened.sendto(PAYLOAD, (self.destination, self.port))
        except OSError as error:
            raise MeasurementError(
                f"{self.what}: {error.strerror}; is there a route and a gateway?"
            ) from error
        answer = self.answer(sent_ns + self.timeout_ns)
        return Probe() if answer is None else judge(self.version, answer, sent_ns)

    def answer(self, deadline_ns: int) -> SocketError | None:
        """What came back for the newest probe; earlier ones' answers are let go."""
        while True:
            left_ns = max(0, deadline_ns - time.monotonic_ns())
            if not select.select([self.opened], [], [], left_ns / 1e9)[0]:
                return None
            found = next_error(self.opened)
            if found is None:
                self.take_error()
            elif found.port == self.port:
                return found

    def take_error(self) -> None:
        """Readable, but the queue is empty: a pending error or a datagram, neither is ours."""
        try:
            self.opened.recv(1)
        except OSError:
            return


def judge(ip_version: int, answer: SocketError, sent_ns: int) -> Probe:
    """What an answer to a datagram sent at a time says."""
    if answer.origin == ORIGIN_LOCAL:  # nobody answers for the next hop's address
        mark = "!H" if answer.number == errno.EHOSTUNREACH else f"!{answer.number}"
        return Probe(None, None, mark)
    kind = (ip_version, answer.icmp_type, answer.icmp_code)
    rtt_ns = max(0, answer.at_ns - sent_ns)
    if kind in _PASSED_AWAY:
        return Probe(answer.offender, rtt_ns)
    if kind in _NO_SUCH_PORT:
        return Probe(answer.offender, rtt_ns, arrived=True)
    return Probe(answer.offender, rtt_ns, _MARKS.get(kind, f"!{answer.icmp_code}"))
