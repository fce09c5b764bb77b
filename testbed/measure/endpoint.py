"""One end of a measurement: an address of an adapter in a network namespace."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from testbed.errors import MeasurementError

CLONE_NEWNET = 0x40000000  # linux/sched.h


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address in the namespace at `netns_path` (`/run/netns/NAME`); `device` binds to a link."""

    netns_path: Path | str
    address: str
    device: str | None = None

    @property
    def ip_version(self) -> int:
        """4 or 6."""
        return ip_address(self.address).version

    def __str__(self) -> str:
        device = f"%{self.device}" if self.device else ""
        return f"{self.address}{device} in {Path(self.netns_path).name}"


def require_same_ip_version(source: Endpoint, destination: Endpoint) -> int:
    """The IP version that both ends have, 4 or 6.

    Raises:
        MeasurementError: one is IPv4 and the other IPv6.
    """
    if source.ip_version != destination.ip_version:
        raise MeasurementError(
            f"measure from {source} to {destination}: one address is IPv4, the other IPv6; "
            "give both ends addresses of one version"
        )
    return source.ip_version


def socket_in(netns_path: Path | str, family: int, kind: int, protocol: int) -> socket.socket:
    """A socket that belongs to the namespace at `netns_path`.

    A socket stays in the namespace that it was made in, so only its making has to happen
    there: in a thread that lives for this alone. No process is forked, and the caller's
    own threads never leave their namespace. (os.setns came with Python 3.12 only.)

    Raises:
        MeasurementError: there is no such namespace, or it can't be entered.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with Path(netns_path).open("rb") as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            made.append(socket.socket(family, kind, protocol))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=make, name="socket-in-netns")
    thread.start()
    thread.join()
    if failed:
        raise MeasurementError(
            f"open a socket in the network namespace {netns_path}: {failed[0].strerror}; "
            "is the lab up, and are you root?"
        ) from failed[0]
    return made[0]
