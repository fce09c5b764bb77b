"""HTB as netlink messages, encoded by pyroute2's message class.

The parameters are not pyroute2's (0.9): its burst is in whole microseconds, 1 % off at 10 Gb/s,
and by default so short that a link loses 5-9 %; it sends two 1 KiB rate tables that the kernel
no longer reads, and no linklayer, without which the kernel asks for those tables.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.kernel.template import ACK, CREATE, DUMP, EXCLUSIVE, Slots, Template

if TYPE_CHECKING:
    from testbed.plan.policies import Shape

NEWQDISC, DELQDISC = 36, 37
NEWTCLASS, GETTCLASS = 40, 42
HTB_QDISC, HTB_CLASS = 0x10000, 0x10001
TC_ROOT = 0xFFFFFFFF
QUANTUM_BYTES = 65536  # a 64 KiB GSO frame: smaller quanta share unevenly
TICK_NS = 64  # PSCHED_TICKS2NS(1), fixed in the kernel since 2.6.31 (/proc/net/psched)
_U32_MOST = 2**32 - 1


def burst_ticks(burst_bytes: int, rate_bytes_per_s: int) -> int:
    """A burst as HTB wants it: the time it takes at the rate, in ticks of 64 ns, rounded up."""
    return min(-(-burst_bytes * 10**9 // (rate_bytes_per_s * TICK_NS)), _U32_MOST)


@functools.cache
def _qdisc() -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "handle": HTB_QDISC, "parent": TC_ROOT}
    # Every packet that no filter claims goes to the one class, ARP too.
    init = {"version": 3, "rate2quantum": 10, "defcls": HTB_CLASS & 0xFFFF}
    attributes = [("TCA_KIND", "htb"), ("TCA_OPTIONS", {"attrs": [("TCA_HTB_INIT", init)]})]
    return Template(
        tcmsg, NEWQDISC, ACK | CREATE | EXCLUSIVE, fields, attributes=attributes, slots=slots
    )


def qdisc(index: int) -> bytearray:
    """HTB at a link's root."""
    return _qdisc().fill(index=index)


@functools.cache
def _rate_class(flags: int) -> Template:
    slots = Slots()
    rate, ticks = slots.u32("rate"), slots.u32("ticks")
    parameters = {
        "rate": rate,
        "ceil": rate,
        "buffer": ticks,
        "cbuffer": ticks,
        "quantum": QUANTUM_BYTES,
        # pyroute2 calls linklayer reserved: 1 is Ethernet, so no rate table is looked for.
        "rate___reserved": 1,
        "ceil___reserved": 1,
    }
    rate64 = slots.u64("rate64")
    options = [
        ("TCA_HTB_PARMS", parameters),
        ("TCA_HTB_RATE64", rate64),
        ("TCA_HTB_CEIL64", rate64),
    ]
    fields = {"index": slots.u32("index"), "handle": HTB_CLASS, "parent": HTB_QDISC}
    attributes = [("TCA_KIND", "htb"), ("TCA_OPTIONS", {"attrs": options})]
    return Template(tcmsg, NEWTCLASS, ACK | flags, fields, attributes=attributes, slots=slots)


def rate_class(step: Shape, index: int, change: bool = False) -> bytearray:
    """The one class of a shaped link; `change` an existing one."""
    return _rate_class(0 if change else CREATE | EXCLUSIVE).fill(
        index=index,
        rate=min(step.htb_rate_bytes_per_s, _U32_MOST),
        rate64=step.htb_rate_bytes_per_s,
        ticks=burst_ticks(step.burst_bytes, step.htb_rate_bytes_per_s),
    )


@functools.cache
def _delete_qdisc() -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "parent": TC_ROOT}
    return Template(tcmsg, DELQDISC, ACK, fields, slots=slots)


def delete_qdisc(index: int) -> bytearray:
    """Take a link's root qdisc away, with all its classes."""
    return _delete_qdisc().fill(index=index)


@functools.cache
def _dump_classes() -> Template:
    slots = Slots()
    return Template(tcmsg, GETTCLASS, DUMP, {"index": slots.u32("index")}, slots=slots)


def dump_classes(index: int) -> bytearray:
    """Ask for the classes of a link's qdiscs."""
    return _dump_classes().fill(index=index)
