"""What programs of the IOChain share: the frame's fields, its headers, the kernel's functions.

R6 is the frame (struct __sk_buff) throughout a program; R7-R9 are a stage's own. Numbers and
offsets are those of linux/bpf.h, the same on all architectures.
"""

from __future__ import annotations

from dataclasses import dataclass
from socket import htons
from typing import TYPE_CHECKING

from testbed.kernel.iochain.assembler import (
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
    Label,
    Line,
    Operand,
    call,
    compute,
    jump,
    jump_if,
    load,
    to_big_endian,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.plan.stages import Ranges

FRAME = R6
# struct __sk_buff
LENGTH, MARK, PROTOCOL, VLAN_PRESENT, VLAN_TCI, PRIORITY = 0, 8, 16, 20, 24, 32
GSO_SEGMENTS, GSO_BYTES = 164, 176

(
    MAP_LOOKUP, RANDOM, STORE_BYTES, IP_CHECKSUM_REPLACE, CLONE_REDIRECT, VLAN_PUSH, VLAN_POP,
    LOAD_BYTES,
) = (1, 7, 9, 10, 13, 18, 19, 26)  # fmt: skip
FUNCTIONS = {
    MAP_LOOKUP: "bpf_map_lookup_elem",
    RANDOM: "bpf_get_prandom_u32",
    STORE_BYTES: "bpf_skb_store_bytes",
    IP_CHECKSUM_REPLACE: "bpf_l3_csum_replace",
    CLONE_REDIRECT: "bpf_clone_redirect",
    VLAN_PUSH: "bpf_skb_vlan_push",
    VLAN_POP: "bpf_skb_vlan_pop",
    LOAD_BYTES: "bpf_skb_load_bytes",
}

DESTINATION_AT, SOURCE_AT, MAC_BYTES = 0, 6, 6
NETWORK_AT = 14  # behind the Ethernet header: a tag is beside the frame, not in it
VLAN = 0x8100
VID_MASK, COS_SHIFT = 0xFFF, 13
IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP, SCTP = 6, 17, 132

# The stack, below R10: 16 bytes of scratch, two numbers, the IP header.
SCRATCH, SOURCE_PORT, DESTINATION_PORT, HEADER = -16, -24, -32, -72


class Labels:
    """Names of labels that no other place in the program has."""

    def __init__(self) -> None:
        self._made = 0

    def new(self, name: str) -> str:
        """A label."""
        self._made += 1
        return f"{name} {self._made}"


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a stage stands: `drop` is the label to jump to with a frame that doesn't pass."""

    direction: int
    drop: str
    labels: Labels


def invoke(function: int, *arguments: Operand) -> Iterator[Line]:
    """Call a function for the frame; further arguments from R2 on, none in R1 to R5."""
    yield compute(R1, "=", FRAME)
    for register, value in zip((R2, R3, R4, R5), arguments, strict=False):
        yield compute(register, "=", value)
    yield call(function)


def read(at: Operand, stack: int, size: int) -> Iterator[Line]:
    """Copy bytes of the frame to the stack (`bpf_skb_load_bytes`); R0 is 0 if it has them."""
    yield compute(R1, "=", FRAME)
    yield compute(R2, "=", at)
    yield compute(R3, "=", R10)
    yield compute(R3, "+=", stack)
    yield compute(R4, "=", size)
    yield call(LOAD_BYTES)


def push_tag(tci: Operand) -> Iterator[Line]:
    """Give the frame a tag, VID and CoS (`bpf_skb_vlan_push`); R0 is 0 if it has it."""
    return invoke(VLAN_PUSH, htons(VLAN), tci)


def ip_header(labels: Labels) -> Iterator[Line]:
    """Copy the IP header to HEADER on the stack.

    R7 is 4 or 6 then, R8 where the next header starts, R9 the protocol (of IPv6 the first next
    header); without IP R7 and R9 are 0.
    """
    six, none, done = labels.new("ipv6"), labels.new("no ip"), labels.new("header read")
    yield load(4, R1, FRAME, PROTOCOL)
    yield jump_if(R1, "==", htons(IPV6), six)
    yield jump_if(R1, "!=", htons(IPV4), none)
    yield from read(NETWORK_AT, HEADER, 20)
    yield jump_if(R0, "!=", 0, none)
    yield compute(R7, "=", 4)
    yield load(1, R8, R10, HEADER)
    yield compute(R8, "&=", 0xF)
    yield compute(R8, "<<=", 2)
    yield compute(R8, "+=", NETWORK_AT)
    yield load(1, R9, R10, HEADER + 9)
    yield jump(done)
    yield Label(six)
    yield from read(NETWORK_AT, HEADER, 40)
    yield jump_if(R0, "!=", 0, none)
    yield compute(R7, "=", 6)
    yield compute(R8, "=", NETWORK_AT + 40)
    yield load(1, R9, R10, HEADER + 6)
    yield jump(done)
    yield Label(none)
    yield compute(R7, "=", 0)
    yield compute(R8, "=", NETWORK_AT)
    yield compute(R9, "=", 0)
    yield Label(done)


def train_headers(labels: Labels) -> Iterator[Line]:
    """R8 is how many bytes of headers each segment of a train has, Ethernet's included."""
    datagrams, done = labels.new("datagrams"), labels.new("headers counted")
    yield from ip_header(labels)
    yield jump_if(R9, "==", UDP, datagrams)
    yield jump_if(R9, "!=", TCP, done)
    yield compute(R9, "=", R8)
    yield compute(R9, "+=", 12)  # the TCP header's own length is there, in words
    yield from read(R9, SCRATCH, 1)
    yield jump_if(R0, "!=", 0, done)
    yield load(1, R1, R10, SCRATCH)
    yield compute(R1, ">>=", 4)
    yield compute(R1, "<<=", 2)
    yield compute(R8, "+=", R1)
    yield jump(done)
    yield Label(datagrams)
    yield compute(R8, "+=", 8)
    yield Label(done)


def first_word(labels: Labels) -> Iterator[Line]:
    """R1 is the IP header's first 16 bits, R2 where the DSCP is in them; after `ip_header`."""
    four = labels.new("four")
    yield load(2, R1, R10, HEADER)
    yield to_big_endian(R1, 16)
    yield compute(R2, "=", 2)  # version, length; DSCP, ECN
    yield jump_if(R7, "==", 4, four)
    yield compute(R2, "=", 6)  # version; DSCP, ECN; flow label
    yield Label(four)


def in_ranges(ranges: Ranges, inside: str, labels: Labels) -> Iterator[Line]:
    """Jump if R1 is in one of the ranges."""
    for first, last in ranges:
        if first == last:
            yield jump_if(R1, "==", first, inside)
            continue
        below = labels.new("below")
        yield jump_if(R1, "<", first, below)
        yield jump_if(R1, "<=", last, inside)
        yield Label(below)
