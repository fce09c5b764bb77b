"""Plan steps as netlink messages, encoded by pyroute2's message classes.

What pyroute2 0.9 is not used for, and why: its HTB parameters (burst in whole microseconds,
1 % off at 10 Gb/s, a default burst that loses 5-9 % of a link, two 1 KiB rate tables that the
kernel no longer reads, and no linklayer, without which the kernel asks for those tables) and
its sockets (opening one in a namespace forks, 7 ms).
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.kernel.template import ACK, CREATE, DUMP, EXCLUSIVE, REPLACE, Slots, Template

if TYPE_CHECKING:
    from testbed.plan.steps import Address, Route, Rule, Shape, Veth

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWRULE, DELRULE, GETRULE = 32, 33, 34
NEWQDISC, DELQDISC, GETQDISC = 36, 37, 38
NEWTCLASS, DELTCLASS, GETTCLASS = 40, 41, 42

LOOPBACK_INDEX = 1
IFF_UP = 1
AF_BRIDGE = 7
BR_STATE_LISTENING, BR_STATE_FORWARDING = 1, 3
HTB_QDISC, HTB_CLASS = 0x10000, 0x10001
TC_ROOT = 0xFFFFFFFF
QUANTUM_BYTES = 65536  # a 64 KiB GSO frame: smaller quanta share unevenly
TICK_NS = 64  # PSCHED_TICKS2NS(1), fixed in the kernel since 2.6.31 (/proc/net/psched)
_IFLA_IFALIAS = 20
_IFLA_EXT_MASK_SKIP_STATS = 1 << 3
_IFA_F_NODAD = 0x02
_RTPROT_STATIC, _RTN_UNICAST, _SCOPE_UNIVERSE, _SCOPE_LINK = 4, 1, 0, 253
_FR_ACT_TO_TBL = 1
_RULE_PRIORITY = 1000  # without one the kernel takes the same rule twice
_AGEING_DEFAULT = 300 * 100  # hundredths of a second, as the kernel has it
_U32_MOST = 2**32 - 1
_FAMILY = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
_BITS = {4: 32, 6: 128}


def packed_ip(address: str) -> bytes:
    """An address, without prefix length, in network order."""
    return socket.inet_pton(family_of(address), address)


def ip_text(packed: bytes) -> str:
    """An address for people."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET6 for what has a colon, else AF_INET."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def packed_mac(mac: str | None) -> bytes:
    """An Ethernet address in bytes; a random locally administered one for None."""
    if mac is None:
        random = os.urandom(6)
        return bytes((random[0] & 0xFC | 0x02,)) + random[1:]
    return bytes.fromhex(mac.replace(":", ""))


