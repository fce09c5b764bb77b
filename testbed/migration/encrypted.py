"""A stream whose bytes are encrypted, by AES-256-GCM, with the keys of its own handshake.

On the wire are records: the length of what follows, and that, sealed, with its tag. A record's
nonce is its number, which is not sent but counted at both ends, after a prefix; each direction has
a key of its own. So a record that was changed, dropped, repeated or moved doesn't open.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from testbed.migration.handshake import KEY_BYTES
from testbed.migration.sockets import window_clamp
from testbed.migration.stream import Stream
from testbed.migration.wire import WireError

if TYPE_CHECKING:
    import socket

    from testbed.migration.handshake import Keys
    from testbed.migration.specification import MigrationSpec
    from testbed.migration.vector import PageVector

CIPHER = "AES-256-GCM"
RECORD_BYTES = 256 << 10  # of what is sealed, at most; its plain and sealed form stay in the cache
TAG_BYTES = 16
_MOST_PARTS = 2  # a frame's header, and what follows it; more are small: one record for all
_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")
_OVERHEAD_BYTES = _LENGTH.size + TAG_BYTES
_SEALED_BYTES = 2 * (RECORD_BYTES + _OVERHEAD_BYTES)  # so small records go along with large ones


class Sealing:
    """One direction's key, and the number of its next record."""

    def __init__(self, key: bytes) -> None:
        # Only here, as nobody else needs it.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        self._cipher = AESGCM(key[:KEY_BYTES])
        self._prefix, self._number = key[KEY_BYTES:], 0

    def _nonce(self) -> bytes:
        nonce = self._prefix + _NUMBER.pack(self._number)
        self._number += 1
        return nonce

    def seal(self, plain: memoryview, into: memoryview) -> int:
        """Write a record; returns its bytes."""
        sealed = self._cipher.encrypt_into(
            self._nonce(), plain, None, into[_LENGTH.size : _OVERHEAD_BYTES + len(plain)]
        )
        _LENGTH.pack_into(into, 0, sealed)
        return _LENGTH.size + sealed

    def unseal(self, sealed: memoryview, into: memoryview) -> None:
        """Write what a record has in it.

        Raises:
            WireError: it is not the next that was sealed with this key.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        number = self._number
        try:
            self._cipher.decrypt_into(self._nonce(), sealed, None, into)
        except InvalidTag:
            raise WireError(f"record {number} is not as the peer sealed it") from None


class EncryptedStream(Stream):
    """A stream that seals what it sends, and takes only what its peer has sealed.

    `pay` is told of the records' bytes. What a failed record has left in a buffer is worthless.
    """

    def __init__(
        self, sock: socket.socket, timeout_ns: int, keys: Keys, *, at_source: bool
    ) -> None:
        """Go on after the handshake that these keys are from."""
        super().__init__(sock, timeout_ns)
        ours, theirs = keys.to_destination, keys.to_source
        if not at_source:
            ours, theirs = theirs, ours
        self._ours, self._theirs = Sealing(ours), Sealing(theirs)
        self._sealed = memoryview(bytearray(_SEALED_BYTES))
        self._length = bytearray(_LENGTH.size)
        self._arriving = memoryview(bytearray(RECORD_BYTES + TAG_BYTES))
        self._opened = memoryview(bytearray(RECORD_BYTES))
        self._rest = self._opened[:0]  # of the latest record, what nobody has asked for yet

    def send(self, *parts: bytes | memoryview) -> None:
        """Send all of the parts; errors as `Stream.send`."""
        if len(parts) > _MOST_PARTS:
            parts = (b"".join(parts),)
        used = 0
        for part in parts:
            used = self._seal(memoryview(part).cast("B"), used)
        self._flush(used)

    def send_pages(self, vector: PageVector) -> None:
        """Send all that a vector points at; errors as `send`."""
        used = 0
        for piece in vector.contents():
            used = self._seal(piece, used)
        self._flush(used)

    def _seal(self, plain: memoryview, used: int) -> int:
        """Add records after the first `used` bytes, and send these when there is no room for more.

        Returns how many bytes are there now.
        """
        for first in range(0, len(plain), RECORD_BYTES):
            piece = plain[first : first + RECORD_BYTES]
            if used + len(piece) + _OVERHEAD_BYTES > _SEALED_BYTES:
                self._flush(used)
                used = 0
            used += self._ours.seal(piece, self._sealed[used:])
        return used

    def _flush(self, used: int) -> None:
        if used:
            super().send(self._sealed[:used])

    def receive(self, into: memoryview | bytearray) -> None:
        """Fill a buffer.

        Raises:
            PeerError: as `Stream.receive`.
            WireError: a record is longer than any of a peer's, or is not what it sealed next.
        """
        view = memoryview(into).cast("B")
        while len(view):
            if not self._rest:
                record = self._receive_record()
                plain_bytes = len(record) - TAG_BYTES
                if plain_bytes <= len(view):
                    self._theirs.unseal(record, view[:plain_bytes])
                    view = view[plain_bytes:]
                    continue
                self._theirs.unseal(record, self._opened[:plain_bytes])
                self._rest = self._opened[:plain_bytes]
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            view, self._rest = view[count:], self._rest[count:]

    def receive_pages(self, vector: PageVector) -> None:
        """Fill all that a vector points at; errors as `receive`."""
        for room in vector.rooms():
            self.receive(room)

    def _receive_record(self) -> memoryview:
        super().receive(self._length)
        (size,) = _LENGTH.unpack(self._length)
        if not TAG_BYTES < size <= len(self._arriving):
            raise WireError(f"record of {size} bytes, {len(self._arriving)} are the most")
        record = self._arriving[:size]
        super().receive(record)
        return record

    def readable(self) -> bool:
        """Whether the peer has sent something, or closed."""
        return bool(self._rest) or super().readable()


def proved(
    sock: socket.socket, spec: MigrationSpec, keys: Keys | None, *, at_source: bool
) -> Stream:
    """The stream of a connection after its handshake: encrypted, if that is specified.

    Raises:
        ValueError: it is, and there are no keys.
    """
    if spec.encrypted:
        if keys is None:
            raise ValueError("an encrypted stream needs the keys of its handshake")
        stream: Stream = EncryptedStream(sock, spec.timeout_ns, keys, at_source=at_source)
    else:
        stream = Stream(sock, spec.timeout_ns)
    if not at_source and spec.window_bytes is not None:
        stream.clamp_bytes = window_clamp(sock, spec.window_bytes)
    return stream
