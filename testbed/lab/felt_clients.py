"""Clients that feel for a guest from another place of the lab: each is a process of its own."""

from __future__ import annotations

import threading
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Literal, TypeAlias

from testbed.errors import TestbedError
from testbed.guest.workloads import Echo, Media, Web
from testbed.lab.lines import LineSocket, Message
from testbed.measure import ping, session
from testbed.measure.ping_result import summarize
from testbed.measure.series import Series
from testbed.measure.session_result import DownloadResult, EchoResult, MediaResult
from testbed.measure.tcp_session import SessionTest
from testbed.report.felt import PingFelt, SessionFelt

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from testbed.measure.endpoint import Endpoint

MOST_POINTS = 10_000
"""Of a series in a result."""
MOST_SESSION_NS = 24 * 3600 * 10**9
Found: TypeAlias = "Callable[[int], Message]"
"""What a client found, given the instant that times are to count from (CLOCK_MONOTONIC)."""


def run(control: socket.socket, *, client: Callable[[threading.Event], Found]) -> None:
    """Let a client work until the supervisor asks for its report; answers that.

    {"command": "report", "from_ns": ..}; a client that failed has {"trouble": ..} to tell.
    """
    stop = threading.Event()
    found: list[Message | Found] = []

    def work() -> None:
        try:
            found.append(client(stop))
        except (TestbedError, OSError) as error:
            found.append({"trouble": str(error)})

    working = threading.Thread(target=work, daemon=True)
    working.start()
    lines = LineSocket(control)
    while True:
        try:
            message = lines.receive()
        except EOFError:
            return
        if message is not None:
            stop.set()
            working.join()
            what = found[0]
            lines.send(what if isinstance(what, dict) else what(message["from_ns"]))


def ping_client(
    ours: Endpoint, theirs: Endpoint, interval_ns: int, late_after_ns: int, *, by_guest: bool
) -> Callable[[threading.Event], Found]:
    """Pings every `interval_ns`."""
    test = ping.PingTest(count=None, interval_ns=interval_ns, timeout_ns=late_after_ns)

    def measure(stop: threading.Event) -> Found:
        echoes = ping.echo(ours, theirs, test, stop)
        return lambda from_ns: {"ping": asdict(ping_felt(echoes, test, from_ns, by_guest=by_guest))}

    return measure


def ping_felt(
    echoes: ping.Echoes, test: ping.PingTest, from_ns: int, *, by_guest: bool
) -> PingFelt:
    """A ping's result with times counted from an instant; that nothing is answered is one too."""
    sent = len(echoes.sent_ns)
    if not echoes.arrivals:
        outage_ns = echoes.sent_ns[-1] - echoes.sent_ns[0]
        none = Series("round trip", "ns", (), ())
        return PingFelt(
            test.interval_ns, test.timeout_ns, by_guest, sent, 0, 0, sent, outage_ns,
            None, None, None, none,
        )  # fmt: skip
    found = summarize(echoes.what, echoes.sent_ns, echoes.arrivals, test.timeout_ns, echoes.errors)
    return PingFelt(
        interval_ns=test.interval_ns,
        late_after_ns=test.timeout_ns,
        by_guest=by_guest,
        sent=sent,
        received=found.received,
        late=found.late,
        lost=found.lost,
        outage_ns=found.outage_ns,
        median_ns=found.median_ns,
        p99_ns=found.p99_ns,
        maximum_ns=found.maximum_ns,
        rtt=counted_from(found.rtt, from_ns),
    )


def session_client(
    ours: Endpoint, theirs: Endpoint, workload: Web | Media | Echo, seed: int, interval_ns: int
) -> Callable[[threading.Event], Found]:
    """A session with a service of the VM; an echo sends every `interval_ns`."""
    test = SessionTest(workload.port, seed, MOST_SESSION_NS, interval_ns)

    def measure(stop: threading.Event) -> Found:
        found: DownloadResult | MediaResult | EchoResult
        if isinstance(workload, Web):
            found = session.download(ours, theirs, test, stop)
        elif isinstance(workload, Media):
            found = session.media(ours, theirs, test, stop)
        else:
            found = session.echo(ours, theirs, test, stop)
        return lambda from_ns: {"session": asdict(session_felt(found, test, from_ns))}

    return measure


def session_felt(
    found: DownloadResult | MediaResult | EchoResult, test: SessionTest, from_ns: int
) -> SessionFelt:
    """A session's result with times counted from an instant."""
    service: Literal["web", "media", "echo"]
    if isinstance(found, DownloadResult):
        service, gap, received = "web", found.longest_gap, found.received_bytes
        counts, course = {"downloads": found.downloads}, counted_from(found.rate, from_ns, fmean)
    elif isinstance(found, MediaResult):
        service, gap, received = "media", found.longest_gap, found.received_bytes
        counts = {"parts": found.parts, "late": found.late, "missing": found.missing}
        course = counted_from(found.gaps, from_ns)
    else:
        service, gap = "echo", found.longest_interruption
        received = found.answered * test.message_bytes
        counts, course = (
            {"sent": found.sent, "answered": found.answered},
            counted_from(found.rtt, from_ns),
        )
    return SessionFelt(
        service,
        counts,
        received,
        found.wrong_bytes,
        gap.length_ns,
        gap.ended_at_ns - gap.length_ns - from_ns,
        course,
        found.broken,
    )


def counted_from(
    series: Series, from_ns: int, combine: Callable[[Sequence[float]], float] = max
) -> Series:
    """A series with its times counted from an instant; each few points in one if they are too many.

    For round trips and the like the highest stands for the others.
    """
    wide = -(-len(series) // MOST_POINTS) or 1
    begins = range(0, len(series), wide)
    return Series(
        series.name,
        series.unit,
        tuple(series.at_ns[begin] - from_ns for begin in begins),
        tuple(combine(series.values[begin : begin + wide]) for begin in begins),
    )
