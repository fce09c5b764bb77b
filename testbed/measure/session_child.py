"""A client of a VM (session.py) as a process of its own, in the client's namespace.

Several run at a time, and none keeps another, or its caller, from looking at the clock.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from testbed.errors import MeasurementError, TestbedError
from testbed.measure import session
from testbed.measure.endpoint import Endpoint
from testbed.measure.processes import running
from testbed.measure.session_result import (
    DownloadResult,
    EchoResult,
    MediaResult,
    SessionResult,
    from_json,
    to_json,
)
from testbed.measure.tcp_session import SessionTest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

T = TypeVar("T", bound="SessionResult")
_START_NS = 30 * 10**9  # to start, and to connect
_ANSWER_NS = 30 * 10**9  # to say what it found, after its time
_CLIENTS: tuple[tuple[type[SessionResult], Callable[..., SessionResult]], ...] = (
    (DownloadResult, session.download),
    (MediaResult, session.media),
    (EchoResult, session.echo),
)
_OPEN = b"open\n"
_CODE = "import sys; from testbed.measure.session_child import main; main(sys.argv[1])"


class Client(Generic[T]):
    """A client that runs. Its connection is open when this is given out."""

    def __init__(
        self, kind: type[T], test: SessionTest, process: subprocess.Popen[bytes], output: int
    ) -> None:
        self._kind, self._process, self._output = kind, process, output
        self._said = b""
        while _OPEN not in self._said:
            if not self._read(time.monotonic_ns() + _START_NS):
                raise self._trouble("said nothing")
        self._until_ns = time.monotonic_ns() + test.duration_ns + _ANSWER_NS

    def stop(self) -> None:
        """Have it end before its time."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def result(self) -> T:
        """What it found; waits until its time is over.

        Raises:
            MeasurementError: it was killed, or what it is connected to is no such workload.
        """
        while self._read(self._until_ns):
            pass
        try:
            said = json.loads(self._said.partition(_OPEN)[2])
        except ValueError:
            raise self._trouble("ended without a result") from None
        if "error" in said:
            raise MeasurementError(said["error"])
        return from_json(self._kind, said)

    def _read(self, until_ns: int) -> bool:
        """Take in what it says; False at the end of it."""
        left_ns = max(0, until_ns - time.monotonic_ns())
        if not select.select([self._output], [], [], left_ns / 1e9)[0]:
            raise self._trouble("is late")
        part = os.read(self._output, 1 << 16)
        self._said += part
        return bool(part)

    def _trouble(self, what: str) -> MeasurementError:
        with suppress(ValueError, KeyError):
            return MeasurementError(json.loads(self._said)["error"])
        return MeasurementError(f"the client (process {self._process.pid}) {what}")


@contextmanager
def client(
    kind: type[T], source: Endpoint, destination: Endpoint, test: SessionTest
) -> Iterator[Client[T]]:
    """Run a client while the block lasts, at the longest; it is proved gone at the block's end.

    Args:
        kind: its result's, which says what it does.
        source: where it is; a process in this namespace.
        destination: the VM.
        test: what it is to do.

    Raises:
        MeasurementError: no connection, or no such namespace.
    """
    ask = {
        "kind": kind.__name__,
        "ends": [[str(end.netns_path), end.address, end.device] for end in (source, destination)],
        "test": asdict(test),
    }
    output, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        command = [sys.executable, "-P", "-c", _CODE, json.dumps(ask)]
        with running(source.netns_path, command, theirs, sys.stderr.fileno()) as process:
            os.close(theirs)
            theirs = -1
            yield Client(kind, test, process, output)
    finally:
        for fd in (output, theirs):
            if fd >= 0:
                os.close(fd)


def main(text: str) -> None:
    """Be a client: says that the connection is open, and at the end what it found."""
    ask: dict[str, Any] = json.loads(text)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends this
    source, destination = (Endpoint(*end) for end in ask["ends"])
    measure = next(one for kind, one in _CLIENTS if kind.__name__ == ask["kind"])
    test = SessionTest(**ask["test"])
    try:
        said = to_json(measure(source, destination, test, stop, lambda: _say(_OPEN)))
    except TestbedError as error:
        said = {"error": str(error)}
    _say(json.dumps(said, separators=(",", ":")).encode())


def _say(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
