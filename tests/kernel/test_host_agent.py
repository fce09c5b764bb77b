"""A host's agent: many migrations on one port, each to its own VMX, whatever strangers do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.errors import KernelError
from testbed.guest.specification import GuestSpec
from testbed.kernel import netns
from testbed.lab import agent
from testbed.lab.agent_acceptor import AgentAcceptor
from testbed.migration.handshake import HELLO_BYTES, Offering
from testbed.migration.specification import MigrationSpec, StreamSpec
from testbed.migration.stream import PeerError
from tests.kernel.agents_at_work import namespace, with_agents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.lab.agents import Agents

pytestmark = pytest.mark.root

WHERE = "tb.agents.esx01"
HERE = "127.0.0.1"


@pytest.fixture
def host() -> Iterator[str]:
    with namespace(WHERE) as name:
        yield name


def spec(migration_id: int = 7, *, streams: int = 1, timeout_ns: int = 10**10) -> MigrationSpec:
    return MigrationSpec(
        migration_id=migration_id,
        secret=bytes([migration_id]) * 32,
        guest=GuestSpec("db01", 1 << 20, 1),
        source_address=HERE,
        destination_address=HERE,
        streams=(StreamSpec(HERE, HERE),) * streams,
        timeout_ns=timeout_ns,
    )


def registered(one: MigrationSpec) -> AgentAcceptor:
    """The VMX of a migration, in its host's namespace."""
    with netns.inside(WHERE):
        return AgentAcceptor(one)


def connected() -> socket.socket:
    with netns.inside(WHERE):
        return socket.create_connection((HERE, 8000), timeout=10)


def offered(one: MigrationSpec, number: int = 0) -> socket.socket:
    """A source's stream, up to where it would send pages."""
    sock, offering = connected(), Offering(one, number)
    sock.sendall(offering.hello)
    while offering.wants:
        data = sock.recv(offering.wants)
        assert data, "turned away"
        sock.sendall(offering.feed(data))
    assert offering.done
    return sock


@contextmanager
def accepted(acceptor: AgentAcceptor, one: MigrationSpec) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        found = acceptor.accept(one)
        yield [stack.enter_context(stream.socket) for stream in found]


def test_each_stream_comes_to_the_vmx_of_its_migration(host: str) -> None:
    async def work(agents: Agents) -> None:
        await agents.of("esx01", host)
        first, second = spec(1, streams=2), spec(2, streams=2)
        with ExitStack() as stack:
            waiting = {one.migration_id: registered(one) for one in (first, second)}
            for acceptor in waiting.values():
                stack.callback(acceptor.close)
            sources = {
                (one.migration_id, number): stack.enter_context(offered(one, number))
                for one, number in ((second, 1), (first, 0), (first, 1), (second, 0))
            }
            for key, source in sources.items():
                source.sendall(b"%d/%d" % key)
            for one in (first, second):
                with accepted(waiting[one.migration_id], one) as streams:
                    said = [stream.recv(16) for stream in streams]
                    assert said == [b"%d/%d" % (one.migration_id, n) for n in range(2)]
                    assert all(stream.getblocking() for stream in streams)

    with_agents(work)


def test_strangers_get_nothing_and_keep_nobody_waiting(host: str) -> None:
    one = spec()
    wrong = replace(one, secret=bytes(32))
    unknown = spec(9)

    async def work(agents: Agents) -> None:
        agent = await agents.of("esx01", host)
        with ExitStack() as stack:
            acceptor = registered(one)
            stack.callback(acceptor.close)
            usual = len(list(Path(f"/proc/{agent.pid}/fd").iterdir()))
            replayed = Offering(one, 0).hello
            said = (b"GET / HTTP/1.0\r\n\r\n".ljust(HELLO_BYTES), bytes(HELLO_BYTES * 100),
                    Offering(wrong, 0).hello, Offering(unknown, 0).hello)  # fmt: skip
            strangers = [stack.enter_context(connected()) for _ in range(60)]
            for data in said:
                strangers.append(stack.enter_context(connected()))
                strangers[-1].sendall(data)
                assert turned_away(strangers[-1])
            again = stack.enter_context(connected())
            again.sendall(replayed)
            assert len(again.recv(1 << 16)) < HELLO_BYTES  # a fresh nonce
            again.sendall(bytes(200))
            assert turned_away(again)
            strangers += [stack.enter_context(connected()) for _ in range(60)]
            source = stack.enter_context(offered(one))
            assert len(list(Path(f"/proc/{agent.pid}/fd").iterdir())) <= usual + 70
            with accepted(acceptor, one) as (stream,):
                source.sendall(b"page")
                assert stream.recv(16) == b"page"
            assert any(turned_away(stranger) for stranger in strangers[:1])  # there were too many

    with_agents(work)


def turned_away(sock: socket.socket) -> bool:
    """Whether it is closed without a byte."""
    try:
        return sock.recv(1 << 16) == b""
    except ConnectionResetError:
        return True


def test_nobody_but_root_may_wait_for_a_guest(host: str) -> None:
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.connect(chr(0) + sys.argv[1])\n"
        "s.settimeout(10)\n"
        "try:\n s.send(sys.argv[2].encode()); print(s.recv(99))\n"
        "except OSError as error: print(error.errno)\n"
    )
    one = json.dumps(spec().to_json())

    async def work(agents: Agents) -> None:
        await agents.of("esx01", host)
        done = subprocess.run(
            ["ip", "netns", "exec", WHERE, "python3", "-c", code, agent.NAME[1:], one],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() in {"b''", "32", "104"}  # closed, EPIPE, ECONNRESET

    with_agents(work)


def test_a_migration_is_over_when_its_vmx_is_gone(host: str) -> None:
    one = spec()

    async def work(agents: Agents) -> None:
        await agents.of("esx01", host)
        registered(one).close()
        other = registered(spec(8))  # told after it, so the agent knows of both
        with connected() as sock:
            sock.sendall(Offering(one, 0).hello)
            assert turned_away(sock)
        other.close()

    with_agents(work)


def test_a_source_that_does_not_come_and_an_agent_that_is_killed(host: str) -> None:
    one = spec(timeout_ns=10**8)

    async def work(agents: Agents) -> None:
        with pytest.raises(KernelError, match="agent"):
            registered(one)  # there is none yet
        agent = await agents.of("esx01", host)
        assert await agents.of("esx01", host) is agent
        acceptor = registered(one)
        with pytest.raises(PeerError, match="did not come"):
            acceptor.accept(one)
        os.kill(agent.pid, signal.SIGKILL)
        await agent.ended.wait()
        with pytest.raises(PeerError, match="agent"):
            acceptor.accept(one)
        acceptor.close()
        another = await agents.of("esx01", host)
        assert another.pid != agent.pid
        registered(one).close()

    with_agents(work)


def test_an_address_that_is_not_the_host_s_is_told(host: str) -> None:
    elsewhere = replace(spec(), streams=(StreamSpec(HERE, "192.0.2.1"),))

    async def work(agents: Agents) -> None:
        await agents.of("esx01", host)
        with pytest.raises(KernelError, match=r"192\.0\.2\.1 port 8000"):
            registered(elsewhere)

    with_agents(work)
