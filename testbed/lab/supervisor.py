"""The supervisor: one process for each lab, which owns its VMs and answers its commands."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError, LabError, TestbedError
from testbed.lab import vm_commands
from testbed.lab.change import apply
from testbed.lab.client import error_message
from testbed.lab.directory import LabDirectory
from testbed.lab.estate import Estate
from testbed.lab.felt import feel
from testbed.lab.identity import ProcessIdentity
from testbed.lab.journal import Journal
from testbed.lab.lines import LARGEST_LINE_BYTES, Message, decode, encode
from testbed.lab.link import change_link, in_place
from testbed.lab.link_change import LinkChange
from testbed.lab.maintenance import evacuate, leave
from testbed.lab.preloaded import Preloaded
from testbed.lab.vmotion import migrate, migrate_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager


class Supervisor:
    """Answers commands on the control socket until SIGTERM."""

    def __init__(self, estate: Estate) -> None:
        self.estate = estate
        self._stopping = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()

    async def serve(self, ready: Callable[[], None]) -> None:
        """Listen, say so through `ready`, and serve until SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        path = self.estate.directory.socket
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(
            self._accept, path=str(path), limit=LARGEST_LINE_BYTES
        )
        path.chmod(0o600)
        async with server:
            ready()
            await self._stopping.wait()
            # Before the server is closed: it would wait for the connections.
            for task in self._clients:
                task.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
        await self.estate.end_all()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._client(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection is one command, which learns when its client has gone away."""

        def emit(message: Message) -> None:
            writer.write(encode(message))

        gone = asyncio.Event()

        async def watch() -> None:
            with suppress(ConnectionError):
                await reader.read(1)  # a client says one thing; what follows is its end
            gone.set()

        try:
            request = decode(await reader.readline())
            watching = asyncio.create_task(watch())
            try:
                emit(await self._answer(request, emit, gone))
            finally:
                watching.cancel()
            await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass  # nobody is left to be told
        finally:
            writer.close()

    async def _answer(
        self, request: Message, emit: Callable[[Message], None], gone: asyncio.Event
    ) -> Message:
        estate = self.estate
        commands: dict[str, Callable[[], Awaitable[Message]]] = {
            "status": estate.status,
            "make": lambda: estate.make(request["steps"]),
            "commit": estate.commit,
            "apply": lambda: self._alone(apply(estate, request), emit),
            "link": lambda: self._link(request, emit),
            "wires": estate.wire_reading,
            "vm": lambda: vm_commands.vm_status(estate, request),
            "workload": lambda: self._beside(vm_commands.switch(estate, request), emit),
            "throttle": lambda: self._beside(vm_commands.throttle(estate, request), emit),
            "record": lambda: vm_commands.record(estate, request, gone),
            "migrate": lambda: migrate(estate, request, emit, gone),
            "migrate-all": lambda: migrate_all(estate, request, emit, gone),
            "evacuate": lambda: evacuate(estate, request, emit, gone),
            "leave-maintenance": lambda: self._alone(leave(estate, request), emit),
            "feel": lambda: feel(estate, request, gone),
        }
        try:
            command = commands.get(request.get("command", ""))
            if command is None:
                raise InputError(f"the supervisor knows no command {request.get('command')!r}")
            return {"result": await command()}
        except TestbedError as error:
            return error_message(error)
        except Exception as error:  # a fault in one command must not end the lab
            traceback.print_exc()
            return error_message(LabError(f"fault in the supervisor: {error!r}; see its log"))

    async def _link(self, request: Message, emit: Callable[[Message], None]) -> Message:
        """Links go up and down, and change in place, whatever else is going on."""
        change = LinkChange.from_json(request["change"])
        if in_place(self.estate, change):
            return await change_link(self.estate, change, request["for_ns"], alone=False)
        changing = change_link(self.estate, change, request["for_ns"], alone=True)
        return await self._alone(changing, emit)

    async def _alone(
        self, change: Coroutine[Any, Any, Message], emit: Callable[[Message], None]
    ) -> Message:
        """A change of the lab that waits for all others, and others for it."""
        return await self._in_turn(change, self.estate.turns.alone(), emit, alone=True)

    async def _beside(
        self, change: Coroutine[Any, Any, Message], emit: Callable[[Message], None]
    ) -> Message:
        """One of a VM, which disturbs no migration of another."""
        return await self._in_turn(change, self.estate.turns.beside(), emit, alone=False)

    async def _in_turn(
        self,
        change: Coroutine[Any, Any, Message],
        turn: AbstractAsyncContextManager[None],
        emit: Callable[[Message], None],
        *,
        alone: bool,
    ) -> Message:
        if self.estate.turns.must_wait(alone=alone):
            emit({"event": "waiting"})
        try:
            async with turn:
                return await change
        finally:
            change.close()  # if it was cancelled before it began


def main(arguments: list[str]) -> None:
    """Run as `python -m testbed.lab.supervisor LAB READY_FD LOCK_FD`.

    The lab's lock is inherited and held until the supervisor is ready, so that a `down` which
    comes while `up` is killed here finds either no supervisor or a whole one.
    """
    if os.fork():
        os._exit(0)  # whoever started us is not our parent: it need not wait for our end
    name, ready_fd, lock_fd = arguments[0], int(arguments[1]), int(arguments[2])
    directory = LabDirectory(name)
    identity = ProcessIdentity.of(os.getpid())
    if identity is None:
        raise LabError("read /proc/self/stat: is /proc mounted?")
    identity.write(directory.identity)

    def ready() -> None:
        os.write(ready_fd, json.dumps({"ready": True}).encode() + b"\n")
        os.close(ready_fd)
        os.close(lock_fd)

    preloaded = Preloaded()
    estate = Estate(directory, Journal.read(directory.journal), preloaded)
    asyncio.run(Supervisor(estate).serve(ready))


if __name__ == "__main__":
    main(sys.argv[1:])
