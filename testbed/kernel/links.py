"""The links of a namespace as the kernel reports them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from testbed.kernel import messages
from testbed.kernel.netlink import Socket, attributes, table

_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_U32 = struct.Struct("=I")
_U32_ATTRIBUTES = {4: "mtu", 10: "master"}
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_PROTINFO = 1, 3, 12
_IFLA_OPERSTATE, _IFLA_IFALIAS, _IFLA_STATS64 = 16, 20, 23
_IFLA_LINKINFO, _SLAVE_DATA = 18, 5
_IFLA_BRPORT_STATE, _LEARNING, _UNICAST_FLOOD, _ISOLATED = 1, 8, 9, 33
_IF_OPER_UP = 6
_STATS64 = struct.Struct("=8Q")


@dataclass(frozen=True, slots=True)
class Counters:
    """What has passed a link since it was made; received and sent as the link sees them."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


@dataclass(frozen=True, slots=True)
class Link:
    """A link; `master` is an ifindex, 0 for none, `running` that frames can pass now.

    `port` holds its settings as a bridge port as the kernel has put them (`port_settings`).
    """

    index: int
    name: str
    up: bool
    running: bool
    mtu: int
    master: int
    mac: str
    alias: str
    port: bytes = b""
    counters: Counters | None = None


@dataclass(frozen=True, slots=True)
class PortSettings:
    """What `End` says of a bridge port."""

    isolated: bool
    learning: bool
    flooding: bool


def read_links(socket: Socket, with_counters: bool = False) -> dict[str, Link]:
    """All links of the socket's namespace by name.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    found = {}
    for data, start, end in socket.dump(messages.dump_links(with_counters)):
        link = _parse(data, start, end)
        found[link.name] = link
    return found


def _parse(data: bytes, start: int, end: int) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(data, start)
    numbers = {"mtu": 0, "master": 0}
    name = alias = mac = ""
    port = b""
    operstate = 0
    counters = None
    for kind, first, last in attributes(data, start + _LINK.size, end):
        if kind in _U32_ATTRIBUTES:
            (numbers[_U32_ATTRIBUTES[kind]],) = _U32.unpack_from(data, first)
        elif kind == _IFLA_IFNAME:
            name = data[first : last - 1].decode()
        elif kind == _IFLA_ADDRESS:
            mac = data[first:last].hex(":")
        elif kind == _IFLA_OPERSTATE:
            operstate = data[first]
        elif kind == _IFLA_IFALIAS:
            alias = data[first : last - 1].decode(errors="replace")
        elif kind == _IFLA_STATS64:
            counters = Counters(*_STATS64.unpack_from(data, first))
        elif kind == _IFLA_LINKINFO:
            at, until = table(data, first, last).get(_SLAVE_DATA, (0, 0))
            port = data[at:until]
    up = bool(flags & messages.IFF_UP)
    running = up and operstate == _IF_OPER_UP
    return Link(
        index, name, up, running, numbers["mtu"], numbers["master"], mac, alias,
        port, counters,
    )  # fmt: skip


def port_settings(link: Link) -> PortSettings | None:
    """What a link is set to as a bridge port; None if it is none."""
    if not link.port:
        return None
    found = {kind: link.port[at] for kind, at, _ in attributes(link.port, 0, len(link.port))}
    return PortSettings(*(bool(found.get(kind)) for kind in (_ISOLATED, _LEARNING, _UNICAST_FLOOD)))


def read_port_states(socket: Socket) -> dict[int, int]:
    """The BR_STATE_* of every bridge port of the socket's namespace by ifindex.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    found = {}
    for data, start, end in socket.dump(messages.dump_ports()):
        _, _, index, _, _ = _LINK.unpack_from(data, start)
        for kind, first, last in attributes(data, start + _LINK.size, end):
            if kind == _IFLA_PROTINFO:
                for port_kind, at, _ in attributes(data, first, last):
                    if port_kind == _IFLA_BRPORT_STATE:
                        found[index] = data[at]
    return found
