"""Copies of a port's frames before or after its IOChain, on a device made for it.

A packet socket hears what a port receives before the chain, and what it sends after it; what
the chain let in, or was given to send, is seen here: a program of one helper
(`bpf_clone_redirect`), as a tc filter of a preference below or above the chain's own.
"""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import htons
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.errors import KernelError
from testbed.kernel import messages, netns, sysctl
from testbed.kernel.channels import Channels
from testbed.kernel.iochain import bpf, filters
from testbed.kernel.iochain.assembler import R0, R2, R3, assemble, call, compute, leave
from testbed.kernel.iochain.cells import DIRECTIONS, INCOMING, OUTGOING
from testbed.kernel.links import read_links
from testbed.kernel.template import ACK, CREATE, EXCLUSIVE, Slots, Template
from testbed.plan.steps import End, Veth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BEFORE, AFTER = filters.PREFERENCE - 50, filters.PREFERENCE + 50
_NEWTFILTER, _DELTFILTER = 44, 45
_PARENTS = {INCOMING: 0xFFFFFFF2, OUTGOING: 0xFFFFFFF3}
_ETH_P_ALL = 3
_CLONE_REDIRECT = 13  # linux/bpf.h
_GO_ON, _DROP = -1, 2  # TC_ACT_UNSPEC, TC_ACT_SHOT
_DIRECT_ACTION = 1
_MTU = 65535  # veth's largest: nothing is too long to be copied
_SINK = "-sink"
_ALIAS = "testbed capture by process "


@contextmanager
def mirror(where: str, dev: str, direction: int, preference: int) -> Iterator[str]:
    """A device in namespace `where` that sends a copy of each frame; gone after the block.

    A packet socket on it sees them as outgoing. A capture that was killed leaves its device, which
    the next one at that port, or the end of the lab, takes away.

    Args:
        where: the namespace.
        dev: the port.
        direction: INCOMING or OUTGOING, as the port has it.
        preference: BEFORE or AFTER the chain's.

    Raises:
        KernelError: there is no such port, or the kernel refused; nothing is left.
    """
    made = _Mirror(where, dev, direction, preference)
    try:
        netns.in_thread(lambda _: made.make())
        yield made.device
    finally:
        netns.in_thread(lambda _: made.unmake())


