"""Host agents for a test, and the namespace of a host."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from testbed.lab.agents import Agents

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A namespace that stands for a host."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def with_agents(work: Callable[[Agents], Awaitable[None]]) -> None:
    """Do something where agents can be had; `work` may block, they are other processes."""

    async def main() -> None:
        agents = Agents()
        try:
            await work(agents)
        finally:
            await agents.end_all()

    asyncio.run(main())
