"""Queues, packet sizes and loss as instructions: the stages where frames leave for a wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.kernel.iochain.assembler import (
    R0,
    R1,
    R2,
    R7,
    R8,
    Label,
    Line,
    call,
    compute,
    jump,
    jump_if,
    load,
    set_wide,
    store,
)
from testbed.kernel.iochain.headers import (
    COS_SHIFT,
    FRAME,
    GSO_BYTES,
    LENGTH,
    MARK,
    NETWORK_AT,
    PRIORITY,
    RANDOM,
    VLAN_PRESENT,
    VLAN_TCI,
    first_word,
    ip_header,
    train_headers,
)
from testbed.plan.stages import CLASS_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.kernel.iochain.headers import Scope
    from testbed.plan import stages

MAJOR_1, MAJOR_2, FIRST_OF_MAJOR_2 = 1 << 16, 2 << 16, 0x8000


def queue(_: stages.Queue, scope: Scope) -> Iterator[Line]:
    """Set the frame's priority, by which HTB finds the class, from the mark."""
    known, second = scope.labels.new("known"), scope.labels.new("major 2")
    yield load(4, R1, FRAME, MARK)
    yield compute(R1, ">>=", CLASS_SHIFT)
    yield jump_if(R1, "==", 0, known)
    yield jump_if(R1, ">=", FIRST_OF_MAJOR_2, second)
    yield compute(R1, "|=", MAJOR_1)
    yield jump(known)
    yield Label(second)
    yield compute(R1, "|=", MAJOR_2)
    yield Label(known)
    yield store(4, FRAME, PRIORITY, R1)


def queue_by_cos(stage: stages.QueueByCos, scope: Scope) -> Iterator[Line]:
    """Set the frame's priority, by which HTB finds the class, from the tag."""
    untagged = scope.labels.new("untagged")
    yield compute(R7, "=", 0)
    yield load(4, R1, FRAME, VLAN_PRESENT)
    yield jump_if(R1, "==", 0, untagged)
    yield load(4, R1, FRAME, VLAN_TCI)
    yield compute(R1, ">>=", COS_SHIFT)
    yield compute(R1, "&=", 7)
    yield compute(R7, "=", 1)
    yield compute(R7, "<<=", R1)
    yield Label(untagged)
    yield from _class_of_bit(stage.minors, scope)


def queue_by_dscp(stage: stages.QueueByDscp, scope: Scope) -> Iterator[Line]:
    """Set the frame's priority, by which HTB finds the class, from the IP header."""
    other = scope.labels.new("no dscp")
    yield from ip_header(scope.labels)
    yield compute(R8, "=", 0)
    yield jump_if(R7, "==", 0, other)
    yield from first_word(scope.labels)
    yield compute(R1, ">>=", R2)
    yield compute(R1, "&=", 63)
    yield compute(R8, "=", 1)
    yield compute(R8, "<<=", R1)
    yield Label(other)
    yield compute(R7, "=", R8)
    yield from _class_of_bit(stage.minors, scope)


def max_size(stage: stages.MaxSize, scope: Scope) -> Iterator[Line]:
    """Compare the packet's length, of a train that of its segments, with the MTU.

    `bpf_check_mtu` knows a device's MTU only, and whether a train's segments fit it.
    """
    single, measured = scope.labels.new("single"), scope.labels.new("measured")
    yield load(4, R1, FRAME, GSO_BYTES)
    yield jump_if(R1, "==", 0, single)
    yield from train_headers(scope.labels)
    yield load(4, R1, FRAME, GSO_BYTES)
    yield compute(R1, "+=", R8)
    yield jump(measured)
    yield Label(single)
    yield load(4, R1, FRAME, LENGTH)
    yield Label(measured)
    yield jump_if(R1, ">", stage.mtu + NETWORK_AT, scope.drop)


def lose(stage: stages.Lose, scope: Scope) -> Iterator[Line]:
    """Compare a random number of 32 bits: `bpf_get_prandom_u32`."""
    yield call(RANDOM)
    yield set_wide(R1, stage.probability)
    yield jump_if(R0, "<", R1, scope.drop)


def _class_of_bit(minors: Sequence[int], scope: Scope) -> Iterator[Line]:
    """Set the priority to the minor of which R7 has the bit of its number, or else to none."""
    chosen = scope.labels.new("class chosen")
    for minor in sorted(set(minors) - {0}):
        bits = sum(1 << number for number, one in enumerate(minors) if one == minor)
        yield compute(R1, "=", MAJOR_1 | minor)
        yield set_wide(R2, bits)
        yield jump_if(R7, "&", R2, chosen)
    yield compute(R1, "=", 0)
    yield Label(chosen)
    yield store(4, FRAME, PRIORITY, R1)
