"""The clsact qdisc of a port and its two eBPF filters, as netlink messages."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from socket import htons
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.kernel.htb import DELQDISC, NEWQDISC
from testbed.kernel.iochain.cells import INCOMING, OUTGOING
from testbed.kernel.netlink import attributes
from testbed.kernel.template import ACK, CREATE, DUMP, EXCLUSIVE, Slots, Template

if TYPE_CHECKING:
    from testbed.kernel.netlink import Socket

PREFERENCE = 100
"""Filters with a higher one see what the chain lets pass."""
_NEWTFILTER, _DELTFILTER, _GETTFILTER = 44, 45, 46
_CLSACT_PARENT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_PARENTS = {INCOMING: 0xFFFFFFF2, OUTGOING: 0xFFFFFFF3}
_FILTER_HANDLE = 1
ALL_PROTOCOLS = 3  # ETH_P_ALL
_INFO = PREFERENCE << 16 | htons(ALL_PROTOCOLS)
_TC = struct.Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
_TCA_KIND, _TCA_OPTIONS = 1, 2
_BPF_FLAGS, _BPF_TAG, _BPF_ID = 8, 10, 11
_DIRECT_ACTION = 1
_U32 = struct.Struct("=I")


@functools.cache
def _clsact(kind: int, flags: int) -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "handle": _CLSACT_HANDLE, "parent": _CLSACT_PARENT}
    attribute = [("TCA_KIND", "clsact")]
    return Template(tcmsg, kind, ACK | flags, fields, attributes=attribute, slots=slots)


def create_clsact(index: int) -> bytearray:
    """A port's place for filters; EEXIST if it has one."""
    return _clsact(NEWQDISC, CREATE | EXCLUSIVE).fill(index=index)


def delete_clsact(index: int) -> bytearray:
    """Take a port's filters away, all of them."""
    return _clsact(DELQDISC, 0).fill(index=index)


@functools.cache
def _filter(kind: int, flags: int, direction: int, name: str) -> Template:
    slots = Slots()
    fields = {
        "index": slots.u32("index"),
        "handle": _FILTER_HANDLE,
        "parent": _PARENTS[direction],
        "info": _INFO,
    }
    attribute: list[tuple[str, object]] = [("TCA_KIND", "bpf")]
    if name:
        options = [
            ("TCA_BPF_FD", slots.u32("fd")),
            ("TCA_BPF_NAME", name),
            ("TCA_BPF_FLAGS", _DIRECT_ACTION),
        ]
        attribute.append(("TCA_OPTIONS", {"attrs": options}))
    return Template(tcmsg, kind, ACK | flags, fields, attributes=attribute, slots=slots)


def set_filter(index: int, direction: int, name: str, fd: int, replace: bool) -> bytearray:
    """Run a program on a port's frames of one direction; `replace` the one that does, at once."""
    flags = CREATE if replace else CREATE | EXCLUSIVE
    return _filter(_NEWTFILTER, flags, direction, name).fill(index=index, fd=fd)


def delete_filter(index: int, direction: int) -> bytearray:
    """Run no program any more."""
    return _filter(_DELTFILTER, 0, direction, "").fill(index=index)


@functools.cache
def _dump_filters(direction: int) -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "parent": _PARENTS[direction]}
    return Template(tcmsg, _GETTFILTER, DUMP, fields, slots=slots)


@dataclass(frozen=True, slots=True)
class FilterFact:
    """A filter as the kernel has it; `program` is the id of its eBPF program, 0 for none."""

    preference: int
    kind: str
    handle: int
    protocol: int
    direct_action: bool
    program: int
    tag: bytes

    @property
    def ours(self) -> bool:
        """Whether it stands where an IOChain does."""
        return (self.preference, self.kind, self.handle) == (PREFERENCE, "bpf", _FILTER_HANDLE)


def read_filters(socket: Socket, index: int, direction: int) -> list[FilterFact]:
    """The filters of one direction of a port, in order; none if it has no clsact.

    Raises:
        OSError, RefusedError: the kernel does not answer.
    """
    dump = socket.dump(_dump_filters(direction).fill(index=index))
    facts = (_fact(data, start, end) for data, start, end in dump)
    return [fact for fact in facts if fact.handle]  # a chain of filters has itself no handle


def _fact(data: bytes, start: int, end: int) -> FilterFact:
    _, _, handle, _, info = _TC.unpack_from(data, start)
    top = {kind: data[a:b] for kind, a, b in attributes(data, start + _TC.size, end)}
    raw = top.get(_TCA_OPTIONS, b"")
    options = {kind: raw[a:b] for kind, a, b in attributes(raw, 0, len(raw))}
    flags, program = (
        _U32.unpack(options[kind])[0] if kind in options else 0 for kind in (_BPF_FLAGS, _BPF_ID)
    )
    return FilterFact(
        preference=info >> 16,
        kind=top.get(_TCA_KIND, b"").rstrip(b"\0").decode(),
        handle=handle,
        protocol=htons(info & 0xFFFF),
        direct_action=bool(flags & _DIRECT_ACTION),
        program=program,
        tag=options.get(_BPF_TAG, b""),
    )
