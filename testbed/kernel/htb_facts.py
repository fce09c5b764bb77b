"""HTB as the kernel reports it: what it is set to, and what has passed it."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, NamedTuple

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.kernel import htb
from testbed.kernel.netlink import Socket, table
from testbed.kernel.template import DUMP, Template

if TYPE_CHECKING:
    from collections.abc import Iterable

_TC = struct.Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
_PARAMETERS = struct.Struct("=8xI8xIIII")  # tc_htb_opt: rate, ceil, buffer, cbuffer, quantum
_DEFAULT_CLASS = struct.Struct("=8xI")  # tc_htb_glob: version, rate2quantum, defcls
_U64, _LIMIT = struct.Struct("=Q"), struct.Struct("=I")
_BASIC, _QUEUE = struct.Struct("=QI"), struct.Struct("=IIIII")  # gnet_stats_basic, _queue
_GETQDISC = 38
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2 = 1, 2, 7
_TCA_STATS_BASIC, _TCA_STATS_QUEUE, _TCA_STATS_PKT64 = 1, 3, 8
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7


class ClassFact(NamedTuple):
    """An HTB class; rates in bytes per second, bursts in ticks of 64 ns, and its counters.

    The `parent` of a root class is TC_ROOT.
    """

    handle: int
    parent: int
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


class QdiscFact(NamedTuple):
    """A qdisc; `default` is the minor of HTB's default class, None without HTB.

    `limit` is how much a fifo holds, bytes of a bfifo, 0 of what is none.
    """

    kind: str
    default: int | None
    dropped: int
    overlimits: int
    limit: int = 0


@functools.cache
def _dump_qdiscs() -> Template:
    return Template(tcmsg, _GETQDISC, DUMP, {})


def read_qdiscs(socket: Socket) -> dict[tuple[int, int], QdiscFact]:
    """The qdiscs in the socket's namespace by ifindex and parent: TC_ROOT, or a class.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    found = {}
    for data, start, end in socket.dump(_dump_qdiscs().fill()):
        _, index, _, parent, _ = _TC.unpack_from(data, start)
        found[index, parent] = _qdisc(data, start, end)
    return found


def _qdisc(data: bytes, start: int, end: int) -> QdiscFact:
    top = table(data, start + _TC.size, end)
    first, last = top.get(_TCA_KIND, (0, 0))
    kind = data[first:last].rstrip(b"\0").decode()
    default, limit = None, 0
    if kind in {"bfifo", "pfifo"}:
        at, end_ = top.get(_TCA_OPTIONS, (0, 0))
        limit = _LIMIT.unpack_from(data, at)[0] if end_ - at >= _LIMIT.size else 0
    if kind == "htb":
        options = table(data, *top.get(_TCA_OPTIONS, (0, 0)))
        if _HTB_INIT in options:
            (default,) = _DEFAULT_CLASS.unpack_from(data, options[_HTB_INIT][0])
    statistics = table(data, *top.get(_TCA_STATS2, (0, 0)))
    dropped = overlimits = 0
    if _TCA_STATS_QUEUE in statistics:
        _, _, dropped, _, overlimits = _QUEUE.unpack_from(data, statistics[_TCA_STATS_QUEUE][0])
    return QdiscFact(kind, default, dropped, overlimits, limit)


def read_classes(socket: Socket, index: int) -> tuple[ClassFact, ...]:
    """The HTB classes of a link, in no order.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    dump = socket.dump(htb.dump_classes(index))
    return tuple(_class(data, start, end) for data, start, end in dump)


def by_minor(classes: Iterable[ClassFact]) -> dict[int, ClassFact]:
    """Classes by their minor number; without the second qdisc's root, which has the first's."""
    return {
        one.handle & 0xFFFF: one
        for one in classes
        if one.handle >> 16 == 1 or one.parent != htb.TC_ROOT
    }


def _class(data: bytes, start: int, end: int) -> ClassFact:
    _, _, handle, parent, _ = _TC.unpack_from(data, start)
    top = table(data, start + _TC.size, end)
    options = table(data, *top.get(_TCA_OPTIONS, (0, 0)))
    statistics = table(data, *top.get(_TCA_STATS2, (0, 0)))
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
        handle, parent, rate, ceil, burst, cburst, quantum,
        sent_bytes, sent_packets, backlog, packets, drops, overlimits,
    )  # fmt: skip
