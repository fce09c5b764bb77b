"""Addresses, routes, rules and HTB classes of a namespace as the kernel reports them.

Only what a plan step says is parsed: pyroute2 takes over 300 us to decode a message.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

from testbed.kernel import htb, routing
from testbed.kernel.netlink import Socket, attributes

_ADDRESS = struct.Struct("=BBxxI")  # ifaddrmsg: family, prefixlen, flags, scope, index
_ROUTE = struct.Struct("=BBBxB")  # rtmsg, fib_rule_hdr: family, dst_len, src_len, tos, table
_ROUTE_BYTES = 12
_TC = struct.Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
_PARAMETERS = struct.Struct("=8xI8xIIII")  # tc_htb_opt: rate, ceil, buffer, cbuffer, quantum
_U64 = struct.Struct("=Q")
_BASIC, _QUEUE = struct.Struct("=QI"), struct.Struct("=IIIII")  # gnet_stats_basic, _queue
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _TABLE = 1, 4, 5, 7, 15
_FRA_SRC = 2
_TCA_OPTIONS, _TCA_STATS2 = 2, 7
_TCA_STATS_BASIC, _TCA_STATS_QUEUE = 1, 3
_HTB_PARMS, _HTB_RATE64, _HTB_CEIL64 = 1, 6, 7


class AddressFact(NamedTuple):
    """An address, packed; `link` is an ifindex."""

    link: int
    address: bytes
    prefix: int


class RouteFact(NamedTuple):
    """A route; `link` is an ifindex, what the route lacks is empty."""

    table: int
    destination: bytes
    prefix: int
    link: int
    via: bytes
    source: bytes


class RuleFact(NamedTuple):
    """A rule for one source address."""

    source: bytes
    prefix: int
    table: int


class ClassFact(NamedTuple):
    """An HTB class; rates in bytes per second, bursts in ticks of 64 ns, and its counters."""

    handle: int
    rate: int
    ceil: int
    burst: int
    cburst: int
    quantum: int
    sent_bytes: int
    sent_packets: int
    queued_bytes: int
    queued_packets: int
    dropped: int
    overlimits: int


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
        found.add(AddressFact(index, address, prefix))
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
        _, _, prefix, table = _ROUTE.unpack_from(data, start)
        values = {
            kind: data[first:last]
            for kind, first, last in attributes(data, start + _ROUTE_BYTES, end)
        }
        source = values.get(_FRA_SRC, b"")
        found.add(RuleFact(source, prefix, _number(values.get(_TABLE), table)))
    return found


def read_classes(socket: Socket, index: int) -> tuple[ClassFact, ...]:
    """The HTB classes of a link.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    dump = socket.dump(htb.dump_classes(index))
    return tuple(_class(data, start, end) for data, start, end in dump)


def _class(data: bytes, start: int, end: int) -> ClassFact:
    _, _, handle, _, _ = _TC.unpack_from(data, start)
    top = _table(data, start + _TC.size, end)
    options = _table(data, *top.get(_TCA_OPTIONS, (0, 0)))
    statistics = _table(data, *top.get(_TCA_STATS2, (0, 0)))
    rate = ceil = burst = cburst = quantum = 0
    if _HTB_PARMS in options:
        rate, ceil, burst, cburst, quantum = _PARAMETERS.unpack_from(data, options[_HTB_PARMS][0])
    if _HTB_RATE64 in options:  # sent only for what 32 bits cannot hold
        (rate,) = _U64.unpack_from(data, options[_HTB_RATE64][0])
    if _HTB_CEIL64 in options:
        (ceil,) = _U64.unpack_from(data, options[_HTB_CEIL64][0])
    sent_bytes = sent_packets = packets = backlog = drops = overlimits = 0
    if _TCA_STATS_BASIC in statistics:
        sent_bytes, sent_packets = _BASIC.unpack_from(data, statistics[_TCA_STATS_BASIC][0])
    if _TCA_STATS_QUEUE in statistics:
        at, _ = statistics[_TCA_STATS_QUEUE]
        packets, backlog, drops, _, overlimits = _QUEUE.unpack_from(data, at)
    return ClassFact(
        handle, rate, ceil, burst, cburst, quantum,
        sent_bytes, sent_packets, backlog, packets, drops, overlimits,
    )  # fmt: skip


def _table(data: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    return {kind: (first, last) for kind, first, last in attributes(data, start, end)}


def _number(raw: bytes | None, default: int) -> int:
    return int.from_bytes(raw, sys.byteorder) if raw else default
