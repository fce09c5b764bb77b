"""How the ends of a migration prove to each other, on each stream, that they know its secret.

    HELLO     version, migration, stream, streams, memory bytes, encrypted, nonce, proof   ->
    CHALLENGE nonce                                                                        <-
    PROOF     proof                                                                        ->
    ACCEPTED  proof                                                                        <-

The secret never crosses the wire. A proof is an HMAC-SHA256 by a key derived from the secret
(HKDF, RFC 5869), and from CHALLENGE on from both nonces and from all that was said before: so
what was recorded once is worth nothing another time, for another stream or in the other
direction. Whoever can't prove it gets not a byte: a HELLO has a proof too, which, replayed, is
answered by a fresh nonce and nothing more. The same derivation gives each direction of each
stream its key for encryption.

Nothing here touches a socket. Each end is given the bytes that came, `wants` of them and no more,
says what to send, and ends `done` or `refused`:

    offering = Offering(spec, 0)
    send(offering.hello)
    while offering.wants:
        send(offering.feed(receive(offering.wants)))
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.migration.specification import MigrationSpec

VERSION = 2
NONCE_BYTES = PROOF_BYTES = 32
KEY_BYTES = 32  # AES-256
PREFIX_BYTES = 4  # of a record's nonce; the other 8 bytes are its number

_HELLO = struct.Struct("<4sIQIIQI32s")  # ends before its proof
_HELLO_MAGIC, _CHALLENGE, _PROOF, _ACCEPTED = b"TMVh", b"TMVc", b"TMVp", b"TMVa"
HELLO_BYTES = _HELLO.size + PROOF_BYTES
ANSWER_BYTES = 4 + 32  # CHALLENGE, PROOF and ACCEPTED


@dataclass(frozen=True, slots=True)
class Keys:
    """What an encrypted stream's records are sealed with, in each direction: key and prefix."""

    to_destination: bytes = field(repr=False)
    to_source: bytes = field(repr=False)