def burst_ticks(burst_bytes: int, rate_bytes_per_s: int) -> int:
    """A burst as HTB wants it: the time it takes at the rate, in ticks of 64 ns, rounded up."""
    return min(-(-burst_bytes * 10**9 // (rate_bytes_per_s * TICK_NS)), _U32_MOST)


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


def create_bridge(index: int, name: str, mtu: int, mac: str | None) -> bytearray:
    """A bridge without spanning tree and multicast snooping, down."""
    # An MTU that differs from the one that `configure` sets: only a change marks it as the
    # user's own, and without the mark every new port pulls the bridge's MTU down to its own.
    #
    # A VM's NIC (it has a MAC) learns nothing: once replugged it would go on sending to
    # where it had learned its peers, the wire of the host that the VM has left.
    ageing = _AGEING_DEFAULT if mac is None else 0
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
    fields = {"index": slots.u32("index"), "flags": IFF_UP, "change": IFF_UP}
    return Template(ifinfmsg, SETLINK, ACK, fields, slots=slots)


def set_up(index: int) -> bytearray:
    """Bring a link up."""
    return _set_up().fill(index=index)


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
def _address(kind: int, flags: int, family: int) -> Template:
    slots = Slots()
    address = slots.ip("address", family)
    attributes = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    fields = {
        "family": _FAMILY[family],
        "flags": _IFA_F_NODAD if family == 6 else 0,
        "index": slots.u32("index"),
    }
    return Template(
        ifaddrmsg,
        kind,
        ACK | flags,
        fields,
        attributes=attributes,
        slots=slots,
        bytes_fields=["prefixlen"],
    )


def address(step: Address, index: int, delete: bool = False) -> bytearray:
    """Add or delete an address."""
    host, _, prefix = step.address.partition("/")
    family = 6 if ":" in host else 4
    template = (
        _address(DELADDR, 0, family) if delete else _address(NEWADDR, CREATE | EXCLUSIVE, family)
    )
    length = int(prefix) if prefix else _BITS[family]
    return template.fill(index=index, address=packed_ip(host), prefixlen=length)


@functools.cache
def _route(
    kind: int, flags: int, family: int, *, has_dst: bool, has_via: bool, has_source: bool
) -> Template:
    slots = Slots()
    attributes: list[tuple[str, int | str]] = [
        ("RTA_TABLE", slots.u32("table")),
        ("RTA_OIF", slots.u32("index")),
    ]
    if has_dst:
        attributes.append(("RTA_DST", slots.ip("dst", family)))
    if has_via:
        attributes.append(("RTA_GATEWAY", slots.ip("via", family)))
    if has_source:
        attributes.append(("RTA_PREFSRC", slots.ip("source", family)))
    fields = {
        "family": _FAMILY[family],
        "type": _RTN_UNICAST,
        "proto": _RTPROT_STATIC,
        "scope": _SCOPE_LINK if family == 4 and not has_via else _SCOPE_UNIVERSE,
    }
    return Template(
        rtmsg,
        kind,
        ACK | flags,
        fields,
        attributes=attributes,
        slots=slots,
        bytes_fields=["dst_len"],
    )


def route(step: Route, index: int, kind: int = NEWROUTE, replace: bool = False) -> bytearray:
    """Add, replace or (`kind` DELROUTE) delete a route."""
    host, _, prefix = step.destination.partition("/")
    if host == "default":
        host, prefix = "", "0"
    flags = 0 if kind == DELROUTE else CREATE | (REPLACE if replace else EXCLUSIVE)
    values: dict[str, int | bytes] = {"table": step.table, "index": index}
    values["dst_len"] = int(prefix) if prefix else _BITS[step.family]
    for name, text in (("dst", host), ("via", step.via), ("source", step.source)):
        if text:
            values[name] = packed_ip(text)
    template = _route(
        kind,
        flags,
        step.family,
        has_dst="dst" in values,
        has_via="via" in values,
        has_source="source" in values,
    )
    return template.fill(**values)


@functools.cache
def _rule(kind: int, flags: int, family: int) -> Template:
    slots = Slots()
    attributes = [
        ("FRA_SRC", slots.ip("source", family)),
        ("FRA_TABLE", slots.u32("table")),
        ("FRA_PRIORITY", _RULE_PRIORITY),
    ]
    fields = {"family": _FAMILY[family], "src_len": _BITS[family], "action": _FR_ACT_TO_TBL}
    return Template(fibmsg, kind, ACK | flags, fields, attributes=attributes, slots=slots)


def rule(step: Rule, delete: bool = False) -> bytearray:
    """Add or delete a rule."""
    kind, flags = (DELRULE, 0) if delete else (NEWRULE, CREATE | EXCLUSIVE)
    return _rule(kind, flags, step.family).fill(source=packed_ip(step.source), table=step.table)


@functools.cache
def _htb() -> Template:
    slots = Slots()
    fields = {"index": slots.u32("index"), "handle": HTB_QDISC, "parent": TC_ROOT}
    # Every packet that no filter claims goes to the one class, ARP too.
    init = {"version": 3, "rate2quantum": 10, "defcls": HTB_CLASS & 0xFFFF}
    attributes = [("TCA_KIND", "htb"), ("TCA_OPTIONS", {"attrs": [("TCA_HTB_INIT", init)]})]
    return Template(
        tcmsg, NEWQDISC, ACK | CREATE | EXCLUSIVE, fields, attributes=attributes, slots=slots
    )


def htb_qdisc(index: int) -> bytearray:
    """HTB at a link's root."""
    return _htb().fill(index=index)


@functools.cache
def _htb_class(flags: int) -> Template:
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


def htb_class(step: Shape, index: int, change: bool = False) -> bytearray:
    """The one class of a shaped link; `change` an existing one."""
    return _htb_class(0 if change else CREATE | EXCLUSIVE).fill(
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
def _dump_links(with_counters: bool) -> Template:
    mask = 0 if with_counters else _IFLA_EXT_MASK_SKIP_STATS
    return Template(ifinfmsg, GETLINK, DUMP, {}, attributes=[("IFLA_EXT_MASK", mask)])


def dump_links(with_counters: bool = False) -> bytearray:
    """Ask for all links."""
    return _dump_links(with_counters).fill()


@functools.cache
def _dump(kind: int, family: int) -> Template:
    messages = {GETADDR: ifaddrmsg, GETROUTE: rtmsg, GETRULE: fibmsg}
    return Template(messages[kind], kind, DUMP, {"family": _FAMILY[family]})


def dump(kind: int, family: int) -> bytearray:
    """Ask for all addresses, routes or rules, of IPv4 (4) or IPv6 (6).

    Asked for both at once, Linux 6.18 leaves the IPv6 routes out.
    """
    return _dump(kind, family).fill()


@functools.cache
def _dump_classes() -> Template:
    slots = Slots()
    return Template(tcmsg, GETTCLASS, DUMP, {"index": slots.u32("index")}, slots=slots)


def dump_classes(index: int) -> bytearray:
    """Ask for the classes of a link's qdiscs."""
    return _dump_classes().fill(index=index)


@functools.cache
def _dump_ports() -> Template:
    return Template(ifinfmsg, GETLINK, DUMP, {"family": AF_BRIDGE})


def dump_ports() -> bytearray:
    """Ask for all bridge ports."""
    return _dump_ports().fill()
