"""The agents of a lab's hosts, as its supervisor sees them: each starts when it is first needed."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial

from testbed.kernel import netns
from testbed.lab import agent
from testbed.lab.child import Child, checked

START_DEADLINE_S = 30.0


class Agents:
    """One process for each host that has had to do with a migration."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._running: dict[str, tuple[int, Child]] = {}
        self._starting = asyncio.Lock()

    async def of(self, host: str, host_netns: str) -> Child:
        """A host's agent, started if there is none, or none any more.

        Raises:
            LabError: it did not start.
            KernelError: there is no such namespace.
        """
        async with self._starting:
            here = netns.identity(host_netns)
            identity, child = self._running.get(host, (0, None))
            if child is not None and child.trouble is None and identity == here:
                return child
            if child is not None:  # it was killed, or its host was made anew
                del self._running[host]
                await child.end()
            main = partial(agent.run, host=host, host_netns=host_netns, key=self._key)
            child = await Child.spawn(main)
            try:
                checked(await child.receive(START_DEADLINE_S))
            except BaseException:
                await child.end()
                raise
            self._running[host] = (here, child)
            return child

    async def end_all(self) -> None:
        """End every one."""
        while self._running:
            _, (_, child) = self._running.popitem()
            await child.end()
