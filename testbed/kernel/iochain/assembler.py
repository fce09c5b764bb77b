"""An assembler for eBPF: instructions by function, jumps by label, maps by symbol.

The encoding is that of the kernel's Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LAYOUT = struct.Struct("<BBhi")  # opcode, registers, offset, immediate: 8 bytes
INSTRUCTION_BYTES = LAYOUT.size
_IMMEDIATE_AT = 4
_LD, _LDX, _ST, _STX, _ALU32, _JMP, _, _ALU64 = range(8)  # the class, its lowest bits
SIZES = {8: 0x18, 4: 0x00, 2: 0x08, 1: 0x10}  # DW, W, H, B
_MEM, ATOMIC = 0x60, 0xC0
REGISTER = 0x08  # the second operand is a register, not an immediate
WIDE = _LD | SIZES[8]  # ld_imm64: takes two slots
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE = 1, 2
_GOTO, _CALL, _EXIT, _TO_BIG_ENDIAN = 0x00, 0x80, 0x90, 0xD8
OPERATIONS = {
    "+=": 0x00, "-=": 0x10, "*=": 0x20, "|=": 0x40, "&=": 0x50, "<<=": 0x60, ">>=": 0x70,
    "^=": 0xA0, "=": 0xB0,
}  # fmt: skip
COMPARISONS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0}
"""Unsigned all; `&` jumps if any bit is in common."""


class Register(enum.IntEnum):
    """R0 is a function's result, R1-R5 its arguments, lost in a call; R10 the stack's top."""

    R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Register
Operand: TypeAlias = "Register | int"


@dataclass(frozen=True, slots=True)
class Label:
    """A place to jump to: the instruction that follows."""

    name: str


class Instruction(NamedTuple):
    """One instruction; `target` is the label of a jump, `symbol` what the immediate stands for."""

    opcode: int
    destination: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0
    target: str = ""
    symbol: str = ""

    @property
    def slots(self) -> int:
        """How many times 8 bytes it takes."""
        return 2 if self.opcode == WIDE else 1


Line: TypeAlias = Instruction | Label


def compute(destination: Register, operation: str, operand: Operand) -> Instruction:
    """`destination operation operand` in 64 bits; immediates are signed, of 32 bits."""
    code = _ALU64 | OPERATIONS[operation]
    if isinstance(operand, Register):
        return Instruction(code | REGISTER, destination, operand)
    return Instruction(code, destination, immediate=operand)


def set_symbol(destination: Register, symbol: str) -> Instruction:
    """A number of 31 bits that is known when the program is linked."""
    return Instruction(_ALU64 | OPERATIONS["="], destination, symbol=symbol)


def set_wide(destination: Register, value: int | str) -> Instruction:
    """A number of 64 bits, or the symbol of one."""
    if isinstance(value, str):
        return Instruction(WIDE, destination, symbol=value)
    return Instruction(WIDE, destination, immediate=value)


def set_map(destination: Register, symbol: str) -> Instruction:
    """A map's address, for functions that take a map."""
    return Instruction(WIDE, destination, PSEUDO_MAP_FD, symbol=symbol)


def set_cell(destination: Register, symbol: str, offset: int) -> Instruction:
    """The address of a byte in the only value of an array map."""
    return Instruction(WIDE, destination, PSEUDO_MAP_VALUE, immediate=offset << 32, symbol=symbol)


def to_big_endian(destination: Register, bits: int) -> Instruction:
    """Swap between network and machine order."""
    return Instruction(_ALU32 | _TO_BIG_ENDIAN, destination, immediate=bits)


def load(size: int, destination: Register, base: Register, offset: int) -> Instruction:
    """Read `size` bytes of memory."""
    return Instruction(_LDX | _MEM | SIZES[size], destination, base, offset)


def store(size: int, base: Register, offset: int, operand: Operand) -> Instruction:
    """Write `size` bytes of memory."""
    if isinstance(operand, Register):
        return Instruction(_STX | _MEM | SIZES[size], base, operand, offset)
    return Instruction(_ST | _MEM | SIZES[size], base, 0, offset, operand)


