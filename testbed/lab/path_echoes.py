"""Echoes between the vMotion adapters of two hosts, both ways, by a process of its own.

The supervisor has one thread and must not wait. The sockets are made in the hosts'
namespaces, so what answers is the way that vMotion takes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError
from testbed.lab.lines import LineSocket
from testbed.measure.path_mtu import LEAST_WAIT_NS, payload_of
from testbed.measure.ping import MessageTooLongError, PingTest, echo

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from testbed.measure.endpoint import Endpoint

TRIES = 3
"""Of an echo that may be lost for another reason than what is asked."""
FIRST = PingTest(count=1, interval_ns=1_000_000, timeout_ns=1_000_000_000)
"""It waits for the neighbour's address as well; longer than that no round trip is."""
MORE = 4
"""Echoes whose round trips count, 1 ms apart."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back one way. `rtts_ns` is empty if nothing did; `cause` says what is known of why.

    `full` is whether a packet of the whole MTU came through unfragmented; if not, `narrow_mtu` is
    what a hop said that it passes (0: none said).
    """

    rtts_ns: tuple[int, ...]
    full: bool
    narrow_mtu: int = 0
    cause: str = ""


def ask(source: Endpoint, destination: Endpoint, mtu: int) -> Answers:
    """Round trips of small packets, and whether one of `mtu` bytes passes."""
    try:
        first, cause = _until_answered(source, destination, FIRST)
        if not first:
            return Answers((), full=False, cause=cause)
        wait_ns = min(FIRST.timeout_ns, max(LEAST_WAIT_NS, 4 * first[0]))
        more = _echoes(source, destination, replace(FIRST, count=MORE, timeout_ns=wait_ns))[0]
        full = replace(
            FIRST,
            payload_bytes=payload_of(mtu, source.ip_version),
            dont_fragment=True,
            timeout_ns=wait_ns,
        )
        rtts_ns = tuple(more or first)
        try:
            answered, cause = _until_answered(source, destination, full)
        except MessageTooLongError as error:
            return Answers(rtts_ns, full=False, narrow_mtu=error.mtu)
        return Answers(rtts_ns, full=bool(answered), cause="" if answered else cause)
    except MeasurementError as error:
        return Answers((), full=False, cause=str(error))


def _until_answered(
    source: Endpoint, destination: Endpoint, test: PingTest
) -> tuple[list[int], str]:
    cause = ""
    for _ in range(TRIES):
        rtts_ns, said = _echoes(source, destination, test)
        cause = said or cause
        if rtts_ns:
            return rtts_ns, ""
    return [], cause


def _echoes(source: Endpoint, destination: Endpoint, test: PingTest) -> tuple[list[int], str]:
    """The round trips, and what the network said of the rest."""
    rtts_ns: list[int] = []
    got = echo(source, destination, test, on_reply=lambda reply: rtts_ns.append(reply.rtt_ns))
    return rtts_ns, ", ".join(got.errors)


def run(control: socket.socket, *, ways: Sequence[tuple[Endpoint, Endpoint, int]]) -> None:
    """Ask all ways, (from, to, MTU), at once, and tell the answers in their order."""
    with ThreadPoolExecutor(len(ways)) as pool:
        found = list(pool.map(lambda way: ask(*way), ways))
    LineSocket(control).send({"answers": [asdict(one) for one in found]})
