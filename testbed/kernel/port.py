"""Opening and closing a bridge port within microseconds, and announcing who is behind it."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import messages, netns
from testbed.kernel.iochain.bpf import Element
from testbed.kernel.iochain.cells import SWITCH_MAP
from testbed.kernel.iochain.ports import open_map
from testbed.kernel.links import read_links, read_port_states
from testbed.kernel.netlink import RefusedError, Socket

if TYPE_CHECKING:
    from collections.abc import Callable

ANNOUNCEMENTS = 5
ANNOUNCEMENT_GAP_NS = 25 * 10**6  # five over 100 ms: the first may be lost once
_ETH_P_RARP = 0x8035
_BROADCAST = b"\xff" * 6
_REVERSE_REQUEST = 3  # RFC 903: "who is the owner of this Ethernet address"


class PortSwitch:
    """A bridge port that is closed and opened by one message, encoded in advance.

    Closed, nothing passes it either way; opened, frames pass at once. What the bridge had
    learned on the port is forgotten at each turn.

    Measured: a turn takes 25-150 us. Traffic flows 0.1 ms after opening the host's end of a
    VM's wire, and within 1.3 ms of opening the VM's end: closing a NIC's last port takes its
    carrier off. (Without `arp_evict_nocarrier` 0, which the builder sets on a NIC, its
    neighbour entries go with the carrier, and the first packet may take a second.)

    Args:
        where: the namespace.
        port: the link's name; it must be a port of a bridge.
        mac: the address behind it. While the port is open, and has an IOChain, it is one of
            the virtual switch's own (`Arrive`), from just before to just after.

    Raises:
        KernelError: there is no such namespace or port.
    """

    def __init__(self, where: str, port: str, mac: str | None = None) -> None:
        self._target = f"{port} in {where}"
        with netns.inside(where):
            self._socket = Socket()
        self._listing: Element | None = None
        with ExitStack() as undo:
            undo.callback(self._socket.close)
            try:
                link = read_links(self._socket).get(port)
            except (OSError, RefusedError) as error:
                raise KernelError("find port", self._target, str(error)) from error
            if link is None or not link.master:
                cause = "there is no such link" if link is None else "it is no bridge's port"
                raise KernelError("find port", self._target, cause, "see `testbed status`")
            self._index = link.index
            self._messages = {
                forwarding: messages.port_state(link.index, forwarding)
                for forwarding in (False, True)
            }
            if mac is not None:
                addresses = open_map(self._socket, link.index, SWITCH_MAP, self._target)
                if addresses is not None:
                    undo.callback(os.close, addresses)
                    self._listing = Element(addresses, messages.packed_mac(mac))
            self._open = undo.pop_all()

    def close(self) -> None:
        """Cut the port, both ways.

        Raises:
            KernelError: the kernel refuses.
        """
        self._turn(False)
        if self._listing is not None:
            self._change_listing(self._listing.remove)

    def open(self) -> None:
        """Let frames pass.

        Raises:
            KernelError: the kernel refuses (ENETDOWN: the wire's other end is down).
        """
        if self._listing is not None:
            self._change_listing(self._listing.enter)
        try:
            self._turn(True)
        except KernelError:
            if self._listing is not None:
                self._change_listing(self._listing.remove)
            raise

    def _change_listing(self, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            raise KernelError("list the address of", self._target, str(error.strerror)) from error

    def _turn(self, forwarding: bool) -> None:
        refusal = self._socket.request((self._messages[forwarding],))
        if refusal is not None:
            verb = "open port" if forwarding else "close port"
            raise KernelError(verb, self._target, refusal.cause, "is the wire up at both ends?")

    def is_open(self) -> bool:
        """Whether the kernel says that frames pass.

        Raises:
            KernelError: the kernel does not answer.
        """
        try:
            state = read_port_states(self._socket).get(self._index)
        except (OSError, RefusedError) as error:
            raise KernelError("read the state of", self._target, str(error)) from error
        return state == messages.BR_STATE_FORWARDING

    def release(self) -> None:
        """Let go of the port; it stays as it is."""
        self._open.close()

    def __enter__(self) -> PortSwitch:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def rarp_frame(mac: str) -> bytes:
    """The broadcast by which a host says that it has taken a VM in (RFC 903, 60 bytes).

    Switches learn from its source where the address now is; no one answers it.
    """
    address = messages.packed_mac(mac)
    header = _BROADCAST + address + struct.pack("!H", _ETH_P_RARP)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _REVERSE_REQUEST)
    body += address + bytes(4) + address + bytes(4)
    return (header + body).ljust(60, b"\0")


class Announcer:
    """Tells the network where a VM is, by RARP from its own NIC.

    Args:
        where: the VM's namespace.
        nic: the NIC's name there.
        mac: its address.

    Raises:
        KernelError: there is no such namespace or NIC.
    """

    def __init__(self, where: str, nic: str, mac: str) -> None:
        self._target = f"{mac} from {nic} in {where}"
        self._frame = rarp_frame(mac)
        with netns.inside(where):
            # Protocol 0: it only sends, so nothing is queued in it.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.bind((nic, 0))
        except OSError as error:
            self._socket.close()
            raise KernelError("bind to", f"{nic} in {where}", str(error.strerror)) from error

    def send(self) -> None:
        """Say it once.

        Raises:
            KernelError: the NIC is gone or down.
        """
        try:
            self._socket.send(self._frame)
        except OSError as error:
            raise KernelError(
                "announce", self._target, str(error.strerror), "is the NIC up?"
            ) from error

    def repeat(self) -> None:
        """Say it four times more over 100 ms, as the first may have been lost.

        Raises:
            KernelError: the NIC is gone or down.
        """
        start = time.monotonic_ns()
        for n in range(1, ANNOUNCEMENTS):
            time.sleep(max(0, start + n * ANNOUNCEMENT_GAP_NS - time.monotonic_ns()) / 1e9)
            self.send()

    def __enter__(self) -> Announcer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
