"""The bpf() system call: maps, and programs for tc.

Nothing is pinned in a file system: a program lives as long as the tc filter that runs it, a
map as long as a program that uses it, or a descriptor. A lab that is killed leaves nothing.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import platform
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROGRAM_LOAD = range(6)
_PROGRAM_BY_ID, _MAP_BY_ID, _INFO, _BIND_MAP = 13, 14, 15, 35
_HASH, _ARRAY, _SCHED_CLS = 1, 2, 3
_NO_PREALLOCATION, _MMAPABLE = 1 << 0, 1 << 10
_MAP = struct.Struct("=7I16s")  # type, key, value, entries, flags, inner map, NUMA node, name
_PROGRAM = struct.Struct("=IIQQIIQII16s")  # ... log level, size and buffer, version, flags, name
_ELEMENT = struct.Struct("=I4xQQQ")  # map, addresses of key and value, flags
_QUESTION = struct.Struct("=IIQ")  # descriptor, length and address of the answer
_PROGRAM_INFO = struct.Struct("=4xI8s32xIIQ16s")  # id, tag, (user), number of maps, maps, name
_MAP_INFO = struct.Struct("=4xIIII4x16s")  # id, key, value, entries, name
_MOST_MAPS = 16
_TAG_BYTES = 8
_LOAD_WIDE = 0x18
_LOG_BYTES = 1 << 20
_LOG_LINES = 40  # the end of the verifier's log is what says why
_REMEDIES = {
    errno.EPERM: "run as root, in a privileged container",
    errno.ENOSYS: "the kernel needs CONFIG_BPF_SYSCALL",
    errno.E2BIG: "give the port fewer rules",
}


@functools.cache
def _system_call() -> tuple[Any, ctypes.c_long]:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise KernelError("call", "bpf()", f"its number on {platform.machine()} isn't known here")
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function, ctypes.c_long(number)


def _bpf(command: int, attributes: bytes) -> int:
    function, number = _system_call()
    place = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(function(number, ctypes.c_int(command), place, ctypes.c_int(len(attributes))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _error(attempt: str, target: str, error: OSError, more: str = "") -> KernelError:
    remedy = _REMEDIES.get(error.errno or 0, "see `testbed doctor`")
    return KernelError(attempt, target, str(error.strerror) + more, remedy)


# ---------------------------------------------------------------- maps


def create_cells(name: str, value: bytes) -> int:
    """An array map of one value, that `mmap` takes; its descriptor.

    Raises:
        KernelError: the kernel refuses.
    """
    fd = _create(name, _MAP.pack(_ARRAY, 4, len(value), 1, _MMAPABLE, 0, 0, name.encode()))
    key, place = ctypes.c_uint32(0), ctypes.create_string_buffer(value, len(value))
    try:
        _bpf(_UPDATE, _ELEMENT.pack(fd, ctypes.addressof(key), ctypes.addressof(place), 0))
    except OSError as error:
        os.close(fd)
        raise _error("set map", name, error) from error
    return fd


def create_set(name: str, key_bytes: int, most: int) -> int:
    """A hash map of keys, each with a byte that means nothing; its descriptor.

    Raises:
        KernelError: the kernel refuses.
    """
    shape = _HASH, key_bytes, 1, most, _NO_PREALLOCATION, 0, 0
    return _create(name, _MAP.pack(*shape, name.encode()))


def _create(name: str, attributes: bytes) -> int:
    try:
        return _bpf(_MAP_CREATE, attributes)
    except OSError as error:
        raise _error("create map", name, error) from error


class Element:
    """One key of a map, prepared so that it can be entered and removed within microseconds.

    The map's descriptor stays the caller's.
    """

    def __init__(self, map_fd: int, key: bytes) -> None:
        self._key = ctypes.create_string_buffer(key, len(key))
        self._value = ctypes.create_string_buffer(1)
        key_at, value_at = ctypes.addressof(self._key), ctypes.addressof(self._value)
        self._attributes = _ELEMENT.pack(map_fd, key_at, value_at, 0)
        self._key_only = _ELEMENT.pack(map_fd, key_at, 0, 0)

    def enter(self) -> None:
        """Have it in the map.

        Raises:
            OSError: the kernel refuses (E2BIG: the map is full).
        """
        _bpf(_UPDATE, self._attributes)

    def remove(self) -> None:
        """Have it in the map no longer.

        Raises:
            OSError: the kernel refuses.
        """
        with suppress(FileNotFoundError):
            _bpf(_DELETE, self._key_only)

    def is_in(self) -> bool:
        """Whether the map has it.

        Raises:
            OSError: the kernel refuses.
        """
        try:
            _bpf(_LOOKUP, self._attributes)
        except FileNotFoundError:
            return False
        return True


def keys(map_fd: int, key_bytes: int) -> list[bytes]:
    """All keys of a map.

    Raises:
        OSError: the kernel refuses.
    """
    found: list[bytes] = []
    key, following = ctypes.create_string_buffer(key_bytes), ctypes.create_string_buffer(key_bytes)
    address = 0  # of no key: the first one follows
    with suppress(FileNotFoundError):
        while True:
            _bpf(_NEXT_KEY, _ELEMENT.pack(map_fd, address, ctypes.addressof(following), 0))
            found.append(following.raw)
            key.raw, address = following.raw, ctypes.addressof(key)
    return found


# ---------------------------------------------------------------- programs


def load_program(name: str, code: bytes, target: str) -> int:
    """A program for tc in direct action mode; its descriptor.

    Args:
        name: of at most 15 letters, digits and underscores.
        code: the instructions, linked.
        target: the port, for messages.

    Raises:
        KernelError: the kernel refuses; with the end of the verifier's log.
    """
    try:
        return _load(name, code, None)
    except OSError as first:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _load(name, code, log)  # a second time, for the log
        except OSError:
            lines = log.value.decode(errors="replace").strip().splitlines()
        more = "".join(f"\n  {line}" for line in lines[-_LOG_LINES:])
        raise _error(f"load program {name} for", target, first, more) from first


def _load(name: str, code: bytes, log: ctypes.Array[ctypes.c_char] | None) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    logging = (0, 0, 0) if log is None else (1, len(log), ctypes.addressof(log))
    places = ctypes.addressof(instructions), ctypes.addressof(licence)
    data = _PROGRAM.pack(_SCHED_CLS, len(code) // 8, *places, *logging, 0, 0, name.encode())
    return _bpf(_PROGRAM_LOAD, data)


def bind_map(program_fd: int, map_fd: int) -> None:
    """Have a map live as long as a program, which need not use it (Linux 5.10).

    Raises:
        OSError: the kernel refuses.
    """
    with suppress(FileExistsError):  # the program uses it anyway
        _bpf(_BIND_MAP, struct.pack("=III", program_fd, map_fd, 0))


def tags(code: bytes) -> tuple[bytes, bytes]:
    """The tag that kernels give to a program: since 6.18, and before.

    It is a hash of the instructions, without which map they use, and where in it.
    """
    bare = bytearray(code)
    for at in range(0, len(bare), 8):
        if bare[at] == _LOAD_WIDE and bare[at + 1] >> 4:  # a map's: 4 bytes in both halves
            bare[at + 4 : at + 8] = bare[at + 12 : at + 16] = bytes(4)
    digests = hashlib.sha256(bare), hashlib.sha1(bare, usedforsecurity=False)
    newer, older = (digest.digest()[:_TAG_BYTES] for digest in digests)
    return newer, older


@dataclass(frozen=True, slots=True)
class ProgramFact:
    """A loaded program; `tag` is a hash of its instructions, maps' descriptors left out."""

    number: int
    tag: bytes
    name: str
    maps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MapFact:
    """A map; sizes in bytes."""

    number: int
    key_bytes: int
    value_bytes: int
    most: int
    name: str


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def read_program(fd: int) -> ProgramFact:
    """What the kernel says of a program.

    Raises:
        OSError: the kernel refuses.
    """
    maps = (ctypes.c_uint32 * _MOST_MAPS)()
    asked = _PROGRAM_INFO.pack(0, b"", 0, _MOST_MAPS, ctypes.addressof(maps), b"")
    answer = ctypes.create_string_buffer(asked, len(asked))
    _bpf(_INFO, _QUESTION.pack(fd, len(asked), ctypes.addressof(answer)))
    number, tag, _, count, _, name = _PROGRAM_INFO.unpack(answer.raw)
    return ProgramFact(number, tag, _text(name), tuple(maps[: min(count, _MOST_MAPS)]))


def read_map(fd: int) -> MapFact:
    """What the kernel says of a map.

    Raises:
        OSError: the kernel refuses.
    """
    answer = ctypes.create_string_buffer(_MAP_INFO.size)
    _bpf(_INFO, _QUESTION.pack(fd, _MAP_INFO.size, ctypes.addressof(answer)))
    number, key, value, most, name = _MAP_INFO.unpack(answer.raw)
    return MapFact(number, key, value, most, _text(name))


@contextmanager
def program(number: int) -> Iterator[int]:
    """A descriptor of the program with this id, within the block.

    Raises:
        OSError: there is none, or the kernel refuses.
    """
    fd = _bpf(_PROGRAM_BY_ID, struct.pack("=III", number, 0, 0))
    try:
        yield fd
    finally:
        os.close(fd)


def open_map(number: int) -> int:
    """A descriptor of the map with this id, for the caller to close.

    Raises:
        OSError: there is none, or the kernel refuses.
    """
    return _bpf(_MAP_BY_ID, struct.pack("=III", number, 0, 0))
