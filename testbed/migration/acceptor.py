"""Who takes in the connections of a migration at its destination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

    from testbed.migration.handshake import Keys
    from testbed.migration.specification import MigrationSpec


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection that has proved to be stream `number` of the migration; it was told so."""

    socket: socket.socket
    number: int
    keys: Keys | None = None


class Acceptor(Protocol):
    """Takes in all connections of one migration, and closes what isn't of it."""

    def accept(self, spec: MigrationSpec) -> list[Accepted]:
        """Wait for every stream of the specification; they come in order of their numbers.

        Raises:
            PeerError: not all came within the timeout.
        """

    def close(self) -> None:
        """Take in no more."""
