"""A machine that runs the IOChain's programs on a frame, without a kernel."""

from __future__ import annotations

import operator
import struct
from dataclasses import dataclass, field
from socket import htons

STACK, CELLS, FRAME, SET = (n << 32 for n in range(1, 5))  # where memory of each kind lies
CELLS_FD, SET_FD = 3, 4
U64 = (1 << 64) - 1
FIELDS = {
    0: "length", 8: "mark", 16: "protocol", 20: "vlan_present", 24: "vlan_tci", 32: "priority",
    164: "gso_segments", 176: "gso_bytes",
}  # fmt: skip
ALU = {
    0x00: operator.add, 0x10: operator.sub, 0x20: operator.mul, 0x40: operator.or_,
    0x50: operator.and_, 0x60: operator.lshift, 0x70: operator.rshift, 0xA0: operator.xor,
    0xB0: lambda _, b: b,
}  # fmt: skip
COMPARE = {
    0x10: operator.eq, 0x20: operator.gt, 0x30: operator.ge, 0x40: lambda a, b: a & b,
    0x50: operator.ne, 0xA0: operator.lt, 0xB0: operator.le,
}  # fmt: skip
SIZE = {0x18: 8, 0x00: 4, 0x08: 2, 0x10: 1}


@dataclass
class Frame:
    """A frame: its bytes without the tag, and what the kernel keeps beside them."""

    data: bytearray
    tci: int | None = None
    mark: int = 0
    priority: int = 0
    gso_segments: int = 0
    gso_bytes: int = 0
    clones: list[int] = field(default_factory=list)

    def get(self, name: str) -> int:
        match name:
            case "length":
                return len(self.data)
            case "protocol":
                return htons(int.from_bytes(self.data[12:14], "big"))
            case "vlan_present":
                return int(self.tci is not None)
            case "vlan_tci":
                return self.tci or 0
        return int(getattr(self, name))


@dataclass
class Machine:
    """Runs programs; `cells` are a port's map, `addresses` the switch's, `random` what it draws."""

    cells: bytearray = field(default_factory=lambda: bytearray(4096))
    addresses: set[bytes] = field(default_factory=set)
    random: int = 0

    def run(self, code: bytes, frame: Frame) -> int:
        """The program's result, signed."""
        self._frame, self._stack = frame, bytearray(512)
        registers = [0] * 11
        registers[1], registers[10] = FRAME, STACK + 512
        at = 0
        while True:
            opcode, both, offset, immediate = struct.unpack_from("<BBhi", code, at * 8)
            left, right = both & 15, both >> 4
            at += 1
            kind, operation = opcode & 7, opcode & 0xF0
            operand = registers[right] if opcode & 8 else immediate & U64
            if opcode == 0x18:
                high = struct.unpack_from("<4xi", code, at * 8)[0]
                at += 1
                registers[left] = self._wide(right, immediate, high)
            elif kind == 1:
                registers[left] = self._load(registers[right] + offset, SIZE[opcode & 0x18])
            elif kind in (2, 3):
                value = registers[right] if kind == 3 else immediate
                size, place = SIZE[opcode & 0x18], registers[left] + offset
                added = self._load(place, size) if opcode & 0xE0 == 0xC0 else 0
                self._store(place, size, value + added)
            elif opcode == 0xDC:
                size = immediate // 8
                low = (registers[left] & ((1 << immediate) - 1)).to_bytes(size, "little")
                registers[left] = int.from_bytes(low, "big")
            elif kind == 7:
                registers[left] = ALU[operation](registers[left], operand) & U64
            elif operation == 0x90:
                return registers[0] - (1 << 64) if registers[0] >> 63 else registers[0]
            elif operation == 0x80:
                registers[0] = self._call(immediate, *registers[1:6]) & U64
                registers[1:6] = [0xDEAD] * 5  # lost in a call
            elif operation == 0x00 or COMPARE[operation](registers[left], operand):
                at += offset

    @staticmethod
    def _wide(kind: int, low: int, high: int) -> int:
        if kind == 2:
            assert low == CELLS_FD
            return CELLS + high
        if kind == 1:
            assert low == SET_FD
            return SET
        return low & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32

    def _memory(self, place: int) -> tuple[bytearray, int]:
        return (self._stack if place >> 32 == 1 else self.cells), place & 0xFFFFFFFF

    def _load(self, place: int, size: int) -> int:
        if place >= FRAME:
            return self._frame.get(FIELDS[place - FRAME])
        memory, at = self._memory(place)
        return int.from_bytes(memory[at : at + size], "little")

    def _store(self, place: int, size: int, value: int) -> None:
        if place >= FRAME:
            assert FIELDS[place - FRAME] in {"mark", "priority"}  # all that the kernel lets
            setattr(self._frame, FIELDS[place - FRAME], value & 0xFFFFFFFF)
            return
        memory, at = self._memory(place)
        memory[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def _call(self, number: int, one: int, two: int, three: int, four: int, five: int) -> int:  # noqa: PLR0911, PLR0917
        frame = self._frame
        match number:
            case 1:
                memory, at = self._memory(two)
                return SET if bytes(memory[at : at + 6]) in self.addresses else 0
            case 7:
                return self.random
            case 9:
                memory, at = self._memory(three)
                frame.data[two : two + four] = memory[at : at + four]
                return 0
            case 10:
                return self._replace_checksum(two, three, four)
            case 13:
                frame.clones.append(two)
                return 0
            case 18:
                assert two == htons(0x8100)
                assert frame.tci is None
                frame.tci = three
                return 0
            case 19:
                frame.tci = None
                return 0
            case 26:
                if two + four > len(frame.data):
                    return -14
                memory, at = self._memory(three)
                memory[at : at + four] = frame.data[two : two + four]
                return 0
        raise AssertionError(f"function {number} is not there")

    def _replace_checksum(self, at: int, old: int, new: int) -> int:
        """RFC 1624, of words in network order."""
        word = int.from_bytes(self._frame.data[at : at + 2], "big")
        total = (~word & 0xFFFF) + (~htons(old) & 0xFFFF) + htons(new)
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        self._frame.data[at : at + 2] = (~total & 0xFFFF).to_bytes(2, "big")
        return 0
