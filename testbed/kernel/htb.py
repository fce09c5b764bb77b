"""HTB as netlink messages, encoded by pyroute2's message class.

The parameters are not pyroute2's (0.9): its burst is in whole microseconds, 1 % off at 10 Gb/s,
and by default so short that a link loses 5-9 %; it sends two 1 KiB rate tables that the kernel
no longer reads, and no linklayer, without which the kernel asks for those tables.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.kernel.template import (
    ACK,
    CREATE,
    DUMP,
    EXCLUSIVE,
    REPLACE,
    REQUEST,
    Slots,
    Template,
)
from testbed.measure.theory import ETHERNET_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.plan.policies import Shape, TrafficClass

NEWQDISC, DELQDISC = 36, 37
NEWTCLASS, DELTCLASS, GETTCLASS = 40, 41, 42
ROOT_MINOR, ROOT_CLASS = 1, 0x10001
TC_ROOT = 0xFFFFFFFF
QUANTUM_BYTES = 65536  # a 64 KiB GSO frame: smaller quanta share unevenly
TICK_NS = 64  # PSCHED_TICKS2NS(1), fixed in the kernel since 2.6.31 (/proc/net/psched)
_U32_MOST = 2**32 - 1
_TCA_KIND, _TCA_OPTIONS = 1, 2


@dataclass(frozen=True, slots=True)
class HtbQdisc:
    """An HTB qdisc: at a link's root, or inside a class of the one there (`parent`)."""

    major: int
    parent: int
    default: int
    classes: tuple[HtbClass, ...]

    @property
    def handle(self) -> int:
        """Its number."""
        return self.major << 16


@dataclass(frozen=True, slots=True)
class HtbClass:
    """A class as HTB is told it: its qdisc's root, or one right below that."""

    major: int
    minor: int
    rate_bytes_per_s: int
    ceil_bytes_per_s: int
    burst_bytes: int
    cburst_bytes: int
    quantum_bytes: int

    @property
    def handle(self) -> int:
        """Its number, major and minor."""
        return self.major << 16 | self.minor

    @property
    def is_root(self) -> bool:
        """Whether all others of its qdisc are below it."""
        return self.minor == ROOT_MINOR

    @property
    def parent_handle(self) -> int:
        """The number of the class or qdisc above it."""
        return self.major << 16 | (0 if self.is_root else ROOT_MINOR)

    @property
    def is_inner_root(self) -> bool:
        """Whether it is the second qdisc's root, which limits nothing."""
        return self.major > 1 and self.is_root

    @property
    def burst_ticks(self) -> int:
        """The burst as HTB has it."""
        return burst_ticks(self.burst_bytes, self.rate_bytes_per_s)

    @property
    def cburst_ticks(self) -> int:
        """The burst at the ceiling as HTB has it."""
        return burst_ticks(self.cburst_bytes, self.ceil_bytes_per_s)


