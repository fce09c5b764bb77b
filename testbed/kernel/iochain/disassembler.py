"""Instructions of eBPF as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.kernel.iochain.assembler import (
    ATOMIC,
    COMPARISONS,
    INSTRUCTION_BYTES,
    LAYOUT,
    OPERATIONS,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_VALUE,
    REGISTER,
    SIZES,
    WIDE,
    Instruction,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def disassemble(data: bytes, functions: Mapping[int, str] | None = None) -> list[str]:
    """Instructions as text, one for each, much as `bpftool prog dump xlated` has them.

    Args:
        data: the instructions.
        functions: the helper functions' names by number.
    """
    found, at = [], 0
    while at < len(data):
        opcode, registers, offset, low = LAYOUT.unpack_from(data, at)
        number, immediate = at // INSTRUCTION_BYTES, low
        if opcode == WIDE:
            at += INSTRUCTION_BYTES
            _, _, _, high = LAYOUT.unpack_from(data, at)
            immediate = (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32
        one = Instruction(opcode, registers & 15, registers >> 4, offset, immediate)
        found.append(f"{number:4}: {_text(one, functions or {})}")
        at += INSTRUCTION_BYTES
    return found


def _text(one: Instruction, functions: Mapping[int, str]) -> str:
    left, right = f"r{one.destination}", f"r{one.source}"
    operand = right if one.opcode & REGISTER else f"{one.immediate}"
    width = {code: size * 8 for size, code in SIZES.items()}[one.opcode & 0x18]
    written = f"*(u{width} *)({left} {one.offset:+})"
    match one.opcode & 7:
        case 0:
            text = f"{left} = {_wide_text(one)}"
        case 1:
            text = f"{left} = *(u{width} *)({right} {one.offset:+})"
        case 2:
            text = f"{written} = {one.immediate}"
        case 3 if one.opcode & 0xE0 == ATOMIC:
            text = f"lock {written} += {right}"
        case 3:
            text = f"{written} = {right}"
        case 4:  # only the swap is made here
            text = f"{left} = be{one.immediate} {left}"
        case 7:
            text = f"{left} {_name(OPERATIONS, one.opcode)} {operand}"
        case _:
            text = _jump_text(one, f"{left} {{}} {operand}", functions)
    return text


def _jump_text(one: Instruction, condition: str, functions: Mapping[int, str]) -> str:
    match one.opcode & 0xF0:
        case 0x80:
            return f"call {functions.get(one.immediate, '')}#{one.immediate}"
        case 0x90:
            return "exit"
        case 0x00:
            return f"goto {one.offset:+}"
    return f"if {condition.format(_name(COMPARISONS, one.opcode))} goto {one.offset:+}"


def _name(names: Mapping[str, int], opcode: int) -> str:
    return next(name for name, code in names.items() if code == opcode & 0xF0)


def _wide_text(one: Instruction) -> str:
    low, high = one.immediate & 0xFFFFFFFF, one.immediate >> 32
    if one.source == PSEUDO_MAP_FD:
        return f"map[fd {low}]"
    if one.source == PSEUDO_MAP_VALUE:
        return f"map[fd {low}][0]+{high}"
    return f"{one.immediate:#x} ll"
