"""The sockets of a migration: made with its options, listening, connecting."""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.migration import tcp_info
from testbed.migration.stream import TURN_NS, PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.migration.specification import MigrationSpec, StreamSpec

_SO_BUFFERS = {"send": (socket.SO_SNDBUF, 32), "receive": (socket.SO_RCVBUF, 33)}  # and FORCE
# Of several streams each takes new work only when less than this waits in its socket: what a
# slow NIC has taken, the others can't send for it.
_MOST_UNSENT_BYTES = 1 << 20
_BACKLOG = 128


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


def read_congestion_control(sock: socket.socket) -> str:
    """The congestion control that a socket uses."""
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.split(b"\0")[0].decode()


def _set_buffer(sock: socket.socket, name: str, size_bytes: int) -> None:
    option, force = _SO_BUFFERS[name]
    sock.setsockopt(socket.SOL_SOCKET, force, size_bytes)
    found = sock.getsockopt(socket.SOL_SOCKET, option)
    if found != 2 * size_bytes:  # the kernel counts its own overhead by doubling
        cause = f"the socket has {found // 2}"
        raise KernelError(f"set {name} buffer of", f"{size_bytes} bytes", cause)


def limit_window(sock: socket.socket, window_bytes: int | None) -> None:
    """Have the peer keep no more payload in flight than this; None: what the kernel allows.

    Of a listening socket and of each that it accepted. The kernel raises the clamp again with a
    buffer that grows, so that is fixed; and when it learns how large segments are, so the stream
    that receives keeps the clamp (`Stream.clamp_bytes`). What was in flight, the result tells.

    Raises:
        KernelError: the kernel set another.
    """
    if window_bytes is None:
        return
    # Half of it is for the kernel's own overhead. What the specification asks for may be more.
    held_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    _set_buffer(sock, "receive", max(held_bytes, 2 * window_bytes))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, window_bytes)
    found = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP)
    if found != window_bytes:
        raise KernelError("limit window to", f"{window_bytes} bytes", f"the socket has {found}")


def window_clamp(sock: socket.socket, window_bytes: int) -> int:
    """The clamp of a connection whose peer is to keep no more in flight.

    A window is told in units that were agreed on as it was made, and rounded up to one.
    """
    unit = 1 << tcp_info.window_scale(sock)
    return max(window_bytes // unit, 1) * unit


def listen(spec: MigrationSpec, address: str | None = None) -> socket.socket:
    """Listen at an address of this network namespace; None: the destination's.

    Raises:
        KernelError: the address is not here, or in use.
    """
    address = address or spec.connections[0].destination_address
    with ExitStack() as undo:
        sock = undo.enter_context(make_socket(spec, address))
        limit_window(sock, spec.window_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, spec.port))
            sock.listen(_BACKLOG)
        except OSError as error:
            where = f"{address} port {spec.port}"
            raise KernelError("listen at", where, str(error.strerror)) from error
        undo.pop_all()
    return sock


def connect(spec: MigrationSpec, number: int, turn: Callable[[], None]) -> socket.socket:
    """Connect stream `number` from the source's vmk to the destination's; `turn` while it waits.

    Raises:
        PeerError: there is no way, no answer within the timeout, or nobody listens.
        KernelError: the socket's options or the source's address are refused.
    """
    wanted = spec.connections[number]
    with ExitStack() as undo:
        sock = undo.enter_context(make_socket(spec, wanted.destination_address))
        if len(spec.connections) > 1:
            option = socket.TCP_NOTSENT_LOWAT
            sock.setsockopt(socket.IPPROTO_TCP, option, _MOST_UNSENT_BYTES)
        if wanted.source_device is not None:
            device = wanted.source_device.encode()
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
            except OSError as error:
                raise KernelError("bind to", wanted.source_device, str(error.strerror)) from error
        try:
            sock.bind((wanted.source_address, 0))
        except OSError as error:
            raise KernelError("bind to", wanted.source_address, str(error.strerror)) from error
        _join(sock, wanted, spec, turn)
        undo.pop_all()
    return sock


def _join(
    sock: socket.socket, wanted: StreamSpec, spec: MigrationSpec, turn: Callable[[], None]
) -> None:
    sock.setblocking(False)
    number = sock.connect_ex((wanted.destination_address, spec.port))
    deadline_ns = time.monotonic_ns() + spec.timeout_ns
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while number == errno.EINPROGRESS:
        if poll.poll(TURN_NS / 1e6):
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif time.monotonic_ns() > deadline_ns:
            number = errno.ETIMEDOUT
        else:
            turn()
    if number:
        where = f"{wanted.destination_address} port {spec.port}"
        cause = os.strerror(number)
        raise PeerError(f"connect to {where} from {wanted.source_address}: {cause}")
