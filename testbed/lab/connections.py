"""Connections to a host's agent: of those that have proved nothing there are only so many."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine


class Connections:
    """Takes connections in and has each of them heard in a task of its own.

    Args:
        most_strangers: how many may be proving themselves now; of more the oldest of the address
            that most come from is turned away.
    """

    def __init__(self, most_strangers: Callable[[], int]) -> None:
        self._most = most_strangers
        self._strangers: dict[asyncio.Task[None], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do something beside all else; a task that nobody holds might be collected."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def receive(
        self,
        listener: socket.socket,
        hear: Callable[[socket.socket], Coroutine[None, None, None]],
    ) -> None:
        """Take in whatever comes to a listening socket, which doesn't block."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listener)
            except OSError:  # it went away again
                await asyncio.sleep(0)
                continue
            task = self.keep(hear(sock))
            self._strangers[task] = str(peer[0])
            task.add_done_callback(self._know)
            if len(self._strangers) > self._most():
                self._turn_one_away()

    def know(self) -> None:
        """The connection that is being heard is no stranger's."""
        task = asyncio.current_task()
        if task is not None:
            self._know(task)

    def _know(self, task: asyncio.Task[None]) -> None:
        self._strangers.pop(task, None)

    def _turn_one_away(self) -> None:
        ((most, _),) = Counter(self._strangers.values()).most_common(1)
        victim = next(task for task, address in self._strangers.items() if address == most)
        self._know(victim)
        victim.cancel()