def _expand(key: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand of RFC 5869 with SHA-256."""
    output = block = b""
    number = 0
    while len(output) < size:
        number += 1
        block = hmac.digest(key, block + info + bytes((number,)), "sha256")
        output += block
    return output[:size]


def _hello_proof(secret: bytes, hello: bytes) -> bytes:
    key = _expand(hmac.digest(bytes(32), secret, "sha256"), b"testbed vmotion hello", 32)
    return hmac.digest(key, hello, "sha256")


class _Agreement:
    """All that follows from the secret, both nonces, and what HELLO said."""

    def __init__(self, secret: bytes, hello: bytes, challenge: bytes) -> None:
        salt = hello[_HELLO.size - NONCE_BYTES : _HELLO.size] + challenge[4:]
        self._key = hmac.digest(salt, secret, "sha256")  # HKDF-Extract
        self._said = hashlib.sha256(hello + challenge).digest()
        self.proof = _PROOF + self._derive(b"proof", PROOF_BYTES)
        self.accepted = _ACCEPTED + self._derive(b"accepted", PROOF_BYTES)

    def _derive(self, label: bytes, size: int) -> bytes:
        return _expand(self._key, b"testbed vmotion " + label + b" " + self._said, size)

    def keys(self) -> Keys:
        size = KEY_BYTES + PREFIX_BYTES
        return Keys(self._derive(b"to destination", size), self._derive(b"to source", size))


class _End:
    """What both ends have in common: a message is collected, then answered."""

    def __init__(self, wants: int) -> None:
        self.wants = wants
        """So many bytes are missing of the message that comes next; 0: there is none."""
        self.refused = ""
        """Why the peer is not who it should be, for one's own log alone; empty: not refused."""
        self.keys: Keys | None = None
        """When done: what an encrypted stream is sealed with."""
        self._heard = bytearray()

    @property
    def done(self) -> bool:
        """Whether the peer has proved that it knows the secret."""
        return self.keys is not None

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take in what came; returns what is to be sent now, often nothing.

        More than is wanted is out of turn, and refused. So is whatever comes when it is over.
        """
        if self.refused:
            return b""
        if len(data) > self.wants:
            return self._refuse(f"{len(data) - self.wants} bytes out of turn")
        self._heard += data
        self.wants -= len(data)
        if self.wants or not data:
            return b""
        message = bytes(self._heard)
        self._heard.clear()
        return self._answer(message)

    def _answer(self, message: bytes) -> bytes:
        raise NotImplementedError

    def _refuse(self, cause: str) -> bytes:
        self.refused, self.keys, self.wants = cause, None, 0
        self._heard.clear()
        return b""


class Offering(_End):
    """The source's end, for one stream. First of all, `hello` is to be sent."""

    def __init__(self, spec: MigrationSpec, number: int, nonce: bytes | None = None) -> None:
        """Stream `number` of a migration; a nonce is given by tests only.

        Raises:
            ValueError: the migration has no such stream.
        """
        super().__init__(ANSWER_BYTES)
        count = len(spec.connections)
        if not 0 <= number < count:
            raise ValueError(f"stream {number} of {count}")
        hello = _HELLO.pack(
            _HELLO_MAGIC,
            VERSION,
            spec.migration_id,
            number,
            count,
            spec.guest.memory_bytes,
            spec.encrypted,
            nonce or secrets.token_bytes(NONCE_BYTES),
        )
        self.hello = hello + _hello_proof(spec.secret, hello)
        self._secret = spec.secret
        self._agreement: _Agreement | None = None

    def _answer(self, message: bytes) -> bytes:
        if self._agreement is None:
            if not message.startswith(_CHALLENGE):
                return self._refuse("no CHALLENGE came")
            self._agreement = _Agreement(self._secret, self.hello, message)
            self.wants = ANSWER_BYTES
            return self._agreement.proof
        if not hmac.compare_digest(message, self._agreement.accepted):
            return self._refuse("the destination doesn't know the migration's secret")
        self.keys = self._agreement.keys()
        return b""


class Answering(_End):
    """The destination's end, for one connection: of which migration, its HELLO says.

    When done, and not before, `spec` is the migration's and `number` the stream's: a HELLO may be a
    replay. That no two connections are the same stream is for the caller to see to.
    """

    def __init__(self, expected: Mapping[int, MigrationSpec], nonce: bytes | None = None) -> None:
        """Wait for one of these migrations, by identifier; a nonce is given by tests only."""
        super().__init__(HELLO_BYTES)
        self._expected, self._nonce = expected, nonce
        self._agreement: _Agreement | None = None
        self._claim: tuple[MigrationSpec, int] | None = None
        self.spec: MigrationSpec | None = None
        self.number = -1

    def _answer(self, message: bytes) -> bytes:
        if self._agreement is None or self._claim is None:
            return self._challenge(message)
        if not hmac.compare_digest(message, self._agreement.proof):
            return self._refuse("no proof that it knows the secret; a replay, perhaps")
        self.keys = self._agreement.keys()
        self.spec, self.number = self._claim
        return self._agreement.accepted

    def _challenge(self, message: bytes) -> bytes:
        hello, proof = message[: _HELLO.size], message[_HELLO.size :]
        magic, version, migration_id, number, count, memory_bytes, encrypted, _ = _HELLO.unpack(
            hello
        )
        if (magic, version) != (_HELLO_MAGIC, VERSION):
            return self._refuse(f"no HELLO of version {VERSION}")
        spec = self._expected.get(migration_id)
        # A migration that nobody expects is refused after the same work as a wrong secret.
        secret = bytes(32) if spec is None else spec.secret
        proved = hmac.compare_digest(proof, _hello_proof(secret, hello))
        if spec is None:
            return self._refuse(f"migration {migration_id} is not expected here")
        if not proved:
            return self._refuse(f"it doesn't know the secret of migration {migration_id}")
        told = count, memory_bytes, encrypted
        wanted = len(spec.connections), spec.guest.memory_bytes, spec.encrypted
        if told != wanted or number >= count:
            return self._refuse(
                f"stream {number}, with streams, memory and encryption {told}, is not of"
                f" migration {migration_id}, which has {wanted}"
            )
        challenge = _CHALLENGE + (self._nonce or secrets.token_bytes(NONCE_BYTES))
        self._agreement = _Agreement(spec.secret, message, challenge)
        self._claim = spec, number
        self.wants = ANSWER_BYTES
        return challenge
