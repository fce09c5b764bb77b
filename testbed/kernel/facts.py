"""Addresses, routes, rules, bridges and HTB of a namespace as the kernel reports them.

Only what a plan step says is parsed: pyroute2 takes over 300 us to decode a message.
"""

from __future__ import annotations

import functools
import struct
import sys
from typing import NamedTuple

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.kernel import htb, messages, routing
from testbed.kernel.netlink import Socket, attributes
from testbed.kernel.template import DUMP, Template

_ADDRESS = struct.Struct("=BBxxI")  # ifaddrmsg: family, prefixlen, flags, scope, index
_ROUTE = struct.Struct("=BBBxB")  # rtmsg: family, dst_len, src_len, tos, table
_RULE = struct.Struct("=BBBxBxxB")  # fib_rule_hdr: as rtmsg, and action
_ROUTE_BYTES = 12  # of both
_TC = struct.Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
_PARAMETERS = struct.Struct("=8xI8xIIII")  # tc_htb_opt: rate, ceil, buffer, cbuffer, quantum
_DEFAULT_CLASS = struct.Struct("=8xI")  # tc_htb_glob: version, rate2quantum, defcls
_LINK = struct.Struct("=BxHi8x")  # ifinfomsg: family, type, index
_U64 = struct.Struct("=Q")
_BASIC, _QUEUE = struct.Struct("=QI"), struct.Struct("=IIIII")  # gnet_stats_basic, _queue
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _TABLE = 1, 4, 5, 7, 15
_FRA_SRC, _FRA_PRIORITY = 2, 6
_IFLA_LINKINFO, _INFO_DATA = 18, 2
_BR_FORWARD_DELAY, _BR_AGEING_TIME, _BR_STP_STATE, _BR_MCAST_SNOOPING = 1, 4, 5, 23
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS
_GETQDISC = 38
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2 = 1, 2, 7
_TCA_STATS_BASIC, _TCA_STATS_QUEUE, _TCA_STATS_PKT64 = 1, 3, 8
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7


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
        info = _table(data, *_table(data, start + _LINK.size, end).get(_IFLA_LINKINFO, (0, 0)))
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


@functools.cache
def _dump_qdiscs() -> Template:
    return Template(tcmsg, _GETQDISC, DUMP, {})


def read_default_classes(socket: Socket) -> dict[int, int]:
    """The minor number of the class that HTB sends unclaimed packets to, by ifindex.

    Of every link in the socket's namespace that has HTB at its root.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    found = {}
    for data, start, end in socket.dump(_dump_qdiscs().fill()):
        _, index, _, parent, _ = _TC.unpack_from(data, start)
        top = _table(data, start + _TC.size, end)
        first, last = top.get(_TCA_KIND, (0, 0))
        if parent == htb.TC_ROOT and data[first:last] == b"htb\0":
            options = _table(data, *top.get(_TCA_OPTIONS, (0, 0)))
            if _HTB_INIT in options:
                (found[index],) = _DEFAULT_CLASS.unpack_from(data, options[_HTB_INIT][0])
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
    if _TCA_STATS_PKT64 in statistics:  # sent only for what 32 bits cannot hold
        (sent_packets,) = _U64.unpack_from(data, statistics[_TCA_STATS_PKT64][0])
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