def atomic_add(base: Register, offset: int, source: Register) -> Instruction:
    """Add to 8 bytes of memory, whatever other CPUs do there."""
    return Instruction(_STX | ATOMIC | SIZES[8], base, source, offset)


def jump_if(left: Register, comparison: str, right: Operand, target: str) -> Instruction:
    """Go to a label if the comparison of 64 bits holds."""
    code = _JMP | COMPARISONS[comparison]
    if isinstance(right, Register):
        return Instruction(code | REGISTER, left, right, target=target)
    return Instruction(code, left, immediate=right, target=target)


def jump(target: str) -> Instruction:
    """Go to a label."""
    return Instruction(_JMP | _GOTO, target=target)


def call(function: int) -> Instruction:
    """Call one of the kernel's helper functions by its number."""
    return Instruction(_JMP | _CALL, immediate=function)


def called(line: Line) -> int | None:
    """The number of the function that a line calls; None if it calls none."""
    if isinstance(line, Label) or line.opcode != _JMP | _CALL:
        return None
    return line.immediate


def leave() -> Instruction:
    """End the program; R0 is its result."""
    return Instruction(_JMP | _EXIT)


@dataclass(frozen=True, slots=True)
class Code:
    """Encoded instructions; `symbols` says which of them wait for a value (byte, name)."""

    data: bytes
    symbols: tuple[tuple[int, str], ...]

    def link(self, values: Mapping[str, int]) -> bytes:
        """The instructions with each symbol's value in place.

        Raises:
            KeyError: a symbol has no value.
        """
        linked = bytearray(self.data)
        for at, symbol in self.symbols:
            low, high = _halves(values[symbol])
            struct.pack_into("<i", linked, at + _IMMEDIATE_AT, low)
            if (linked[at], linked[at + 1] >> 4) == (WIDE, 0):  # not a map's descriptor
                struct.pack_into("<i", linked, at + INSTRUCTION_BYTES + _IMMEDIATE_AT, high)
        return bytes(linked)


def assemble(lines: Iterable[Line]) -> Code:
    """Encode instructions, jumps resolved, less what can't be reached (the verifier refuses it).

    Raises:
        KeyError: a jump's label is nowhere.
        ValueError: a label stands twice.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in lines:
        if isinstance(line, Instruction):
            instructions.append(line)
        elif line.name in labels:
            raise ValueError(f"the label {line.name} stands twice")
        else:
            labels[line.name] = len(instructions)
    kept = _reached(instructions, labels)
    slots, slot = [], 0
    for number, instruction in enumerate(instructions):
        slots.append(slot)
        slot += instruction.slots if number in kept else 0
    data, symbols = bytearray(), []
    for number, one in enumerate(instructions):
        if number in kept:
            if one.symbol:
                symbols.append((len(data), one.symbol))
            offset = slots[labels[one.target]] - slots[number] - 1 if one.target else one.offset
            data += _encode(one, offset)
    return Code(bytes(data), tuple(symbols))


def _reached(instructions: Sequence[Instruction], labels: Mapping[str, int]) -> set[int]:
    found: set[int] = set()
    waiting = [0]
    while waiting:
        number = waiting.pop()
        while number not in found:
            found.add(number)
            one = instructions[number]
            if one.opcode == _JMP | _EXIT:
                break
            if one.target:
                waiting.append(labels[one.target])
            if one.opcode == _JMP | _GOTO:
                break
            number += 1
    return found


def _halves(value: int) -> tuple[int, int]:
    low, high = struct.unpack("<ii", struct.pack("<Q", value))
    return low, high


def _encode(one: Instruction, offset: int) -> bytes:
    registers = one.destination | one.source << 4
    if one.opcode != WIDE:
        return LAYOUT.pack(one.opcode, registers, offset, one.immediate)
    low, high = _halves(one.immediate)
    return LAYOUT.pack(WIDE, registers, 0, low) + LAYOUT.pack(0, 0, 0, high)
