"""LLDP over a lab's cables: each switch's port says what it is, each vmnic hears it."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.measure import lldp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.measure.lldp import Neighbour

DEADLINE_NS = 500 * 10**6
_AT_ONCE = 200  # a socket each: select() takes 1024 descriptors

Cable = tuple[str, str, str, str]
"""A vmnic's namespace and name, and those of the switch's port that it is cabled to."""


def discover(cables: Sequence[tuple[Cable, Neighbour]]) -> dict[tuple[str, str], Neighbour]:
    """What each vmnic hears, by namespace and name; one whose link is down hears nothing.

    Real frames cross the cables, once each: what is heard is how the lab is wired, not how it
    was meant to be.

    Args:
        cables: with what the switch's port says of itself.

    Raises:
        KernelError: a namespace or link is gone.
    """
    heard: dict[tuple[str, str], Neighbour] = {}
    for start in range(0, len(cables), _AT_ONCE):
        heard |= _discover(cables[start : start + _AT_ONCE])
    return heard


def _discover(cables: Sequence[tuple[Cable, Neighbour]]) -> dict[tuple[str, str], Neighbour]:
    heard: dict[tuple[str, str], Neighbour] = {}
    with ExitStack() as closing:
        listening = {
            closing.enter_context(_socket(where, nic, lldp.ETHERTYPE)): (where, nic)
            for (where, nic, _, _), _ in cables
        }
        for (_, _, where, port), says in cables:
            with _socket(where, port, 0) as sender:
                try:
                    sender.send(lldp.encode(says, sender.getsockname()[4]))
                except OSError:
                    continue  # the port is down: its neighbour hears nothing
        deadline_ns = time.monotonic_ns() + DEADLINE_NS
        while len(heard) < len(listening):
            left_ns = deadline_ns - time.monotonic_ns()
            waiting = [one for one, nic in listening.items() if nic not in heard]
            ready = select.select(waiting, [], [], max(0, left_ns) / 1e9)[0]
            if not ready:
                break
            for one in ready:
                found = lldp.decode(one.recv(65536))
                if found is not None:
                    heard[listening[one]] = found
    return heard


def _socket(where: str, device: str, ethertype: int) -> socket.socket:
    with netns.inside(where):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        opened.bind((device, ethertype))
    except OSError as error:
        opened.close()
        raise KernelError("listen on", f"{device} in {where}", str(error.strerror)) from error
    return opened