@dataclass
class _Mirror:
    where: str
    dev: str
    direction: int
    preference: int
    device: str = ""
    _undo: list[Callable[[Channels], None]] = field(default_factory=list)

    def make(self) -> None:
        with Channels() as channels:
            self._remove_stale(channels)
            channels.forget(self.where)  # what it knows of the links
            copies = self._make_device(channels)
            index = channels.index(self.where, self.dev)
            clsact = filters.create_clsact(index)
            if channels.socket(self.where).request([clsact]) is None:  # or else it has one
                self._undo.append(lambda again: self._remove_clsact(again, index))
            copy = [
                compute(R2, "=", copies),
                compute(R3, "=", 0),  # by its egress
                call(_CLONE_REDIRECT),
                compute(R0, "=", _GO_ON),
                leave(),
            ]
            place = _place(index, self.direction, self.preference, copies)
            self._attach(channels, assemble(copy).data, **place)
            self._undo.append(lambda again: self._forget(again, _delete_filter(**place)))

    def unmake(self) -> None:
        with Channels() as channels:
            while self._undo:
                self._undo.pop()(channels)

    def _make_device(self, channels: Channels) -> int:
        """A veth whose other end drops all: without carrier the first would send nothing."""
        used = {link.name for link in read_links(channels.socket(self.where)).values()}
        number = next(n for n in range(1000) if f"capture{n}" not in used)
        self.device, sink = f"capture{number}", f"capture{number}{_SINK}"
        alias = f"{_ALIAS}{os.getpid()}"
        ends = [End(self.where, name, _MTU, alias) for name in (self.device, sink)]
        index = channels.choose_index(self.where, self.device)
        other = channels.choose_index(self.where, sink)
        fd = netns.open_fd(self.where)
        try:
            self._request(channels, messages.create_veth(Veth(*ends), index, other, fd))
        finally:
            os.close(fd)
        name = self.device
        self._undo.append(lambda again: self._delete(again, name))
        channels.step_into(self.where)
        for one in (self.device, sink):
            setting = f"net/ipv6/conf/{one}/disable_ipv6"
            if os.access(f"/proc/sys/{setting}", os.F_OK):
                sysctl.write(setting, "1", self.where)
        self._request(channels, messages.configure(index, _MTU, alias=alias))
        self._request(channels, filters.create_clsact(other))
        drop = assemble([compute(R0, "=", _DROP), leave()]).data
        self._attach(channels, drop, **_place(other, INCOMING, BEFORE, 1))
        self._request(channels, messages.configure(other, _MTU, alias=alias))
        return index

    def _attach(self, channels: Channels, code: bytes, **place: int) -> None:
        """Run a program as the filter at a place: index, direction, preference and handle."""
        program = bpf.load_program("capture", code, f"{self.dev} in {self.where}")
        try:
            self._request(channels, _set_filter(program, **place))
        finally:
            os.close(program)

    def _request(self, channels: Channels, message: bytearray) -> None:
        refusal = channels.socket(self.where).request([message])
        if refusal is not None:
            raise KernelError(
                "mirror", f"{self.dev} in {self.where}", refusal.cause, "see `testbed doctor`"
            )

    def _forget(self, channels: Channels, message: bytearray) -> None:
        """Undo, as far as it is still there."""
        if self.where in netns.names():
            channels.socket(self.where).request([message])

    def _delete(self, channels: Channels, device: str) -> None:
        self._forget(channels, messages.delete_link(device))

    def _remove_clsact(self, channels: Channels, index: int) -> None:
        """Unless a chain has been put there meanwhile."""
        if self.where not in netns.names():
            return
        socket = channels.socket(self.where)
        if not any(filters.read_filters(socket, index, one) for one in DIRECTIONS):
            socket.request([filters.delete_clsact(index)])

    def _remove_stale(self, channels: Channels) -> None:
        """What captures that were killed have left: their devices, and filters at this port."""
        socket = channels.socket(self.where)
        port = channels.index(self.where, self.dev)
        for link in read_links(socket).values():
            owner = link.alias.removeprefix(_ALIAS)
            if owner == link.alias or Path(f"/proc/{owner}").exists():
                continue
            if not link.name.endswith(_SINK):  # it goes with the other end
                self._delete(channels, link.name)
            for direction in DIRECTIONS:
                for preference in (BEFORE, AFTER):
                    place = _place(port, direction, preference, link.index)
                    socket.request([_delete_filter(**place)])


def _place(index: int, direction: int, preference: int, handle: int) -> dict[str, int]:
    """The handle is the capture device's ifindex: no two captures at a port have the same."""
    return {"index": index, "direction": direction, "preference": preference, "handle": handle}


def _set_filter(program: int, **place: int) -> bytearray:
    return _at(_filter(_NEWTFILTER, place["direction"]), place, fd=program)


def _delete_filter(**place: int) -> bytearray:
    return _at(_filter(_DELTFILTER, place["direction"]), place)


def _at(template: Template, place: dict[str, int], **more: int) -> bytearray:
    info = place["preference"] << 16 | htons(_ETH_P_ALL)
    return template.fill(index=place["index"], handle=place["handle"], info=info, **more)


@functools.cache
def _filter(kind: int, direction: int) -> Template:
    slots = Slots()
    fields = {
        "index": slots.u32("index"),
        "handle": slots.u32("handle"),
        "parent": _PARENTS[direction],
        "info": slots.u32("info"),
    }
    attributes: list[tuple[str, object]] = [("TCA_KIND", "bpf")]
    if kind == _DELTFILTER:
        return Template(tcmsg, kind, ACK, fields, attributes=attributes, slots=slots)
    options = [
        ("TCA_BPF_FD", slots.u32("fd")),
        ("TCA_BPF_NAME", "capture"),
        ("TCA_BPF_FLAGS", _DIRECT_ACTION),
    ]
    attributes.append(("TCA_OPTIONS", {"attrs": options}))
    flags = ACK | CREATE | EXCLUSIVE
    return Template(tcmsg, kind, flags, fields, attributes=attributes, slots=slots)
