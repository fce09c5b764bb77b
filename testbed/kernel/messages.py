"""Links and bridge ports as netlink messages, encoded by pyroute2's message classes.

What pyroute2 0.9 is not used for: its sockets, as opening one in a namespace forks (7 ms).
"""

from __future__ import annotations

import functools
import os
import struct
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from testbed.kernel.template import ACK, CREATE, DUMP, EXCLUSIVE, Slots, Template

if TYPE_CHECKING:
    from testbed.plan.steps import End, Veth

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
LOOPBACK_INDEX = 1
IFF_UP = 1
AF_BRIDGE = 7
BR_STATE_LISTENING, BR_STATE_FORWARDING = 1, 3
_IFLA_IFALIAS = 20
_IFLA_EXT_MASK_SKIP_STATS = 1 << 3
_AGEING_DEFAULT = 300 * 100  # hundredths of a second, as the kernel has it
_AGEING_YEAR = 365 * 86400 * 100  # 32 bits hold 497 days


def packed_mac(mac: str | None) -> bytes:
    """An Ethernet address in bytes; a random locally administered one for None."""
    if mac is None:
        random = os.urandom(6)
        return bytes((random[0] & 0xFC | 0x02,)) + random[1:]
    return bytes.fromhex(mac.replace(":", ""))


