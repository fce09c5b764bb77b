"""A host's management traffic: the specification of each migration, and heartbeats meanwhile.

Both cross the network between the hosts' management vmks. Nobody but the agents of the lab is
answered: a message has to be expected, and begins with a proof by the lab's key.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import math
import socket
import struct
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import KernelError
from testbed.lab.connections import Connections
from testbed.ledger import Ledger

if TYPE_CHECKING:
    from testbed.lab.lines import Message
    from testbed.ledger import Worker

PORT = 902
"""TCP, of ESXi's management agents."""
MOST_STRANGERS = 64
HEAD_DEADLINE_S = 10.0
_HEAD = struct.Struct("<4sQQI")  # whose, of which migration, its bytes, those of a heartbeat
_MAGIC = b"TMGh"
_HEAD_BYTES = _HEAD.size + 32
_CHUNK_BYTES = 65536


@dataclass(slots=True)
class Costs:
    """What traffic costs its host: a ledger's worker and its prices; no worker: nothing."""

    cycles_per_byte: float = 0
    cycles_per_packet: float = 0
    worker: Worker | None = None

    def close(self) -> None:
        """Let go of the ledger."""
        if self.worker is not None:
            self.worker.close()

    @classmethod
    def of(cls, terms: dict[str, Any] | None) -> Costs:
        """By "path" of the host's ledger, "cycles_per_byte" and "cycles_per_packet".

        Raises:
            OSError, LabError: there is no such ledger.
        """
        if terms is None:
            return cls()
        worker = Ledger.join(Path(terms["path"])).worker("management")
        return cls(terms["cycles_per_byte"], terms["cycles_per_packet"], worker)

    async def pay(self, size_bytes: int, mss_bytes: int) -> None:
        """Wait until the host's CPU would have done it."""
        if self.worker is not None:
            packets = math.ceil(size_bytes / mss_bytes)
            cycles = size_bytes * self.cycles_per_byte + packets * self.cycles_per_packet
            wait_ns = self.worker.settle(cycles)
            while wait_ns:
                await asyncio.sleep(wait_ns / 1e9)
                wait_ns = self.worker.settle()


@dataclass(slots=True)
class _Expected:
    costs: Costs
    heard: asyncio.Task[None] | None = None
    answered: int = 0


