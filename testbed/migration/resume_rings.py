"""Records in a file that two hosts share, each written by one and read by the other.

A record is there when it is whole: the reader checks a keyed digest over all of it, and its
sequence number against the one that it waits for. A record that is half written, older, or of
somebody else is none. Nothing is locked, and a process that is killed leaves nothing undone.
What an encrypted migration writes is sealed by AES-256-GCM instead, under the record's number.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD = struct.Struct("<QQI")  # sequence number, value, bytes of the body
_DIGEST_BYTES = 16
RECORD_BYTES = _HEAD.size + _DIGEST_BYTES


class Blocks(Protocol):
    """The file."""

    def read(self, size: int, offset: int) -> bytes:
        """What lies there."""

    def write(self, data: bytes, offset: int) -> None:
        """Put it there."""


class Ring:
    """Slots for records of at most `body_bytes`; number n lies in slot n modulo `slots`.

    Whoever writes leaves a slot as it is until its record has been read.
    """

    def __init__(
        self,
        blocks: Blocks,
        offset: int,
        slots: int,
        body_bytes: int,
        *,
        name: str,
        secret: bytes,
        encrypted: bool = False,
    ) -> None:
        """Lay it over a part of the file; `name` and `secret` make the key of its records."""
        self._blocks, self._offset, self._slots = blocks, offset, slots
        self._slot_bytes = RECORD_BYTES + body_bytes
        key = hashlib.blake2b(name.encode(), key=secret, digest_size=32).digest()
        self._seal: _Seal = _Encrypted(key) if encrypted else _Signed(key)
        self.end = offset + slots * self._slot_bytes

    def put(self, first: int, records: Sequence[tuple[int, bytes]]) -> None:
        """Write records (value, body), numbered from `first` on, at most as many as slots."""
        places = [(first + n) % self._slots for n in range(len(records))]
        packed = [self._pack(first + n, *record) for n, record in enumerate(records)]
        before = self._slots - places[0] if places else 0  # the rest begins at slot 0 again
        for part, place in ((packed[:before], places[:1]), (packed[before:], [0])):
            if part:
                self._blocks.write(b"".join(part), self._offset + place[0] * self._slot_bytes)

    def get(self, number: int) -> tuple[int, bytes] | None:
        """The value and body of a record; None while it isn't there."""
        record = self._unpack(number % self._slots)
        return record[1:] if record is not None and record[0] == number else None

    def latest(self, slot: int) -> tuple[int, int, bytes] | None:
        """The number, value and body of whatever record lies in a slot; None if none does."""
        return self._unpack(slot)

    def _pack(self, number: int, value: int, body: bytes) -> bytes:
        head = _HEAD.pack(number, value, len(body))
        return (head + self._seal.close(number, head, body)).ljust(self._slot_bytes, b"\0")

    def _unpack(self, slot: int) -> tuple[int, int, bytes] | None:
        data = self._blocks.read(self._slot_bytes, self._offset + slot * self._slot_bytes)
        if len(data) != self._slot_bytes:
            return None
        number, value, size = _HEAD.unpack_from(data)
        if size > self._slot_bytes - RECORD_BYTES:
            return None
        body = self._seal.open(number, data[: _HEAD.size], data[_HEAD.size : RECORD_BYTES + size])
        return None if body is None else (number, value, body)


class _Seal(Protocol):
    """Proves head and body of a record, in 16 bytes more than the body's."""

    def close(self, number: int, head: bytes, body: bytes) -> bytes:
        """What is written after the head."""

    def open(self, number: int, head: bytes, sealed: bytes) -> bytes | None:
        """The body; None if this isn't what was closed."""


class _Signed:
    """Anybody may read it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def close(self, _: int, head: bytes, body: bytes) -> bytes:
        digest = hashlib.blake2b(head + body, key=self._key, digest_size=_DIGEST_BYTES).digest()
        return digest + body

    def open(self, number: int, head: bytes, sealed: bytes) -> bytes | None:
        body = sealed[_DIGEST_BYTES:]
        return body if hmac.compare_digest(sealed, self.close(number, head, body)) else None


class _Encrypted:
    """A number is used once, so it makes the nonce."""

    def __init__(self, key: bytes) -> None:
        # Only here, as nobody else needs it.
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        self._cipher, self._invalid = AESGCM(key), InvalidTag

    def close(self, number: int, head: bytes, body: bytes) -> bytes:
        return self._cipher.encrypt(number.to_bytes(12, "little"), body, head)

    def open(self, number: int, head: bytes, sealed: bytes) -> bytes | None:
        try:
            return self._cipher.decrypt(number.to_bytes(12, "little"), sealed, head)
        except self._invalid:
            return None
