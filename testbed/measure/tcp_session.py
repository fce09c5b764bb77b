"""An open TCP session of a client in some namespace with a VM, for a limited time."""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import InputError, MeasurementError
from testbed.measure.endpoint import require_same_ip_version, socket_in

if TYPE_CHECKING:
    import threading

    from testbed.measure.endpoint import Endpoint

LEAST_GRAIN_NS, MOST_GRAIN_NS = 10**6, 10**9
_CONNECT_NS = 10 * 10**9
_READ_BYTES = 1 << 16  # whose content is in the cache when it is compared
_LONGEST_WAIT_NS = 50_000_000  # to look whether it is to end


@dataclass(frozen=True, slots=True)
class SessionTest:
    """What a client does: the port of the VM's workload, the VM's seed, and for how long.

    A download's `grain_ns` is that of its series, an echo's the time between two messages of
    `message_bytes`.

    Raises:
        InputError: a number out of range.
    """

    port: int
    seed: int = 0
    duration_ns: int = 10 * 10**9
    grain_ns: int = 10 * 10**6
    message_bytes: int = 64

    def __post_init__(self) -> None:
        bounds = (
            ("port", self.port, 1, 65535),
            ("duration in ns", self.duration_ns, LEAST_GRAIN_NS, 24 * 3600 * 10**9),
            ("grain in ns", self.grain_ns, LEAST_GRAIN_NS, MOST_GRAIN_NS),
            ("message in bytes", self.message_bytes, 1, 1400),
        )
        for name, value, least, most in bounds:
            if not least <= value <= most:
                raise InputError(f"session {name} {value}: give {least} to {most}")


class Session:
    """An open TCP connection, and until when it is of interest."""

    def __init__(
        self,
        source: Endpoint,
        destination: Endpoint,
        test: SessionTest,
        stop: threading.Event | None,
    ) -> None:
        """Connect.

        Raises:
            MeasurementError: no namespace, address or way, or nobody answers.
        """
        version = require_same_ip_version(source, destination)
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        what = f"connect from {source} to {destination} port {test.port}"
        self.socket = socket_in(source.netns_path, family, socket.SOCK_STREAM, 0)
        try:
            if source.device:
                name = source.device.encode()
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            self.socket.bind((source.address, 0))
            self.socket.settimeout(_CONNECT_NS / 1e9)
            self.socket.connect((destination.address, test.port))
        except OSError as error:
            self.socket.close()
            raise MeasurementError(
                f"{what}: {error.strerror or error}; does the VM run, with a workload at this port?"
            ) from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.broken: str | None = None
        self.began_ns = time.monotonic_ns()
        self.until_ns = self.began_ns + test.duration_ns
        self._stop = stop

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def goes_on(self) -> bool:
        """Whether there is time left, and the connection is whole."""
        stopped = self._stop is not None and self._stop.is_set()
        return not stopped and self.broken is None and time.monotonic_ns() < self.until_ns

    def receive(self, until_ns: int) -> bytes:
        """What comes next; nothing: none did by then, or for a while, or it broke."""
        now_ns = time.monotonic_ns()
        wait_ns = max(0, min(until_ns - now_ns, self.until_ns - now_ns, _LONGEST_WAIT_NS))
        if not select.select([self.socket], [], [], wait_ns / 1e9)[0]:
            return b""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            self.broken = str(error.strerror or error)
            return b""
        if not data:
            self.broken = "the VM closed the connection"
        return data

    def send(self, data: bytes) -> int:
        """As much as the kernel takes."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.broken = str(error.strerror or error)
            return 0


def wrong_bytes(found: bytes | memoryview, expected: bytes) -> int:
    """How many bytes differ; both have the same length."""
    if found == expected:
        return 0
    return int((np.frombuffer(found, np.uint8) != np.frombuffer(expected, np.uint8)).sum())
