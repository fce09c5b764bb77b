"""The assembler's encodings, beside those of LLVM's (llvm-mc -arch=bpfel -show-encoding)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.kernel.iochain import bpf
from testbed.kernel.iochain.assembler import (
    R0,
    R1,
    R2,
    R3,
    R6,
    R8,
    R9,
    R10,
    Label,
    assemble,
    atomic_add,
    call,
    compute,
    jump,
    jump_if,
    leave,
    load,
    set_cell,
    set_map,
    set_symbol,
    set_wide,
    store,
    to_big_endian,
)
from testbed.kernel.iochain.disassembler import disassemble

LLVM = [
    (compute(R6, "=", R1), "bf16000000000000", "r6 = r1"),
    (compute(R1, "=", 5), "b701000005000000", "r1 = 5"),
    (compute(R2, "=", -1), "b7020000ffffffff", "r2 = -1"),
    (compute(R1, "+=", R2), "0f21000000000000", "r1 += r2"),
    (compute(R1, "-=", 1), "1701000001000000", "r1 -= 1"),
    (compute(R3, "*=", R8), "2f83000000000000", "r3 *= r8"),
    (compute(R1, "|=", 65536), "4701000000000100", "r1 |= 65536"),
    (compute(R1, "&=", -256), "5701000000ffffff", "r1 &= -256"),
    (compute(R1, "<<=", R2), "6f21000000000000", "r1 <<= r2"),
    (compute(R1, ">>=", 13), "770100000d000000", "r1 >>= 13"),
    (compute(R3, "^=", -1), "a7030000ffffffff", "r3 ^= -1"),
    (load(4, R1, R6, 8), "6161080000000000", "r1 = *(u32 *)(r6 +8)"),
    (load(2, R1, R10, -72), "69a1b8ff00000000", "r1 = *(u16 *)(r10 -72)"),
    (load(1, R9, R10, -63), "71a9c1ff00000000", "r9 = *(u8 *)(r10 -63)"),
    (load(8, R2, R2, 0), "7922000000000000", "r2 = *(u64 *)(r2 +0)"),
    (store(4, R6, 8, R1), "6316080000000000", "*(u32 *)(r6 +8) = r1"),
    (store(2, R10, -16, R9), "6b9af0ff00000000", "*(u16 *)(r10 -16) = r9"),
    (atomic_add(R1, 8, R3), "db31080000000000", "lock *(u64 *)(r1 +8) += r3"),
    (to_big_endian(R1, 16), "dc01000010000000", "r1 = be16 r1"),
    (to_big_endian(R1, 64), "dc01000040000000", "r1 = be64 r1"),
    (
        set_wide(R1, 0x0123456789ABCDEF),
        "18010000efcdab890000000067452301",
        "r1 = 0x123456789abcdef ll",
    ),
    (call(18), "8500000012000000", "call vlan_push#18"),
    (leave(), "9500000000000000", "exit"),
]
JUMPS = [
    (jump_if(R1, "==", 5, "there"), "1501010005000000", "if r1 == 5 goto +1"),
    (jump_if(R1, "!=", R2, "there"), "5d21010000000000", "if r1 != r2 goto +1"),
    (jump_if(R1, ">", 1500, "there"), "25010100dc050000", "if r1 > 1500 goto +1"),
    (jump_if(R1, "<", 9, "there"), "a501010009000000", "if r1 < 9 goto +1"),
    (jump_if(R0, "<", R1, "there"), "ad10010000000000", "if r0 < r1 goto +1"),
    (jump_if(R1, "<=", 9, "there"), "b501010009000000", "if r1 <= 9 goto +1"),
    (jump_if(R1, ">=", 9, "there"), "3501010009000000", "if r1 >= 9 goto +1"),
    # These two LLVM 14 can't write: BPF_JSET of linux/bpf_common.h.
    (jump_if(R1, "&", 2, "there"), "4501010002000000", "if r1 & 2 goto +1"),
    (jump_if(R1, "&", R2, "there"), "4d21010000000000", "if r1 & r2 goto +1"),
]


@pytest.mark.parametrize(("line", "encoded", "text"), LLVM)
def test_an_instruction_is_encoded_as_by_llvm(line, encoded, text):
    assert assemble([line, leave()]).data.hex().startswith(encoded)
    (found, *_) = disassemble(bytes.fromhex(encoded), {18: "vlan_push"})
    assert found == f"   0: {text}"


@pytest.mark.parametrize(("line", "encoded", "text"), JUMPS)
def test_a_jump_is_encoded_as_by_llvm(line, encoded, text):
    data = assemble([line, leave(), Label("there"), leave()]).data
    assert data[:8].hex() == encoded
    assert disassemble(data)[0] == f"   0: {text}"


def test_jumps_go_both_ways_and_over_wide_instructions():
    lines = [
        Label("top"), set_wide(R1, 1), jump_if(R1, "==", 0, "end"), set_wide(R2, 2),
        jump_if(R2, "==", 0, "top"), Label("end"), leave(),
    ]  # fmt: skip
    found = disassemble(assemble(lines).data)
    assert [one.split(": ")[0].strip() for one in found] == ["0", "2", "3", "5", "6"]
    assert found[1].endswith("goto +3")
    assert found[3].endswith("goto -6")


def test_what_cannot_be_reached_is_left_out():
    lines = [jump("end"), compute(R0, "=", 1), Label("other"), leave(), Label("end"), leave()]
    assert disassemble(assemble(lines).data) == ["   0: goto +0", "   1: exit"]


def test_a_label_that_is_missing_or_twice_is_an_error():
    with pytest.raises(KeyError):
        assemble([jump("nowhere"), leave()])
    with pytest.raises(ValueError, match="stands twice"):
        assemble([Label("a"), Label("a"), leave()])


def test_symbols_are_filled_in_when_linked():
    lines = [
        set_map(R1, "set"), set_cell(R2, "cells", 16), set_symbol(R3, "index"),
        set_wide(R8, "mac"), leave(),
    ]  # fmt: skip
    code = assemble(lines)
    values = {"set": 3, "cells": 4, "index": 7, "mac": 0xFFEE_DDCCBBAA}
    assert code.link(values).hex() == (
        "18110000030000000000000000000000"  # BPF_PSEUDO_MAP_FD
        "18220000040000000000000010000000"  # BPF_PSEUDO_MAP_VALUE, the offset in the upper half
        "b703000007000000"
        "18080000aabbccdd00000000eeff0000"
        "9500000000000000"
    )
    with pytest.raises(KeyError):
        code.link({"set": 3})


@given(st.integers(0, 2**64 - 1))
def test_a_wide_number_reads_back(value):
    data = assemble([set_wide(R1, value), leave()]).data
    assert int.from_bytes(data[4:8] + data[12:16], "little") == value
    assert disassemble(data)[0] == f"   0: r1 = {value:#x} ll"


def test_a_tag_is_of_the_instructions_alone():
    """The same whatever maps it was linked with."""
    lines = [set_cell(R1, "port", 8), set_map(R2, "set"), compute(R0, "=", -1), leave()]
    code = assemble(lines)
    one, other = (bpf.tags(code.link({"port": n, "set": n + 1})) for n in (0, 1000))
    assert one == other
    changed = assemble([*lines[:2], compute(R0, "=", 0), leave()])
    assert not set(bpf.tags(changed.link({"port": 0, "set": 1}))) & set(one)
