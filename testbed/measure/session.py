"""Clients of a VM's workloads on open TCP sessions: downloads, a media stream, echoes.

Their sockets are in a namespace of the caller's choice, not in the VM's. Every byte that comes
is compared with what the VM holds (testbed/content.py). Each runs for a given time and ends by
itself, whatever the VM does; a session that breaks is a result too.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from testbed.content import PART_HEADER, PART_NS, content, part_content
from testbed.errors import MeasurementError
from testbed.measure.series import Series
from testbed.measure.session_result import (
    DownloadResult,
    EchoResult,
    MediaResult,
    longest_gap,
    longest_interruption,
    rate_series,
)
from testbed.measure.tcp_session import Session, wrong_bytes

if TYPE_CHECKING:
    import threading

    from testbed.measure.endpoint import Endpoint
    from testbed.measure.tcp_session import SessionTest

_LARGEST_HEAD_BYTES = 1 << 16


def download(
    source: Endpoint,
    destination: Endpoint,
    test: SessionTest,
    stop: threading.Event | None = None,
) -> DownloadResult:
    """Download a VM's files, one after another on one connection, and compare every byte.

    Args:
        source: where the client is.
        destination: the VM.
        test: the web server's port, how long, and the grain of the series.
        stop: ends it early.

    Raises:
        MeasurementError: no connection, or the answer is not HTTP.
    """
    arrivals: list[tuple[int, int]] = []
    files, wrong = 0, 0
    with Session(source, destination, test, stop) as session:
        while session.goes_on:
            session.send(f"GET /{files} HTTP/1.1\r\nHost: vm\r\n\r\n".encode())
            head, data = _response_head(session)
            size = _content_bytes(head) if head else 0
            got = 0
            while head and got < size and session.goes_on:
                if data:
                    wrong += wrong_bytes(data, content(test.seed, files, got, len(data)))
                    got += len(data)
                    arrivals.append((time.monotonic_ns(), len(data)))
                if got < size:
                    data = session.receive(session.until_ns)
            files += head != b"" and got == size
        ended_ns = time.monotonic_ns()
        times = [at_ns for at_ns, _ in arrivals]
        return DownloadResult(
            files,
            sum(length for _, length in arrivals),
            wrong,
            longest_gap(session.began_ns, times, ended_ns),
            rate_series("download", session.began_ns, ended_ns, arrivals, test.grain_ns),
            session.broken,
        )


def _response_head(session: Session) -> tuple[bytes, bytes]:
    """The head, nothing if none came in time, and what came of the body with it."""
    data = b""
    while session.goes_on and len(data) < _LARGEST_HEAD_BYTES:
        data += session.receive(session.until_ns)
        head, end, rest = data.partition(b"\r\n\r\n")
        if end:
            return head, rest
    return b"", b""


def _content_bytes(head: bytes) -> int:
    lines = head.split(b"\r\n")
    if not lines[0].startswith(b"HTTP/1.1 200 "):
        raise MeasurementError(f"download from the VM: it answers {lines[0][:60]!r}")
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    raise MeasurementError("download from the VM: its answer has no Content-Length")


def media(
    source: Endpoint,
    destination: Endpoint,
    test: SessionTest,
    stop: threading.Event | None = None,
) -> MediaResult:
    """Listen to a VM's media stream; arguments and errors as for `download`.

    Raises:
        MeasurementError: no connection, or what comes is no media stream.
    """
    at: list[int] = []
    late = missing = wrong = received = expected = 0
    data = bytearray()
    with Session(source, destination, test, stop) as session:
        while session.goes_on:
            came = session.receive(session.until_ns)
            now_ns = time.monotonic_ns()
            data += came
            received += len(came)
            while (part := _part(data)) is not None:
                number, due_ns, size = part
                body = bytes(data[PART_HEADER.size : size])
                del data[:size]
                wrong += wrong_bytes(body, part_content(test.seed, number, 0, len(body)))
                missing += number - expected
                expected = number + 1
                late += now_ns - due_ns > PART_NS
                at.append(max(now_ns, at[-1] + 1 if at else 0))
        times = [session.began_ns, *at]
        gaps = tuple(float(b - a) for a, b in zip(times, at, strict=False))
        return MediaResult(
            len(at),
            late,
            missing,
            received,
            wrong,
            longest_gap(session.began_ns, at, time.monotonic_ns()),
            Series("gap between parts", "ns", tuple(at), gaps),
            session.broken,
        )


def _part(data: bytearray) -> tuple[int, int, int] | None:
    """The number, due time and size of the part that `data` begins with, if it is there whole."""
    if len(data) < PART_HEADER.size:
        return None
    number, due_ns, size = PART_HEADER.unpack_from(data)
    if not PART_HEADER.size <= size <= 1 << 32 or number < 0:
        raise MeasurementError("listen to the VM: what it sends is no media stream")
    return (number, due_ns, size) if len(data) >= size else None


def echo(
    source: Endpoint,
    destination: Endpoint,
    test: SessionTest,
    stop: threading.Event | None = None,
) -> EchoResult:
    """Send a small message every `grain_ns` on one connection and compare what comes back.

    Messages are sent on time whether or not those before have come back, as far as the kernel
    takes them. Arguments and errors as for `download`.
    """
    size = test.message_bytes
    sent_ns: list[int] = []
    answered_ns: list[int] = []
    owed: deque[bytes] = deque()
    got = wrong = 0
    with Session(source, destination, test, stop) as session:
        due_ns = session.began_ns
        while session.goes_on:
            now_ns = time.monotonic_ns()
            if now_ns >= due_ns:
                if not owed:  # else the kernel is full: what isn't sent yet comes first
                    owed.append(content(test.seed, 0, len(sent_ns) * size, size))
                    sent_ns.append(now_ns)
                due_ns = max(due_ns + test.grain_ns, now_ns)
            while owed and (count := session.send(owed[0])):
                rest = owed.popleft()[count:]
                if rest:
                    owed.appendleft(rest)
            data = session.receive(due_ns)
            wrong += wrong_bytes(data, content(test.seed, 0, got, len(data)))
            got += len(data)
            at_ns = time.monotonic_ns()
            answered_ns += [at_ns] * (got // size - len(answered_ns))
        rtts = tuple(float(b - a) for a, b in zip(sent_ns, answered_ns, strict=False))
        return EchoResult(
            len(sent_ns),
            len(answered_ns),
            wrong,
            longest_interruption(sent_ns, answered_ns, time.monotonic_ns()),
            Series("round trip", "ns", tuple(sent_ns[: len(rtts)]), rtts),
            session.broken,
        )
