"""Addresses, routes and rules as netlink messages, encoded by pyroute2's message classes."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from testbed.kernel.template import ACK, CREATE, DUMP, EXCLUSIVE, REPLACE, Slots, Template

if TYPE_CHECKING:
    from testbed.plan.steps import Address, Route, Rule

NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWRULE, DELRULE, GETRULE = 32, 33, 34
_IFA_F_NODAD = 0x02
_RTPROT_STATIC, _RTN_UNICAST, _SCOPE_UNIVERSE, _SCOPE_LINK = 4, 1, 0, 253
_FR_ACT_TO_TBL = 1
_RULE_PRIORITY = 1000  # without one the kernel takes the same rule twice
IFA_F_NOPREFIXROUTE = 0x200
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


@functools.cache
def _address(kind: int, flags: int, family: int, connected: bool) -> Template:
    slots = Slots()
    address = slots.ip("address", family)
    attributes: list[tuple[str, str | int]] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    if not connected:
        nodad = _IFA_F_NODAD if family == 6 else 0
        attributes.append(("IFA_FLAGS", IFA_F_NOPREFIXROUTE | nodad))
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
    connected = step.connected
    template = (
        _address(DELADDR, 0, family, connected)
        if delete
        else _address(NEWADDR, CREATE | EXCLUSIVE, family, connected)
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
def _dump(kind: int, family: int) -> Template:
    messages = {GETADDR: ifaddrmsg, GETROUTE: rtmsg, GETRULE: fibmsg}
    return Template(messages[kind], kind, DUMP, {"family": _FAMILY[family]})


def dump(kind: int, family: int) -> bytearray:
    """Ask for all addresses, routes or rules, of IPv4 (4) or IPv6 (6).

    Asked for both at once, Linux 6.18 leaves the IPv6 routes out.
    """
    return _dump(kind, family).fill()
