"""The specification of a migration crosses the management network, and heartbeats follow."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from netaddr import IPNetwork

from testbed import profiles
from testbed.errors import MigrationError
from testbed.kernel import netns
from testbed.lab.adapter_paths import AdapterPath
from testbed.lab.specification_traffic import Ends, delivered
from testbed.ledger import Ledger
from tests.kernel.agents_at_work import namespace, with_agents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.lab.agents import Agents
    from testbed.profiles import Profile

pytestmark = pytest.mark.root

WHERE = "tb.management.esx01"


@pytest.fixture
def host() -> Iterator[str]:
    with namespace(WHERE) as name:
        yield name


def turned_away(sock: socket.socket) -> bool:
    """Whether it is closed without a byte."""
    try:
        return sock.recv(1 << 16) == b""
    except ConnectionResetError:
        return True


WAY = AdapterPath("vmk0", IPNetwork("127.0.0.1/8"), "vmk0", IPNetwork("127.0.0.2/8"), 1500)


def ends(path: AdapterPath | None = WAY, costs: dict[str, object] | None = None) -> Ends:
    """One agent at both: its namespace has both addresses."""
    return Ends(("esx01", "esx01"), (WHERE, WHERE), path, (costs, costs))


def behaviour() -> Profile:
    """Specifications of 1 MB, and heartbeats of 100 bytes each millisecond."""
    return replace(
        profiles.load("vsphere-7.0"),
        management_bytes=10**6,
        heartbeat_bytes=100,
        heartbeat_interval_ns=10**6,
    )


def test_a_specification_crosses_and_heartbeats_follow(host: str, tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger", cores=4, mhz=2000)
    costs = {"path": str(tmp_path / "ledger"), "cycles_per_byte": 2, "cycles_per_packet": 0}

    async def work(agents: Agents) -> None:
        async with delivered(agents, ends(costs=costs), 7, {"vm": "db01"}, behaviour()) as found:
            assert ledger.used()["management"] > 2 * 2 * 10**6  # both ends, two cycles a byte
            await asyncio.sleep(0.2)
        (notice,) = found.notices
        assert "a specification of" in notice
        answered = re.search(r"heartbeats answered: (\d+)", notice)
        assert answered is not None
        assert 1 <= int(answered[1]) <= 300

    with_agents(work)


def test_nobody_else_is_answered_on_the_management_network(host: str) -> None:
    async def work(agents: Agents) -> None:
        async with delivered(agents, ends(), 7, {"vm": "db01"}, behaviour()):
            with netns.inside(WHERE):
                idle = socket.create_connection(("127.0.0.2", 902), timeout=10)
                liar = socket.create_connection(("127.0.0.2", 902), timeout=10)
            with idle, liar:
                liar.sendall(b"TMGh" + (7).to_bytes(8, "little") + bytes(200))
                assert turned_away(liar)

    with_agents(work)


def connections() -> str:
    said = ["ip", "netns", "exec", WHERE, "ss", "-tnH", "state", "established", "sport", "=", "902"]
    return subprocess.run(said, check=True, capture_output=True, text=True).stdout


def test_a_connection_goes_with_its_migration_though_its_end_never_comes(host: str) -> None:
    """The network is cut meanwhile, so that nothing more is heard of the source."""

    async def work(agents: Agents) -> None:
        async with delivered(agents, ends(), 7, {}, behaviour()):
            assert connections()
            subprocess.run(["ip", "-n", WHERE, "link", "set", "lo", "down"], check=True)
        deadline = time.monotonic() + 10
        while connections():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    with_agents(work)


def test_a_specification_that_does_not_arrive_is_told(host: str) -> None:
    nowhere = replace(WAY, destination_network=IPNetwork("192.0.2.1/24"))

    async def work(agents: Agents) -> None:
        told = r"management network: [^\[]*; 'testbed vmkping esx01 192.0.2.1 -I vmk0'"
        with pytest.raises(MigrationError, match=told):
            async with delivered(agents, ends(nowhere), 7, {}, behaviour()):
                raise AssertionError
        async with delivered(agents, ends(None), 7, {}, behaviour()) as found:
            pass
        assert "no vmks with the management service" in found.notices[0]

    with_agents(work)
