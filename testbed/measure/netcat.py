"""A TCP connection between a namespace and two file descriptors, as nc makes it."""

from __future__ import annotations

import os
import select
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError
from testbed.measure.endpoint import socket_in

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.measure.endpoint import Endpoint

_PART_BYTES = 1 << 16


def connect(source: Endpoint, destination: str, port: int, timeout_ns: int | None) -> socket.socket:
    """A connection from `source` to a port of `destination`; None waits as long as the kernel.

    Raises:
        MeasurementError: refused, not answered in time, or no way there.
    """
    family = _family(destination)
    opened = socket_in(source.netns_path, family, socket.SOCK_STREAM, 0)
    try:
        if source.device:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, source.device.encode())
        opened.bind((source.address, 0))
        opened.settimeout(None if timeout_ns is None else timeout_ns / 1e9)
        opened.connect((destination, port))
    except OSError as error:
        opened.close()
        cause = "timed out" if isinstance(error, TimeoutError) else error.strerror
        remedy = (
            "nothing listens there (vMotion does while it migrates; 'testbed nc -l' does at will)"
            if isinstance(error, ConnectionRefusedError)
            else "check addresses, links, VLANs and routes of the path"
        )
        raise MeasurementError(
            f"connect from {source} to {destination} port {port} (tcp): {cause}; {remedy}"
        ) from error
    opened.settimeout(None)
    return opened


def listen(netns_path: Path | str, address: str | None, port: int) -> socket.socket:
    """A socket that listens in a namespace, on one address or, for None, on all of both versions.

    Raises:
        MeasurementError: the port is taken, or the address isn't there.
    """
    family = socket.AF_INET6 if address is None else _family(address)
    opened = socket_in(netns_path, family, socket.SOCK_STREAM, 0)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address is None:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind(("::" if address is None else address, port))
        opened.listen(1)
    except OSError as error:
        opened.close()
        raise MeasurementError(
            f"listen on {address or 'every address'} port {port}: {error.strerror};"
            " choose another port or an address of this node"
        ) from error
    return opened


def accept(listening: socket.socket, timeout_ns: int | None) -> tuple[socket.socket, str, int]:
    """The first connection, and whose address and port it comes from.

    Raises:
        MeasurementError: none came in time.
    """
    listening.settimeout(None if timeout_ns is None else timeout_ns / 1e9)
    try:
        connection, name = listening.accept()
    except TimeoutError as error:
        raise MeasurementError(
            f"listen on port {listening.getsockname()[1]}: nobody connected in time"
        ) from error
    connection.settimeout(None)
    return connection, name[0].removeprefix("::ffff:"), name[1]


def exchange(
    connection: socket.socket, source: int, sink: int, idle_ns: int | None = None
) -> tuple[int, int]:
    """Send what can be read from `source`, write to `sink` what comes; bytes sent and received.

    The end of `source` closes our direction only. Returns when the other side has closed its
    direction too, or when for `idle_ns` nothing came or went.

    Raises:
        MeasurementError: the connection broke.
    """
    sent = received = 0
    reading: list[int | socket.socket] = [connection, source]
    timeout_s = None if idle_ns is None else idle_ns / 1e9
    while connection in reading:
        ready = select.select(reading, [], [], timeout_s)[0]
        if not ready:
            break
        outgoing = os.read(source, _PART_BYTES) if source in ready else None
        incoming = None
        try:
            if outgoing is not None:
                connection.sendall(outgoing)
            if outgoing == b"":
                connection.shutdown(socket.SHUT_WR)
                reading.remove(source)
            if connection in ready:
                incoming = connection.recv(_PART_BYTES)
        except OSError as error:
            raise MeasurementError(
                f"keep the connection: {error.strerror} after {sent} bytes sent and"
                f" {received} received; did the other side end?"
            ) from error
        sent += len(outgoing or b"")
        if incoming is not None:
            received += len(incoming)
            _write_all(sink, incoming)
            if not incoming:
                reading.remove(connection)
    return sent, received


def _write_all(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