def qdiscs_of(step: Shape) -> list[HtbQdisc]:
    """The qdisc of a shape, and the one inside its default class if there are such classes.

    A peak above the average holds to within a millisecond, or a full frame of a slow link.
    """
    rate, burst = step.htb_rate_bytes_per_s, step.burst_bytes
    ceil = rate if step.ceil_bytes_per_s is None else step.ceil_bytes_per_s
    cburst = burst if ceil == rate else max(ceil // 1000, step.mtu + ETHERNET_HEADER_BYTES)
    root = HtbClass(1, ROOT_MINOR, rate, ceil, burst, cburst, QUANTUM_BYTES)
    outer = [one for one in step.classes if one.major == 1]
    found = [HtbQdisc(1, TC_ROOT, step.default, (root, *map(_below_root, outer)))]
    inner = [one for one in step.classes if one.major != 1]
    if inner:
        root = replace(root, major=inner[0].major)
        classes = (root, *map(_below_root, inner))
        found.append(HtbQdisc(root.major, 1 << 16 | step.default, inner[0].minor, classes))
    return found


def classes_of(step: Shape) -> list[HtbClass]:
    """All classes of a shape, each after the one above it."""
    return [one for qdisc in qdiscs_of(step) for one in qdisc.classes]


def _below_root(one: TrafficClass) -> HtbClass:
    return HtbClass(
        one.major, one.minor, one.rate_bytes_per_s, one.ceil_bytes_per_s,
        one.burst_bytes, one.burst_bytes, one.quantum_bytes,
    )  # fmt: skip


def burst_ticks(burst_bytes: int, rate_bytes_per_s: int) -> int:
    """A burst as HTB wants it: the time it takes at the rate, in ticks of 64 ns, rounded up."""
    return min(-(-burst_bytes * 10**9 // (rate_bytes_per_s * TICK_NS)), _U32_MOST)


def shape(step: Shape, index: int) -> list[bytearray]:
    """HTB at a link's root, then its classes, then their queues."""
    made = [data for one in qdiscs_of(step) for data in create(one, index)]
    return made + queues(step, index)


def create(one: HtbQdisc, index: int) -> Iterator[bytearray]:
    """An HTB qdisc, then its classes."""
    yield _qdisc().fill(index=index, handle=one.handle, parent=one.parent, default=one.default)
    yield from (rate_class(each, index) for each in one.classes)


def leaves_of(step: Shape) -> list[int]:
    """The handles of the classes that queue: those with neither classes nor a qdisc below."""
    qdiscs = qdiscs_of(step)
    above = {qdisc.parent for qdisc in qdiscs}
    return [
        one.handle
        for qdisc in qdiscs
        for one in qdisc.classes
        if one.handle not in above and (not one.is_root or len(qdisc.classes) == 1)
    ]


def queues(step: Shape, index: int) -> list[bytearray]:
    """What bounds each leaf's queue in bytes, whether it has such a queue already or not."""
    if step.queue_bytes is None:
        return []
    return [_fifo(index, leaf, step.queue_bytes) for leaf in leaves_of(step)]


def _fifo(index: int, parent: int, limit_bytes: int) -> bytearray:
    """A bfifo (struct tc_fifo_qopt), which pyroute2 0.9 does not encode."""
    body = struct.pack("=BxxxiIII", 0, index, 0, parent, 0)
    body += struct.pack("=HH8s", 10, _TCA_KIND, b"bfifo") + struct.pack(
        "=HHI", 8, _TCA_OPTIONS, limit_bytes
    )
    head = struct.pack("=IHHII", 16 + len(body), NEWQDISC, REQUEST | ACK | CREATE | REPLACE, 0, 0)
    return bytearray(head + body)


@functools.cache
def _qdisc() -> Template:
    slots = Slots()
    # Every packet that names no class goes to the default one, ARP too.
    init = {"version": 3, "rate2quantum": 10, "defcls": slots.u32("default")}
    attributes = [("TCA_KIND", "htb"), ("TCA_OPTIONS", {"attrs": [("TCA_HTB_INIT", init)]})]
    return Template(
        tcmsg,
        NEWQDISC,
        ACK | CREATE | EXCLUSIVE,
        _numbers(slots),
        attributes=attributes,
        slots=slots,
    )


def _numbers(slots: Slots) -> dict[str, int]:
    return {name: slots.u32(name) for name in ("index", "handle", "parent")}


@functools.cache
def _rate_class(flags: int) -> Template:
    slots = Slots()
    parameters = {
        "rate": slots.u32("rate"),
        "ceil": slots.u32("ceil"),
        "buffer": slots.u32("burst"),
        "cbuffer": slots.u32("cburst"),
        "quantum": slots.u32("quantum"),
        # pyroute2 calls linklayer reserved: 1 is Ethernet, so no rate table is looked for.
        "rate___reserved": 1,
        "ceil___reserved": 1,
    }
    options = [
        ("TCA_HTB_PARMS", parameters),
        ("TCA_HTB_RATE64", slots.u64("rate64")),
        ("TCA_HTB_CEIL64", slots.u64("ceil64")),
    ]
    attributes = [("TCA_KIND", "htb"), ("TCA_OPTIONS", {"attrs": options})]
    return Template(
        tcmsg, NEWTCLASS, ACK | flags, _numbers(slots), attributes=attributes, slots=slots
    )


def rate_class(one: HtbClass, index: int, change: bool = False) -> bytearray:
    """A class of a shaped link; `change` an existing one."""
    return _rate_class(0 if change else CREATE | EXCLUSIVE).fill(
        index=index,
        handle=one.handle,
        parent=one.parent_handle,
        rate=min(one.rate_bytes_per_s, _U32_MOST),
        rate64=one.rate_bytes_per_s,
        ceil=min(one.ceil_bytes_per_s, _U32_MOST),
        ceil64=one.ceil_bytes_per_s,
        burst=one.burst_ticks,
        cburst=one.cburst_ticks,
        quantum=one.quantum_bytes,
    )


@functools.cache
def _delete_class() -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "handle": slots.u32("handle")}
    return Template(tcmsg, DELTCLASS, ACK, fields, slots=slots)


def delete_class(handle: int, index: int) -> bytearray:
    """Take a class away that has none below it; what is queued in it is dropped."""
    return _delete_class().fill(index=index, handle=handle)


@functools.cache
def _delete_qdisc() -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "parent": slots.u32("parent")}
    return Template(tcmsg, DELQDISC, ACK, fields, slots=slots)


def delete_qdisc(index: int, parent: int = TC_ROOT) -> bytearray:
    """Take a link's root qdisc away, or that inside a class, with all its classes."""
    return _delete_qdisc().fill(index=index, parent=parent)


@functools.cache
def _dump_classes() -> Template:
    slots = Slots()
    return Template(tcmsg, GETTCLASS, DUMP, {"index": slots.u32("index")}, slots=slots)


def dump_classes(index: int) -> bytearray:
    """Ask for the classes of a link's qdiscs."""
    return _dump_classes().fill(index=index)
