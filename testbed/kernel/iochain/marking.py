"""The marking stage of an IOChain as instructions: qualifiers, CoS in the tag, DSCP in IP."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from testbed.kernel.iochain.assembler import (
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R7,
    R8,
    R9,
    R10,
    Label,
    Line,
    call,
    compute,
    jump,
    jump_if,
    load,
    set_wide,
    store,
    to_big_endian,
)
from testbed.kernel.iochain.headers import (
    COS_SHIFT,
    DESTINATION_PORT,
    FRAME,
    HEADER,
    IP_CHECKSUM_REPLACE,
    MARK,
    NETWORK_AT,
    SCRATCH,
    SCTP,
    SOURCE_PORT,
    STORE_BYTES,
    TCP,
    UDP,
    VLAN_POP,
    VLAN_PRESENT,
    VLAN_TCI,
    Labels,
    first_word,
    in_ranges,
    invoke,
    ip_header,
    push_tag,
    read,
)
from testbed.plan.stages import TRAFFIC_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.kernel.iochain.headers import Labels, Scope
    from testbed.plan.stages import Marking, MarkRule

_NO_COS, _NO_DSCP = 8, 64  # one above the highest: leave it as it is
_NO_PORT = 1 << 16
_TCI_BITS = 0x1FFF  # of the tag: all but the CoS
_DSCP_BITS = 0x3F
_FRAGMENT_BITS = 0x3FFF  # more fragments, and the offset
_RECOMPUTE_CHECKSUM = 1  # BPF_F_RECOMPUTE_CSUM: of the whole frame, if the NIC gave one


def marking(stage: Marking, scope: Scope) -> Iterator[Line]:
    """Find the first rule that matches, then mark.

    Headers are read by `bpf_skb_load_bytes`. A new CoS is `bpf_skb_vlan_pop` and
    `bpf_skb_vlan_push`, a new DSCP `bpf_skb_store_bytes` and `bpf_l3_csum_replace`. Fragments
    have no ports here, and IPv6's extension headers are not looked through.
    """
    labels = scope.labels
    apply, done = labels.new("apply"), labels.new("marked")
    rules = stage.rules
    if any(_asks_ip(rule) or rule.dscp is not None for rule in rules):
        yield from ip_header(labels)
    if any(rule.source_ports or rule.destination_ports for rule in rules):
        yield from _ports(labels)
    for rule in rules:
        other = labels.new("next rule")
        yield from _qualifiers(rule, other, labels)
        yield compute(R8, "=", _NO_COS if rule.cos is None else rule.cos)
        yield compute(R9, "=", _NO_DSCP if rule.dscp is None else rule.dscp)
        yield jump(apply)
        yield Label(other)
    yield jump(done)
    yield Label(apply)
    if any(rule.cos is not None for rule in rules):
        yield from _set_cos(scope)
    if any(rule.dscp is not None for rule in rules):
        yield from _set_dscp(scope, done)
    yield Label(done)


def _asks_ip(rule: MarkRule) -> bool:
    return bool(
        rule.protocol
        or rule.source
        or rule.destination
        or rule.source_ports
        or rule.destination_ports
    )


def _ports(labels: Labels) -> Iterator[Line]:
    """Put both ports on the stack, or a number that is none."""
    whole, present, done = labels.new("whole"), labels.new("present"), labels.new("ports read")
    yield store(8, R10, SOURCE_PORT, _NO_PORT)
    yield store(8, R10, DESTINATION_PORT, _NO_PORT)
    yield jump_if(R7, "!=", 4, whole)
    yield load(2, R1, R10, HEADER + 6)
    yield to_big_endian(R1, 16)
    yield jump_if(R1, "&", _FRAGMENT_BITS, done)
    yield Label(whole)
    for protocol in (TCP, UDP, SCTP):
        yield jump_if(R9, "==", protocol, present)
    yield jump(done)
    yield Label(present)
    yield from read(R8, SCRATCH, 4)
    yield jump_if(R0, "!=", 0, done)
    for at, place in ((SCRATCH, SOURCE_PORT), (SCRATCH + 2, DESTINATION_PORT)):
        yield load(2, R1, R10, at)
        yield to_big_endian(R1, 16)
        yield store(8, R10, place, R1)
    yield Label(done)


def _qualifiers(rule: MarkRule, other: str, labels: Labels) -> Iterator[Line]:
    if rule.traffic:
        yield load(4, R1, FRAME, MARK)
        yield compute(R1, ">>=", TRAFFIC_SHIFT)
        yield compute(R1, "&=", 0xF)
        yield jump_if(R1, "!=", rule.traffic, other)
    if rule.protocol:
        yield jump_if(R9, "!=", rule.protocol, other)
    if rule.source:
        yield from _address(rule.source, 0, other)
    if rule.destination:
        yield from _address(rule.destination, 1, other)
    for place, ranges in (
        (SOURCE_PORT, rule.source_ports),
        (DESTINATION_PORT, rule.destination_ports),
    ):
        if ranges:
            fits = labels.new("port fits")
            yield load(8, R1, R10, place)
            yield from in_ranges(ranges, fits, labels)
            yield jump(other)
            yield Label(fits)


def _address(cidr: str, which: int, other: str) -> Iterator[Line]:
    """Go on if the source (0) or destination (1) is in the network."""
    network = ipaddress.ip_network(cidr, strict=False)
    size = network.max_prefixlen // 8
    at = HEADER + (12 if network.version == 4 else 8) + which * size
    yield jump_if(R7, "!=", network.version, other)
    word = min(size, 8)
    wanted, mask = network.network_address.packed, network.netmask.packed
    for start in range(0, size, word):
        bits = int.from_bytes(mask[start : start + word], "big")
        if bits:
            yield load(word, R1, R10, at + start)
            yield to_big_endian(R1, word * 8)
            yield set_wide(R2, bits)
            yield compute(R1, "&=", R2)
            yield set_wide(R2, int.from_bytes(wanted[start : start + word], "big"))
            yield jump_if(R1, "!=", R2, other)


def _set_cos(scope: Scope) -> Iterator[Line]:
    """Give a tag the CoS in R8."""
    done = scope.labels.new("cos set")
    yield jump_if(R8, "==", _NO_COS, done)
    yield load(4, R1, FRAME, VLAN_PRESENT)
    yield jump_if(R1, "==", 0, done)
    yield load(4, R1, FRAME, VLAN_TCI)
    yield compute(R2, "=", R1)
    yield compute(R2, ">>=", COS_SHIFT)
    yield jump_if(R2, "==", R8, done)
    yield compute(R1, "&=", _TCI_BITS)
    yield compute(R8, "<<=", COS_SHIFT)
    yield compute(R8, "|=", R1)
    yield from invoke(VLAN_POP)
    yield jump_if(R0, "!=", 0, scope.drop)
    yield from push_tag(R8)
    yield jump_if(R0, "!=", 0, scope.drop)
    yield Label(done)


def _set_dscp(scope: Scope, done: str) -> Iterator[Line]:
    """Give an IP header the DSCP in R9; R8 and R9 are its first word before and after."""
    six = scope.labels.new("ipv6")
    yield jump_if(R9, "==", _NO_DSCP, done)
    yield jump_if(R7, "==", 0, done)
    yield load(2, R8, R10, HEADER)
    yield from first_word(scope.labels)
    yield compute(R3, "=", _DSCP_BITS)
    yield compute(R3, "<<=", R2)
    yield compute(R3, "^=", -1)
    yield compute(R9, "<<=", R2)
    yield compute(R1, "&=", R3)
    yield compute(R9, "|=", R1)
    yield to_big_endian(R9, 16)
    yield jump_if(R8, "==", R9, done)
    yield store(2, R10, SCRATCH, R9)
    yield jump_if(R7, "==", 6, six)
    # The new word and the new checksum cancel out in the sum of the whole frame.
    yield from _store_word(0)
    yield jump_if(R0, "!=", 0, scope.drop)
    yield from invoke(IP_CHECKSUM_REPLACE, NETWORK_AT + 10, R8, R9, 2)
    yield jump(done)
    yield Label(six)
    yield from _store_word(_RECOMPUTE_CHECKSUM)
    yield jump_if(R0, "!=", 0, scope.drop)


def _store_word(flags: int) -> Iterator[Line]:
    """Copy two bytes from SCRATCH to the start of the IP header."""
    yield compute(R1, "=", FRAME)
    yield compute(R2, "=", NETWORK_AT)
    yield compute(R3, "=", R10)
    yield compute(R3, "+=", SCRATCH)
    yield compute(R4, "=", 2)
    yield compute(R5, "=", flags)
    yield call(STORE_BYTES)
