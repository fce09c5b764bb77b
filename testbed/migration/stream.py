"""One TCP connection of a migration: its options, its timeouts, what TCP says of it."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.migration.wire import ERROR_BYTES, HEADER_BYTES, Frame, Kind, WireError, unpack
from testbed.report.result import StreamReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.migration.specification import MigrationSpec
    from testbed.migration.vector import PageVector

# So long may one call block: progress is reported and a cancelled migration noticed as often.
_TURN_NS = 50_000_000
_SO_BUFFERS = {"send": (socket.SO_SNDBUF, 32), "receive": (socket.SO_RCVBUF, 33)}  # and FORCE
_TCP_INFO = struct.Struct("8B24I4Q")  # linux/tcp.h, up to tcpi_bytes_received


class PeerError(Exception):
    """The peer has gone, gave up, or was silent for too long; its text says which."""


class Stream:
    """A connected socket of `make_socket`, or accepted by one.

    `turn` is called whenever a call has blocked for 50 ms.
    """

    def __init__(self, sock: socket.socket, timeout_ns: int) -> None:
        self.socket, self.timeout_ns = sock, timeout_ns
        self.turn: Callable[[], None] = _no_turn
        sock.settimeout(None)
        limit = struct.pack("ll", 0, _TURN_NS // 1000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._header = bytearray(HEADER_BYTES)
        self._fd = sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def send(self, *parts: bytes | memoryview) -> None:
        """Send all of the parts.

        Raises:
            PeerError: the peer took nothing for the timeout, or has gone.
        """
        left = sum(len(part) for part in parts)
        waiting: list[bytes | memoryview] = list(parts)
        while True:
            sent = self._try(lambda: self.socket.sendmsg(waiting), "send")
            left -= sent
            if not left:
                return
            while sent >= len(waiting[0]):
                sent -= len(waiting.pop(0))
            waiting[0] = memoryview(waiting[0])[sent:]

    def send_pages(self, vector: PageVector) -> None:
        """Send all that a vector points at; errors as `send`."""
        while vector.left:
            self._try(lambda: vector.send(self._fd, 0), "send")

    def receive(self, into: memoryview | bytearray) -> None:
        """Fill a buffer.

        Raises:
            PeerError: the peer sent nothing for the timeout, or has closed.
        """
        view = memoryview(into)
        done = 0

        def transfer() -> int:
            return self.socket.recv_into(view[done:], 0, socket.MSG_WAITALL)

        while done < len(view):
            done += _alive(self._try(transfer, "receive"))

    def receive_pages(self, vector: PageVector) -> None:
        """Fill all that a vector points at; errors as `receive`."""
        while vector.left:
            _alive(self._try(lambda: vector.receive(self._fd, socket.MSG_WAITALL), "receive"))

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
            raise PeerError(f"the peer gave up: {text.decode(errors='replace')}")
        return frame

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
            raise PeerError(f"{verb}: {error.strerror}") from error
        deadline = time.monotonic_ns() + self.timeout_ns
        while time.monotonic_ns() < deadline:
            self.turn()
            try:
                return transfer()
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise PeerError(f"{verb}: {error.strerror}") from error
        raise PeerError(f"{verb}: nothing moved for {self.timeout_ns / 1e9:g} s")

    def acknowledged_bytes(self) -> int:
        """What the peer's TCP has acknowledged so far."""
        return int(_tcp_info(self.socket)[34])

    def receive_buffer_bytes(self) -> int:
        """The receive buffer, as large as the kernel has made it by now."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def report(self, receive_buffer_bytes: int) -> StreamReport:
        """The connection as TCP_INFO tells it now."""
        info = _tcp_info(self.socket)
        return StreamReport(
            source_address=self.socket.getsockname()[0],
            destination_address=self.socket.getpeername()[0],
            congestion_control=read_congestion_control(self.socket),
            mss_bytes=info[10],
            retransmitted_segments=info[31],
            rtt_ns=info[23] * 1000,
            send_buffer_bytes=self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
            receive_buffer_bytes=receive_buffer_bytes,
        )


def _no_turn() -> None:
    pass


def _alive(got: int) -> int:
    if got == 0:
        raise PeerError("the peer has closed the connection")
    return got


def _tcp_info(sock: socket.socket) -> tuple[int, ...]:
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    return _TCP_INFO.unpack(data)


def read_congestion_control(sock: socket.socket) -> str:
    """The congestion control that a socket uses."""
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.split(b"\0")[0].decode()


def make_socket(spec: MigrationSpec, address: str) -> socket.socket:
    """A TCP socket with the congestion control and buffers of the specification, read back.

    Buffers are set before the connection is made, as the window scale is agreed on then. What a
    listening socket has, the sockets that it accepts have too.

    Raises:
        KernelError: the kernel has not what was asked.
    """
    v6 = ipaddress.ip_address(address).version == 6
    with ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_INET6 if v6 else socket.AF_INET))
        wanted = spec.congestion_control
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted.encode())
        except OSError as error:
            remedy = f"load the module tcp_{wanted}"
            raise KernelError("set congestion control", wanted, str(error), remedy) from error
        if (found := read_congestion_control(sock)) != wanted:
            raise KernelError("set congestion control", wanted, f"the socket has {found}")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        timeout_ms = spec.timeout_ns // 1_000_000
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        sizes = {"send": spec.send_buffer_bytes, "receive": spec.receive_buffer_bytes}
        for name, size_bytes in sizes.items():
            if size_bytes is not None:
                _set_buffer(sock, name, size_bytes)
        undo.pop_all()
    return sock


def _set_buffer(sock: socket.socket, name: str, size_bytes: int) -> None:
    option, force = _SO_BUFFERS[name]
    sock.setsockopt(socket.SOL_SOCKET, force, size_bytes)
    found = sock.getsockopt(socket.SOL_SOCKET, option)
    if found != 2 * size_bytes:  # the kernel counts its own overhead by doubling
        cause = f"the socket has {found // 2}"
        raise KernelError(f"set {name} buffer of", f"{size_bytes} bytes", cause)


def listen(spec: MigrationSpec) -> socket.socket:
    """Listen at the destination's address and port in this network namespace.

    Raises:
        KernelError: the address is not here, or in use.
    """
    with ExitStack() as undo:
        sock = undo.enter_context(make_socket(spec, spec.destination_address))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((spec.destination_address, spec.port))
            sock.listen(16)
        except OSError as error:
            where = f"{spec.destination_address} port {spec.port}"
            raise KernelError("listen at", where, str(error.strerror)) from error
        undo.pop_all()
    return sock


def connect(spec: MigrationSpec) -> Stream:
    """Connect from the source's vmk address to the destination's.

    Raises:
        PeerError: there is no way, no answer within the timeout, or nobody listens.
        KernelError: the socket's options or the source's address are refused.
    """
    with ExitStack() as undo:
        sock = undo.enter_context(make_socket(spec, spec.destination_address))
        if spec.source_device is not None:
            device = spec.source_device.encode()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        try:
            sock.bind((spec.source_address, 0))
        except OSError as error:
            raise KernelError("bind to", spec.source_address, str(error.strerror)) from error
        sock.settimeout(spec.timeout_ns / 1e9)
        try:
            sock.connect((spec.destination_address, spec.port))
        except OSError as error:
            cause = error.strerror or errno.errorcode.get(error.errno or 0, "timed out")
            where = f"{spec.destination_address} port {spec.port}"
            raise PeerError(f"connect to {where} from {spec.source_address}: {cause}") from error
        stream = Stream(sock, spec.timeout_ns)
        undo.pop_all()
    return stream
