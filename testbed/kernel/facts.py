"""Addresses, routes, rules and bridges of a namespace as the kernel reports them.

Only what a plan step says is parsed: pyroute2 takes over 300 us to decode a message.
"""

from __future__ import annotations

import functools
import struct
import sys
from typing import NamedTuple

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from testbed.kernel import messages, routing
from testbed.kernel.netlink import Socket, attributes, table
from testbed.kernel.template import DUMP, Template

_ADDRESS = struct.Struct("=BBxxI")  # ifaddrmsg: family, prefixlen, flags, scope, index
_ROUTE = struct.Struct("=BBBxB")  # rtmsg: family, dst_len, src_len, tos, table
_RULE = struct.Struct("=BBBxBxxB")  # fib_rule_hdr: as rtmsg, and action
_ROUTE_BYTES = 12  # of both
_LINK = struct.Struct("=BxHi8x")  # ifinfomsg: family, type, index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _TABLE = 1, 4, 5, 7, 15
_FRA_SRC, _FRA_PRIORITY = 2, 6
_IFLA_LINKINFO, _INFO_DATA = 18, 2
_BR_FORWARD_DELAY, _BR_AGEING_TIME, _BR_STP_STATE, _BR_MCAST_SNOOPING = 1, 4, 5, 23
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS


class AddressFact(NamedTuple):
    """An address, packed; `link` is an ifindex, `connected` as of the step `Address`."""

    link: int
    address: bytes
    prefix: int
    connected: bool = True


class RouteFact(NamedTuple):
    """A route; `link` is an ifindex, what the route lacks is empty."""

    table: int
    destination: bytes
    prefix: int
    link: int
    via: bytes
    source: bytes


class RuleFact(NamedTuple):
    """A rule for one source address; `action` is an FR_ACT_* (linux/fib_rules.h)."""

    source: bytes
    prefix: int
    table: int
    priority: int
    action: int


class BridgeFact(NamedTuple):
    """A bridge's settings; times in hundredths of a second, None for what is not reported."""

    stp: int | None
    ageing: int | None
    multicast_snooping: int | None
    forward_delay: int | None


def read_addresses(socket: Socket, family: int) -> set[AddressFact]:
    """All IPv4 (4) or IPv6 (6) addresses of the socket's namespace.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    found = set()
    for data, start, end in socket.dump(routing.dump(routing.GETADDR, family)):
        _, prefix, index = _ADDRESS.unpack_from(data, start)
        values = {kind: data[first:last] for kind, first, last in attributes(data, start + 8, end)}
        address = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
        flags = int.from_bytes(values.get(_IFA_FLAGS, b""), sys.byteorder)
        connected = not flags & routing.IFA_F_NOPREFIXROUTE
        found.add(AddressFact(index, address, prefix, connected))
    return found


def read_routes(socket: Socket, family: int) -> set[RouteFact]:
    """All IPv4 (4) or IPv6 (6) routes of the socket's namespace, in every table.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    found = set()
    for data, start, end in socket.dump(routing.dump(routing.GETROUTE, family)):
        _, prefix, _, table = _ROUTE.unpack_from(data, start)
        values = {
            kind: data[first:last]
            for kind, first, last in attributes(data, start + _ROUTE_BYTES, end)
        }
        found.add(
            RouteFact(
                _number(values.get(_TABLE), table),
                values.get(_RTA_DST, b""),
                prefix,
                _number(values.get(_RTA_OIF), 0),
                values.get(_RTA_GATEWAY, b""),
                values.get(_RTA_PREFSRC, b""),
            )
        )
    return found


def read_rules(socket: Socket, family: int) -> set[RuleFact]:
    """The IPv4 (4) or IPv6 (6) routing rules of the socket's namespace.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    found = set()
    for data, start, end in socket.dump(routing.dump(routing.GETRULE, family)):
        _, _, prefix, table, action = _RULE.unpack_from(data, start)
        values = {
            kind: data[first:last]
            for kind, first, last in attributes(data, start + _ROUTE_BYTES, end)
        }
        source = values.get(_FRA_SRC, b"")
        priority = _number(values.get(_FRA_PRIORITY), 0)
        found.add(RuleFact(source, prefix, _number(values.get(_TABLE), table), priority, action))
    return found


@functools.cache
def _dump_bridges() -> Template:
    info = {"attrs": [("IFLA_INFO_KIND", "bridge")]}  # the kernel leaves other links out
    attributes = [("IFLA_LINKINFO", info), ("IFLA_EXT_MASK", _SKIP_STATS)]
    return Template(ifinfmsg, messages.GETLINK, DUMP, {}, attributes=attributes)


def read_bridges(socket: Socket) -> dict[int, BridgeFact]:
    """The bridges of the socket's namespace by ifindex.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    found = {}
    for data, start, end in socket.dump(_dump_bridges().fill()):
        _, _, index = _LINK.unpack_from(data, start)
        info = table(data, *table(data, start + _LINK.size, end).get(_IFLA_LINKINFO, (0, 0)))
        values = {
            kind: int.from_bytes(data[first:last], sys.byteorder)
            for kind, first, last in attributes(data, *info.get(_INFO_DATA, (0, 0)))
        }
        found[index] = BridgeFact(
            values.get(_BR_STP_STATE),
            values.get(_BR_AGEING_TIME),
            values.get(_BR_MCAST_SNOOPING),
            values.get(_BR_FORWARD_DELAY),
        )
    return found


def _number(raw: bytes | None, default: int) -> int:
    return int.from_bytes(raw, sys.byteorder) if raw else default
