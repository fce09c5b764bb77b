"""A route-netlink socket: batches out, one acknowledgement per message back."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 10, 11, 12
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_INTR, _NLM_F_ACK_TLVS = 0x10, 0x200
_NLMSGERR_ATTR_MSG, _NLMSGERR_ATTR_MISS_TYPE = 1, 5
_HEADER = struct.Struct("=IHHII")
_ERROR = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER_BYTES = 1 << 18  # a dump is delivered in parts of at most 32 KiB
_MOST_IN_FLIGHT = 100  # acknowledgements of so many fit the smallest usual receive buffer
_DUMP_ATTEMPTS = 10


@dataclass(eq=False)
class RefusedError(Exception):
    """A message that the kernel refused: which of the batch, and its own words."""

    position: int
    number: int
    text: str

    @property
    def cause(self) -> str:
        """The error's name and the kernel's explanation, if it gave one."""
        plain = f"{os.strerror(self.number)} ({errno.errorcode.get(self.number, self.number)})"
        return f"{self.text} - {plain}" if self.text else plain


def attributes(data: bytes | memoryview, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The attributes between two offsets, as (type, first byte, byte after the last)."""
    unpack = _ATTRIBUTE.unpack_from
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, offset + 4, offset + length
        offset += (length + 3) & ~3


def table(data: bytes | memoryview, start: int, end: int) -> dict[int, tuple[int, int]]:
    """The attributes between two offsets by their type: first byte, byte after the last."""
    return {kind: (first, last) for kind, first, last in attributes(data, start, end)}


class Socket:
    """A netlink socket of the network namespace that the calling thread is in when it is made.

    Raises:
        OSError: the kernel refuses.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        """Close it, which lets go of the namespace."""
        self._socket.close()

    def request(self, messages: Sequence[bytearray]) -> RefusedError | None:
        """Send messages, have each acknowledged; the first refusal, or None.

        The messages' sequence numbers are set here. All are carried out, also those after
        a refused one.

        Raises:
            OSError: the socket failed.
        """
        refusals = self.outcomes(messages)
        return next((refusal for refusal in refusals if refusal is not None), None)

    def outcomes(self, messages: Sequence[bytearray]) -> list[RefusedError | None]:
        """Send messages, have each acknowledged; for each its refusal, or None.

        Raises:
            OSError: the socket failed.
        """
        found: list[RefusedError | None] = []
        for start in range(0, len(messages), _MOST_IN_FLIGHT):
            found += self._batch(messages[start : start + _MOST_IN_FLIGHT], start)
        return found

    def _batch(self, messages: Sequence[bytearray], position: int) -> list[RefusedError | None]:
        first = self._sequence + 1
        for sequence, message in enumerate(messages, first):
            struct.pack_into("=I", message, 8, sequence)
        self._sequence += len(messages)
        self._socket.send(messages[0] if len(messages) == 1 else b"".join(messages))
        found: list[RefusedError | None] = [None] * len(messages)
        waiting = len(messages)
        receive = self._socket.recv
        while waiting:
            data = receive(_BUFFER_BYTES)
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            if kind != _NLMSG_ERROR or sequence < first:
                continue  # the tail of a dump that was given up
            waiting -= 1
            (number,) = _ERROR.unpack_from(data, 16)
            if number:
                text = _explanation(data, length) if flags & _NLM_F_ACK_TLVS else ""
                at = sequence - first
                found[at] = RefusedError(position + at, -number, text)
        return found

    def dump(self, message: bytearray) -> list[tuple[bytes, int, int]]:
        """All objects that a dump request asks for, as (data, payload's first byte, end).

        Raises:
            RefusedError: the kernel refuses.
            OSError: the socket failed.
        """
        for _ in range(_DUMP_ATTEMPTS):
            found = self._dump(message)
            if found is not None:
                return found
        raise OSError(errno.EAGAIN, "the namespace changes faster than it can be read")

    def _dump(self, message: bytearray) -> list[tuple[bytes, int, int]] | None:
        self._sequence += 1
        struct.pack_into("=I", message, 8, self._sequence)
        self._socket.send(message)
        found: list[tuple[bytes, int, int]] = []
        whole = True
        while True:
            data = self._socket.recv(_BUFFER_BYTES)
            offset, size = 0, len(data)
            while offset < size:
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                if sequence == self._sequence:
                    whole = whole and not flags & _NLM_F_DUMP_INTR
                    if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                        (number,) = _ERROR.unpack_from(data, offset + 16)
                        if number:
                            raise RefusedError(0, -number, "")
                        return found if whole else None
                    found.append((data, offset + 16, offset + length))
                offset += (length + 3) & ~3

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _explanation(data: bytes, length: int) -> str:
    # With NETLINK_CAP_ACK the error holds the refused message's header only: 16 + 4 + 16.
    words = []
    for kind, start, end in attributes(data, 36, length):
        if kind == _NLMSGERR_ATTR_MSG:
            words.append(data[start:end].rstrip(b"\0").decode(errors="replace"))
        elif kind == _NLMSGERR_ATTR_MISS_TYPE:
            words.append(f"attribute {int.from_bytes(data[start:end], 'little')} is missing")
    return ", ".join(words)
