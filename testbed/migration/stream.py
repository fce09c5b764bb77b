"""One TCP connection of a migration: what it sends and receives, its timeouts, its costs."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

from testbed.migration import tcp_info
from testbed.migration.wire import ERROR_BYTES, HEADER_BYTES, Frame, Kind, WireError, unpack
from testbed.report.result import StreamReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from testbed.migration.vector import PageVector

# So long may one call block: progress is reported and a cancelled migration noticed as often.
TURN_NS = 50_000_000
# So much is received before the kernel knows how large segments are, and sets another window.
_LEARNING_BYTES = 1 << 20
# What was let in flight until then is through by now, and the window is the one asked for.
_SETTLED_BYTES = 4 * _LEARNING_BYTES
# More than a peer of ours can have said before it gave up.
_LAST_FRAMES = 64


class PeerError(Exception):
    """The peer has gone, gave up, or was silent for too long; its text says which."""


class GaveUpError(PeerError):
    """The peer gave up and said why."""


class Stream:
    """A connected socket.

    `turn` is called whenever a call has blocked for 50 ms. `pay` is told of all bytes that were
    sent or received, and may take its time. `moved` is a number that grows while the peer lives:
    a call that is blocked is given up when it has not grown for the timeout. `clamp_bytes` is the
    largest window that is told the peer (`sockets.window_clamp`); None: the kernel's.
    """

    def __init__(self, sock: socket.socket, timeout_ns: int) -> None:
        self.socket, self.timeout_ns = sock, timeout_ns
        self.turn: Callable[[], None] = _no_turn
        self.pay: Callable[[int], None] = _no_pay
        self.moved: Callable[[], int] = self.acknowledged_bytes
        self.name = ""  # begins the texts of its errors
        self.clamp_bytes: int | None = None
        self.most_in_flight_bytes = 0
        sock.settimeout(None)
        limit = struct.pack("ll", 0, TURN_NS // 1000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._header = bytearray(HEADER_BYTES)
        self._fd = sock.fileno()
        self._received_bytes = 0
        self._addresses = _addresses(sock)  # a connection that has failed has none

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def send(self, *parts: bytes | memoryview) -> None:
        """Send all of the parts.

        Raises:
            PeerError: the peer took nothing for the timeout, or has gone.
        """
        left = size_bytes = sum(len(part) for part in parts)
        waiting: list[bytes | memoryview] = list(parts)
        while True:
            sent = self._try(lambda: self.socket.sendmsg(waiting), "send")
            left -= sent
            if not left:
                break
            while sent >= len(waiting[0]):
                sent -= len(waiting.pop(0))
            waiting[0] = memoryview(waiting[0])[sent:]
        self.pay(size_bytes)

    def send_pages(self, vector: PageVector) -> None:
        """Send all that a vector points at; errors as `send`."""
        size_bytes = vector.left
        while vector.left:
            self._try(lambda: vector.send(self._fd, 0), "send")
        self.pay(size_bytes)

    def receive(self, into: memoryview | bytearray) -> None:
        """Fill a buffer.

        Raises:
            PeerError: the peer sent nothing for the timeout, or has closed.
        """
        view = memoryview(into)
        done = 0

        def transfer() -> int:
            return self.socket.recv_into(view[done:], 0, self._waiting())

        while done < len(view):
            done += self._received(self._try(transfer, "receive"))
        self.pay(done)

    def receive_pages(self, vector: PageVector) -> None:
        """Fill all that a vector points at; errors as `receive`."""
        size_bytes = vector.left
        while vector.left:
            self._received(self._try(lambda: vector.receive(self._fd, self._waiting()), "receive"))
        self.pay(size_bytes)

    def _waiting(self) -> int:
        """Flags of a call that receives: whether it waits until all has come."""
        learning = self.clamp_bytes is not None and self._received_bytes < _LEARNING_BYTES
        return 0 if learning else socket.MSG_WAITALL

    def _received(self, size_bytes: int) -> int:
        if size_bytes == 0:
            raise PeerError("the peer has closed the connection")
        if self.clamp_bytes is not None:
            self._received_bytes += size_bytes
            option = socket.TCP_WINDOW_CLAMP
            self.socket.setsockopt(socket.IPPROTO_TCP, option, self.clamp_bytes)
        return size_bytes

    def receive_frame(self) -> Frame:
        """The next header.

        Raises:
            PeerError: as `receive`, or the peer sent an ERROR, with its text.
            WireError: it is none.
        """
        self.receive(self._header)
        frame = unpack(self._header)
        if frame.kind is Kind.ERROR:
            text = bytearray(min(frame.count, ERROR_BYTES))
            self.receive(text)
            raise GaveUpError(f"the peer gave up: {text.decode(errors='replace')}")
        return frame

    def hear(self) -> None:
        """While only this end has a say: what has come is an ERROR, or the end; all is an error.

        Raises:
            PeerError: as `receive_frame`.
            WireError: it is something else.
        """
        if self.readable():
            raise WireError(f"{self.receive_frame().kind.name} out of turn")

    def expect(self, kind: Kind) -> Frame:
        """The next header, which must be of this kind; errors as `receive_frame`."""
        frame = self.receive_frame()
        if frame.kind is not kind:
            raise WireError(f"{frame.kind.name} instead of {kind.name}")
        return frame

    def readable(self) -> bool:
        """Whether the peer has sent something, or closed."""
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass  # whoever reads now is told
        return True

    def _try(self, transfer: Callable[[], int], verb: str) -> int:
        # Interrupted: with a timeout set, stopping and continuing a process ends its calls so.
        try:
            return transfer()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            raise PeerError(f"{self.name}{verb}: {error.strerror}") from error
        moved = self.moved()
        deadline_ns = time.monotonic_ns() + self.timeout_ns
        while True:
            if time.monotonic_ns() >= deadline_ns:
                was, moved = moved, self.moved()
                if moved == was:
                    raise PeerError(
                        f"{self.name}{verb}: nothing moved for {self.timeout_ns / 1e9:g} s"
                    )
                deadline_ns += self.timeout_ns
            self.turn()
            try:
                return transfer()
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise PeerError(f"{self.name}{verb}: {error.strerror}") from error

    def acknowledged_bytes(self) -> int:
        """What the peer's TCP has acknowledged so far."""
        if self.socket.family == socket.AF_UNIX:
            return 0
        return tcp_info.acknowledged_bytes(self.socket)

    def observe(self) -> None:
        """Look at how much is in flight; the most that was seen is reported."""
        if self.socket.family == socket.AF_UNIX:
            return
        info = tcp_info.read(self.socket)
        if info.acknowledged_bytes >= _SETTLED_BYTES:
            self.most_in_flight_bytes = max(self.most_in_flight_bytes, info.in_flight_bytes)

    def receive_buffer_bytes(self) -> int:
        """The receive buffer, as large as the kernel has made it by now."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def last_words(self) -> str | None:
        """After a failure: what the peer gave as its reason, if it did and it is here."""
        self.timeout_ns, self.turn = 0, _no_turn
        try:
            for _ in range(_LAST_FRAMES):  # a peer that never ends is not heard for ever
                if not self.readable():
                    break
                self.receive_frame()
        except GaveUpError as error:
            return str(error)
        except (PeerError, WireError):
            pass
        return None

    def report(
        self, receive_buffer_bytes: int = 0, window_bytes: int | None = None
    ) -> StreamReport:
        """The connection as TCP_INFO tells it now."""
        info = tcp_info.read(self.socket)
        name = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        return StreamReport(
            source_address=self._addresses[0],
            destination_address=self._addresses[1],
            congestion_control=name.split(b"\0")[0].decode(),
            mss_bytes=info.mss_bytes,
            retransmitted_segments=info.retransmitted_segments,
            rtt_ns=info.rtt_ns,
            send_buffer_bytes=self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
            receive_buffer_bytes=receive_buffer_bytes,
            bytes=info.acknowledged_bytes,
            most_in_flight_bytes=self.most_in_flight_bytes,
            window_bytes=window_bytes,
        )


def reason(error: Exception, streams: Iterable[Stream]) -> str:
    """Why a migration failed: what the peer said on one of its streams, or the error's text.

    A peer that gives up tells it on every stream, but one of them may break before it is read.
    """
    if not isinstance(error, PeerError) or isinstance(error, GaveUpError):
        return str(error)
    return next(filter(None, (stream.last_words() for stream in streams)), str(error))


def _addresses(sock: socket.socket) -> tuple[str, str]:
    try:
        return str(sock.getsockname()[0]), str(sock.getpeername()[0])
    except (OSError, IndexError):  # gone already, or a Unix socket, whose names are empty
        return "", ""


def _no_turn() -> None:
    pass


def _no_pay(_: int) -> None:
    pass
