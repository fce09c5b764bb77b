"""A child process of the supervisor: spawned, spoken to, proved to have ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from testbed import prctl
from testbed.errors import LabError, MigrationError
from testbed.lab.lines import LARGEST_LINE_BYTES, Message, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

END_DEADLINE_S = 5.0


class Child:
    """One child process. Whoever holds `conversation` speaks with it; the rest wait.

    `trouble` is set when it reported a fault of its own accord (a vCPU died), `ended` when
    it is gone and reaped.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.trouble: str | None = None
        self.ended = asyncio.Event()
        self.conversation = asyncio.Lock()
        self.exit_status: int | None = None
        self._pidfd = pidfd
        self._asked = 0
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        asyncio.get_running_loop().add_reader(pidfd, self._reap)

    @classmethod
    async def spawn(cls, main: Callable[[socket.socket], None]) -> Child:
        """Fork a process that runs `main` with its end of the control connection.

        The supervisor has one thread, so forking it is safe; what it has imported, the child
        needn't. It holds no guest's memory, so the child gets none.
        """
        supervisor = os.getpid()

        def fork(control: socket.socket) -> int:
            pid = os.fork()
            if pid == 0:
                become_child(control, main, supervisor)
            return pid

        return await cls.start(fork)

    @classmethod
    async def start(cls, fork: Callable[[socket.socket], int]) -> Child:
        """The child process that `fork` makes, given the other end of the control connection."""
        ours, theirs = socket.socketpair()
        try:
            pid = fork(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = cls(pid, os.pidfd_open(pid))
        reader, channel._writer = await asyncio.open_connection(sock=ours, limit=LARGEST_LINE_BYTES)
        channel._reading = asyncio.create_task(channel._read(reader))
        return channel

    def ask(self, message: Message) -> None:
        """Send a command; what is still to come of an earlier one will be passed over."""
        self._asked += 1
        self.tell({**message, "ask": self._asked})

    def tell(self, message: Message) -> None:
        """Say something that belongs to the command under way."""
        if self._writer is not None:
            self._writer.write(encode(message))

    async def receive(self, timeout_s: float | None = None) -> Message:
        """Its next message that answers the last command.

        Raises:
            LabError: it ended, or said nothing in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while (message := await self._messages.get()) is not None:
                    if message.get("ask", self._asked) == self._asked:
                        return message
        except TimeoutError:
            raise LabError(f"process {self.pid} said nothing for {timeout_s:g} s") from None
        self._messages.put_nowait(None)  # for whoever asks next
        raise LabError(f"process {self.pid} ended")

    async def call(self, message: Message, timeout_s: float | None = None) -> Message:
        """Send a command and return its answer.

        Raises:
            LabError: it ended, said nothing in time, or answered with an error.
        """
        async with self.conversation:
            self.ask(message)
            answer = await self.receive(timeout_s)
        return checked(answer)

    async def end(self) -> None:
        """End it and its vCPUs, and see it gone.

        Raises:
            LabError: it is still there after SIGKILL.
        """
        if not self.ended.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            try:
                await asyncio.wait_for(self.ended.wait(), END_DEADLINE_S)
            except TimeoutError:
                raise LabError(f"process {self.pid} survives SIGKILL") from None
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message = decode(line)
                if message.get("event") == "trouble":
                    self.trouble = message["message"]
                else:
                    self._messages.put_nowait(message)
        except (ConnectionError, ValueError):
            pass  # it ended in the middle of a word
        self._messages.put_nowait(None)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        self.exit_status = status.si_status if status else None
        self.trouble = self.trouble or f"its process ended (status {self.exit_status})"
        self.ended.set()


def checked(answer: Message) -> Message:
    """The answer, if it isn't an error.

    Raises:
        LabError, MigrationError: what the other side said.
    """
    error: dict[str, Any] | None = answer.get("error")
    if error is not None:
        kind = MigrationError if error["type"].startswith("Migration") else LabError
        raise kind(error["message"])
    return answer


def become_child(
    control: socket.socket, main: Callable[[socket.socket], None], supervisor: int
) -> NoReturn:
    """Run `main` in a process just forked and never return: nothing of its parent's runs on."""
    code = 1
    try:
        prctl.die_with_parent(signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)  # it died before the kernel could be told
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        keep = control.fileno()
        os.closerange(3, keep)
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        main(control)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
