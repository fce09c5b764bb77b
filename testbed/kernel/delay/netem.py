"""The netem qdisc of a wire's port as netlink messages: a delay, perhaps jitter, in order.

pyroute2 (0.9) knows only netem's old fields, delays in 32-bit ticks of 64 ns and rates in 32 bits.
Sources: linux/pkt_sched.h, net/sched/sch_netem.c.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, NamedTuple

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.kernel.netlink import attributes
from testbed.kernel.template import ACK, CREATE, DUMP, REPLACE, REQUEST, Slots, Template

if TYPE_CHECKING:
    from testbed.kernel.netlink import Socket

NETEM_QDISC = 0x20000
ORDERED_RATE_BYTES_PER_S = 1 << 60
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_ROOT = 0xFFFFFFFF
_TICK_NS = 64  # PSCHED_SHIFT 6: what the old 32-bit fields count in
_U32_MOST = 2**32 - 1
_KIND, _OPTIONS = 1, 2
_REORDER, _CORRUPT, _LOSS, _RATE, _RATE64, _LATENCY64, _JITTER64 = 3, 4, 5, 6, 8, 10, 11
_TC = struct.Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
_OLD = struct.Struct("=6I")  # tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter
_OLD_RATE = struct.Struct("=IiIi")  # tc_netem_rate: rate, overhead, cell size, cell overhead
_NUMBER = struct.Struct("=q")
_ATTRIBUTE = struct.Struct("=HH")
_HEADER = struct.Struct("=IHHII")


class NetemFact(NamedTuple):
    """A netem qdisc as the kernel reports it.

    `harmless` is one that loses, copies, reorders and corrupts nothing.
    """

    delay_ns: int
    jitter_ns: int
    limit_packets: int
    rate_bytes_per_s: int
    harmless: bool


def qdisc(index: int, delay_ns: int, jitter_ns: int, limit_packets: int) -> bytearray:
    """A netem at a link's root; one that is there already is changed, with what it holds.

    It delays what the link sends. Jitter is uniform in plus or minus `jitter_ns`. With a rate
    netem lets no packet overtake another: the rate here is so high that it costs no time.
    """
    options = (
        _OLD.pack(_ticks(delay_ns), limit_packets, 0, 0, 0, _ticks(jitter_ns))
        + _attribute(_RATE, _OLD_RATE.pack(_U32_MOST, 0, 0, 0))
        + _attribute(_RATE64, _NUMBER.pack(ORDERED_RATE_BYTES_PER_S))
        + _attribute(_LATENCY64, _NUMBER.pack(delay_ns))
        + _attribute(_JITTER64, _NUMBER.pack(jitter_ns))
    )
    body = (
        _TC.pack(0, index, NETEM_QDISC, _ROOT, 0)
        + _attribute(_KIND, b"netem\0")
        + _attribute(_OPTIONS, options)
    )
    flags = REQUEST | ACK | CREATE | REPLACE
    return bytearray(_HEADER.pack(_HEADER.size + len(body), _NEWQDISC, flags, 0, 0) + body)


def _ticks(duration_ns: int) -> int:
    return min(duration_ns // _TICK_NS, _U32_MOST)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


@functools.cache
def _delete() -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "parent": _ROOT}
    return Template(tcmsg, _DELQDISC, ACK, fields, slots=slots)


def delete_qdisc(index: int) -> bytearray:
    """Take a link's netem away; what it holds is lost."""
    return _delete().fill(index=index)


@functools.cache
def _dump() -> Template:
    slots = Slots()
    return Template(tcmsg, _GETQDISC, DUMP, {"index": slots.u32("index")}, slots=slots)


def read(socket: Socket, index: int) -> NetemFact | None:
    """The netem at a link's root; None if there is none.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    for data, start, end in socket.dump(_dump().fill(index=index)):
        fact = parse(data, start, end, index)
        if fact is not None:
            return fact
    return None


def parse(data: bytes, start: int, end: int, index: int) -> NetemFact | None:
    """The netem in a message about a qdisc, if it is that and at this link's root."""
    _, link, _, parent, _ = _TC.unpack_from(data, start)
    found = {kind: (first, last) for kind, first, last in attributes(data, start + 20, end)}
    kind_first, kind_last = found.get(_KIND, (0, 0))
    if (link, parent) != (index, _ROOT) or data[kind_first:kind_last] != b"netem\0":
        return None
    first, last = found[_OPTIONS]
    latency, limit, loss, gap, duplicate, jitter = _OLD.unpack_from(data, first)
    values = {_LATENCY64: latency * _TICK_NS, _JITTER64: jitter * _TICK_NS, _RATE64: 0}
    harmless = (loss, gap, duplicate) == (0, 0, 0)
    for kind, at, after in attributes(data, first + _OLD.size, last):
        if kind == _RATE:
            values[_RATE64] = values[_RATE64] or _OLD_RATE.unpack_from(data, at)[0]
        elif kind in values:
            values[kind] = _NUMBER.unpack_from(data, at)[0]
        elif kind == _LOSS or (kind in (_REORDER, _CORRUPT) and any(data[at:after])):
            harmless = False
    return NetemFact(values[_LATENCY64], values[_JITTER64], limit, values[_RATE64], harmless)
