"""Which address a namespace sends from."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError
from testbed.measure.endpoint import socket_in

if TYPE_CHECKING:
    from pathlib import Path

_ANY_PORT = 9  # discard, RFC 863: connecting a datagram socket sends nothing


def source_address(netns_path: Path | str, destination: str) -> str:
    """The address that the kernel's routing chooses in a namespace for a destination.

    Raises:
        MeasurementError: no route leads there.
    """
    family = socket.AF_INET if ip_address(destination).version == 4 else socket.AF_INET6
    with socket_in(netns_path, family, socket.SOCK_DGRAM, 0) as opened:
        try:
            opened.connect((destination, _ANY_PORT))
        except OSError as error:
            raise MeasurementError(
                f"find the way to {destination}: {error.strerror}; give an adapter of this host a"
                " gateway to that network, or name the adapter to send from"
            ) from error
        address: str = opened.getsockname()[0]
        return address