@functools.cache
def _bridge() -> Template:
    slots = Slots()
    # Without a forwarding delay no timer runs that would turn a closed port on again.
    data = [
        ("IFLA_BR_STP_STATE", 0),
        ("IFLA_BR_MCAST_SNOOPING", 0),
        ("IFLA_BR_FORWARD_DELAY", 0),
        ("IFLA_BR_AGEING_TIME", slots.u32("ageing")),
    ]
    info = [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": data})]
    attributes = [
        ("IFLA_IFNAME", slots.text("name")),
        ("IFLA_MTU", slots.u32("mtu")),
        ("IFLA_ADDRESS", slots.mac("mac")),
        ("IFLA_LINKINFO", {"attrs": info}),
    ]
    fields = {"index": slots.u32("index")}
    return Template(
        ifinfmsg, NEWLINK, ACK | CREATE | EXCLUSIVE, fields, attributes=attributes, slots=slots
    )


def create_bridge(
    index: int, name: str, mtu: int, mac: str | None, *, remembers: bool = False
) -> bytearray:
    """A bridge without spanning tree and multicast snooping, down."""
    # An MTU that differs from the one that `configure` sets: only a change marks it as the
    # user's own, and without the mark every new port pulls the bridge's MTU down to its own.
    #
    # A VM's NIC (it has a MAC) learns nothing: once replugged it would go on sending to
    # where it had learned its peers, the wire of the host that the VM has left.
    ageing = 0 if mac is not None else _AGEING_YEAR if remembers else _AGEING_DEFAULT
    return _bridge().fill(
        index=index, name=name.encode(), mtu=mtu ^ 1, mac=packed_mac(mac), ageing=ageing
    )


@functools.cache
def _veth() -> Template:
    slots = Slots()
    # By default one queue per CPU each way: one keeps the order, and is all that rps_cpus pins.
    one_queue = [("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1)]
    peer = {
        "index": slots.u32("peer_index"),
        "attrs": [
            ("IFLA_IFNAME", slots.text("peer_name")),
            *one_queue,
            ("IFLA_MTU", slots.u32("peer_mtu")),
            ("IFLA_ADDRESS", slots.mac("peer_mac")),
            ("IFLA_NET_NS_FD", slots.u32("peer_fd")),
        ],
    }
    data = {"attrs": [("VETH_INFO_PEER", peer)]}
    info = [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]
    attributes = [
        *one_queue,
        ("IFLA_IFNAME", slots.text("name")),
        ("IFLA_MTU", slots.u32("mtu")),
        ("IFLA_ADDRESS", slots.mac("mac")),
        ("IFLA_LINKINFO", {"attrs": info}),
    ]
    fields = {"index": slots.u32("index")}
    return Template(
        ifinfmsg, NEWLINK, ACK | CREATE | EXCLUSIVE, fields, attributes=attributes, slots=slots
    )


def create_veth(step: Veth, index: int, peer_index: int, peer_fd: int) -> bytearray:
    """A whole wire, down: sent in `a`'s namespace, `peer_fd` is open on `b`'s."""
    return _veth().fill(
        index=index,
        name=step.a.name.encode(),
        mtu=step.a.mtu,
        mac=packed_mac(step.a.mac),
        peer_index=peer_index,
        peer_name=step.b.name.encode(),
        peer_mtu=step.b.mtu,
        peer_mac=packed_mac(step.b.mac),
        peer_fd=peer_fd,
    )


@functools.cache
def _configure() -> Template:
    slots = Slots()
    attributes = [("IFLA_MTU", slots.u32("mtu")), ("IFLA_MASTER", slots.u32("master"))]
    fields = {"index": slots.u32("index"), "flags": slots.u32("flags"), "change": IFF_UP}
    return Template(ifinfmsg, SETLINK, ACK, fields, attributes=attributes, slots=slots)


def configure(
    index: int, mtu: int, master: int = 0, alias: str | None = None, up: bool = True
) -> bytearray:
    """Set a link's MTU, master (0: none), alias (None: unchanged) and state, in one message."""
    message = _configure().fill(index=index, mtu=mtu, master=master, flags=int(up))
    if alias is not None:
        # Of any length, so it is no slot; the kernel takes it on a change, not on creation.
        raw = alias.encode() + b"\0"
        message += struct.pack("=HH", 4 + len(raw), _IFLA_IFALIAS) + raw + bytes(-len(raw) % 4)
        struct.pack_into("=I", message, 0, len(message))
    return message


@functools.cache
def _set_up() -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "flags": slots.u32("flags"), "change": IFF_UP}
    return Template(ifinfmsg, SETLINK, ACK, fields, slots=slots)


def set_up(index: int, up: bool = True) -> bytearray:
    """Bring a link up, or take it down."""
    return _set_up().fill(index=index, flags=IFF_UP if up else 0)


@functools.cache
def _delete_link() -> Template:
    slots = Slots()
    return Template(
        ifinfmsg, DELLINK, ACK, {}, attributes=[("IFLA_IFNAME", slots.text("name"))], slots=slots
    )


def delete_link(name: str) -> bytearray:
    """Delete a link, and the other end of a veth."""
    return _delete_link().fill(name=name.encode())


def _port(slots: Slots, settings: list[tuple[str, int | None]]) -> Template:
    attributes = [("IFLA_PROTINFO", {"attrs": settings})]
    fields = {"family": AF_BRIDGE, "index": slots.u32("index")}
    # Without the mark, which pyroute2 leaves out, the kernel reads an old one-byte format.
    return Template(
        ifinfmsg, SETLINK, ACK, fields, attributes=attributes, slots=slots, nested_at=32
    )


@functools.cache
def _port_state(state: int) -> Template:
    slots = Slots()
    # FLUSH: nothing that was learned on the port before may still lead there afterwards.
    port: list[tuple[str, int | None]] = [("IFLA_BRPORT_STATE", state), ("IFLA_BRPORT_FLUSH", None)]
    return _port(slots, port)


def port_state(index: int, forwarding: bool) -> bytearray:
    """Open a bridge port, or close it both ways.

    Closed is BR_STATE_LISTENING: as deaf and mute as BR_STATE_DISABLED, but the kernel
    turns a DISABLED port back on at the next change of carrier, alias or flags.
    """
    return _port_state(BR_STATE_FORWARDING if forwarding else BR_STATE_LISTENING).fill(index=index)


@functools.cache
def _port_flags(passing: int) -> Template:
    slots = Slots()
    port: list[tuple[str, int | None]] = [
        ("IFLA_BRPORT_LEARNING", passing),
        ("IFLA_BRPORT_UNICAST_FLOOD", passing),
        ("IFLA_BRPORT_MCAST_FLOOD", passing),
        ("IFLA_BRPORT_BCAST_FLOOD", passing),
        ("IFLA_BRPORT_LOCKED", 1 - passing),
    ]
    return _port(slots, port)


def port_flags(index: int, passing: bool) -> bytearray:
    """Bar a bridge port by its flags, which works on one that is not up yet, or lift that.

    Barred it learns nothing, takes nothing in and is flooded nothing from other ports.
    """
    return _port_flags(int(passing)).fill(index=index)


@functools.cache
def _port_policy(isolated: int, learning: int, flooding: int) -> Template:
    slots = Slots()
    port: list[tuple[str, int | None]] = [
        ("IFLA_BRPORT_ISOLATED", isolated),
        ("IFLA_BRPORT_LEARNING", learning),
        ("IFLA_BRPORT_UNICAST_FLOOD", flooding),
    ]
    return _port(slots, port)


def port_policy(index: int, end: End) -> bytearray:
    """Set what a bridge port learns, is flooded, and whether it is isolated."""
    template = _port_policy(int(end.isolated), int(end.learning), int(end.flooding))
    return template.fill(index=index)


@functools.cache
def _dump_links(with_counters: bool) -> Template:
    mask = 0 if with_counters else _IFLA_EXT_MASK_SKIP_STATS
    return Template(ifinfmsg, GETLINK, DUMP, {}, attributes=[("IFLA_EXT_MASK", mask)])


def dump_links(with_counters: bool = False) -> bytearray:
    """Ask for all links."""
    return _dump_links(with_counters).fill()


@functools.cache
def _dump_ports() -> Template:
    return Template(ifinfmsg, GETLINK, DUMP, {"family": AF_BRIDGE})


def dump_ports() -> bytearray:
    """Ask for all bridge ports."""
    return _dump_ports().fill()