class Management:
    """One host's end of it, in the host's namespace; `key` is known to the lab's agents alone."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._connections = Connections(lambda: MOST_STRANGERS + len(self._expected))
        self._expected: dict[int, _Expected] = {}
        self._listeners: dict[str, socket.socket] = {}

    def _proof(self, label: bytes, head: bytes) -> bytes:
        return hmac.digest(self._key, label + head, "sha256")

    # -- the source's end -----------------------------------------------------------------

    async def deliver(self, asked: Message, conversation: socket.socket) -> None:
        """Send a specification, say when it has arrived, and send heartbeats until told to end.

        Raises:
            OSError, TimeoutError: it can't be sent, or nothing moved for the timeout.
        """
        loop = asyncio.get_running_loop()
        timeout_s = asked["timeout_ns"] / 1e9
        specification = json.dumps(asked["specification"]).encode()
        size_bytes = max(asked["bytes"], len(specification))
        heartbeat = bytes(asked["heartbeat_bytes"])
        head = _HEAD.pack(_MAGIC, asked["id"], size_bytes, len(heartbeat))
        started_ns = time.monotonic_ns()
        async with asyncio.timeout(timeout_s):
            sock = await _connected(asked["source_address"], asked["destination_address"])
        with sock, closing(Costs.of(asked["costs"])) as costs:
            mss_bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            body = memoryview(head + self._proof(b"head", head) + specification.ljust(size_bytes))
            for first in range(0, len(body), _CHUNK_BYTES):
                part = body[first : first + _CHUNK_BYTES]
                async with asyncio.timeout(timeout_s):
                    await loop.sock_sendall(sock, part)
                await costs.pay(len(part), mss_bytes)
            async with asyncio.timeout(timeout_s):
                arrived = await _read(sock, 32)
            if not hmac.compare_digest(arrived, self._proof(b"arrived", head)):
                raise ConnectionError(0, "the other host's agent does not know the lab's key")
            said = {"took_ns": time.monotonic_ns() - started_ns}
            await loop.sock_sendall(conversation, json.dumps(said).encode())
            beats = asyncio.create_task(self._beat(sock, heartbeat, asked["interval_ns"], costs))
            await loop.sock_recv(conversation, 1)  # the migration is over
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)

    async def _beat(
        self, sock: socket.socket, heartbeat: bytes, interval_ns: int, costs: Costs
    ) -> None:
        loop = asyncio.get_running_loop()
        mss_bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        while heartbeat:
            await asyncio.sleep(interval_ns / 1e9)
            await loop.sock_sendall(sock, heartbeat)
            await costs.pay(len(heartbeat), mss_bytes)
            await _read(sock, len(heartbeat))

    # -- the destination's end ------------------------------------------------------------

    async def expect(self, asked: Message, conversation: socket.socket) -> None:
        """Take in the specification of a migration, until told that it is over.

        What is said then is how many heartbeats have been answered.

        Raises:
            KernelError: the address is not here, or in use.
        """
        loop = asyncio.get_running_loop()
        self._listen(asked["destination_address"])
        with closing(Costs.of(asked["costs"])) as costs:
            expected = self._expected[asked["id"]] = _Expected(costs)
            try:
                await loop.sock_sendall(conversation, b"{}")
                await loop.sock_recv(conversation, 1)
            finally:
                del self._expected[asked["id"]]
                if expected.heard is not None:  # its end may never come: the network is cut
                    expected.heard.cancel()
        said = {"answered": expected.answered}
        await loop.sock_sendall(conversation, json.dumps(said).encode())

    def _listen(self, address: str) -> None:
        if address in self._listeners:
            return
        sock = socket.socket(_family(address))
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, PORT))
        except OSError as error:
            sock.close()
            where = f"{address} port {PORT}"
            raise KernelError("listen at", where, str(error.strerror)) from error
        sock.listen(MOST_STRANGERS)
        sock.setblocking(False)
        self._listeners[address] = sock
        self._connections.keep(self._connections.receive(sock, self._hear))

    async def _hear(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with sock, suppress(OSError, TimeoutError):
            async with asyncio.timeout(HEAD_DEADLINE_S):
                said = await _read(sock, _HEAD_BYTES)
            head, proof = said[: _HEAD.size], said[_HEAD.size :]
            _, migration_id, size_bytes, heartbeat_bytes = _HEAD.unpack(head)
            expected = self._expected.get(migration_id)
            if expected is None or not hmac.compare_digest(proof, self._proof(b"head", head)):
                return
            if expected.heard is not None:
                return  # a replay: the source comes once
            expected.heard = asyncio.current_task()
            self._connections.know()
            mss_bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            while size_bytes:
                part = await _read(sock, min(size_bytes, _CHUNK_BYTES))
                size_bytes -= len(part)
                await expected.costs.pay(len(part), mss_bytes)
            await loop.sock_sendall(sock, self._proof(b"arrived", head))
            while heartbeat_bytes:
                beat = await _read(sock, heartbeat_bytes)
                await expected.costs.pay(len(beat), mss_bytes)
                await loop.sock_sendall(sock, beat)
                expected.answered += 1


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET


async def _connected(source_address: str, destination_address: str) -> socket.socket:
    """From one vmk to another."""
    sock = socket.socket(_family(destination_address))
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        sock.bind((source_address, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (destination_address, PORT))
    except BaseException:
        sock.close()
        raise
    return sock


async def _read(sock: socket.socket, size_bytes: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: the peer has closed.
    """
    loop = asyncio.get_running_loop()
    found = bytearray()
    while len(found) < size_bytes:
        part = await loop.sock_recv(sock, size_bytes - len(found))
        if not part:
            raise ConnectionError(0, "the other end has closed the connection")
        found += part
    return bytes(found)
