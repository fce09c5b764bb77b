"""The NIC process of a VM: as long as the VM is there, whichever host it runs at."""

from __future__ import annotations

import gc
import json
import os
import select
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from testbed import prctl
from testbed.errors import LabError, TestbedError
from testbed.guest.nic.attachment import Attachment
from testbed.guest.nic.dials import NEVER_NS
from testbed.guest.nic.echoes import EchoSockets
from testbed.guest.nic.network import LEAST_ROOM, Network
from testbed.guest.nic.records import DIALLED, NO_EPOCH
from testbed.guest.run_block import RUNNING, STOPPED
from testbed.guest.workloads import Bulk, Ping, from_json, of_network

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_MOVES_AT_ONCE = 16  # before commands are looked for


def run(
    control: socket.socket,
    *,
    vm: str,
    read_sysctl: Callable[[str, str], str],
    write_sysctl: Callable[[str, str, str], None],
) -> None:
    """Be the NIC of a VM until `control` is closed: for a process of its own, in its namespace.

    Each command is a JSON line with "ask"; the answer has it too, or is
    `{"error": {"type", "message"}, "ask"}`. A guest that breaks its rings is told of as
    `{"event": "trouble", "message"}`, and served no more.

    `{"command": "services", "workloads": [...]}` (`workloads.to_json`, those of other kinds are
    passed over): what is listened to from now on; open connections stay. Answers
    `{"ports": [...], "ping": bool}`. A connection to the peer of each `Bulk` is opened, and opened
    again when it is lost.

    `{"command": "attach", "pid", "line", "vcpus"}`: a guest that is or will be run by the VMX
    `pid`; `line` are the numbers of its descriptors (`Guest.nic_line`), and `account` is there if
    its host's CPU is accounted for (`account.Account`). Several may be attached; the one whose
    line of the run block says run is served. Answers `{"state": RUNNING or STOPPED}`.

    `{"command": "detach", "pid"}`: let go of it. It also happens when that process ends.

    Args:
        control: to and from whoever started it.
        vm: the VM's name.
        read_sysctl: `kernel.sysctl.read` (name, where).
        write_sysctl: `kernel.sysctl.write` (name, value, where), which reads back.
    """
    prctl.set_name(f"nic-{vm}")
    prctl.wake_exactly()
    gc.disable()  # nothing here makes cycles
    network = Network()
    open_echoes = partial(
        EchoSockets,
        lambda name: read_sysctl(name, vm),
        lambda name, value: write_sysctl(name, value, vm),
    )
    try:
        _Nic(control, network, open_echoes).serve()
    finally:
        network.close()


class _Nic:
    """The loop, and its commands."""

    def __init__(
        self, control: socket.socket, network: Network, open_echoes: Callable[[], EchoSockets]
    ) -> None:
        self._control = control
        self._words = b""
        self._network = network
        self._open_echoes = open_echoes
        self._attached: dict[int, Attachment] = {}
        self._active: Attachment | None = None
        self._left = (NO_EPOCH, 0, 0)
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN)
        self._epoll.register(network, 0)
        self._watching = False

    def serve(self) -> None:
        """Move bytes and answer until the other side closes the connection."""
        busy = False
        while True:
            self._watch_network()
            ready = {fd for fd, _ in self._epoll.poll(0 if busy else self._rest_s())}
            self._heed(ready)
            if self._control.fileno() in ready and not self._answer():
                return
            self._change_over()
            busy = self._active is not None and self._move(self._active)

    def _rest_s(self) -> float | None:
        """How long to wait if nothing happens, in seconds."""
        one = self._active
        if one is None or one.pages.epoch[0] == NO_EPOCH:
            return None
        due_ns = one.account.wait_until_ns or self._network.dials.due_ns()
        return max(0, due_ns - time.monotonic_ns()) / 1e9 if due_ns < NEVER_NS else None

    def _heed(self, ready: set[int]) -> None:
        """Take in kicks; let go of a guest whose VMX has ended."""
        for one in tuple(self._attached.values()):
            if one.kick_fd in ready:
                os.eventfd_read(one.kick_fd)
            if one.pidfd in ready:
                self._detach(one)

    def _watch_network(self) -> None:
        """Sockets wake it only while a guest runs that has room for what they bring."""
        one = self._active
        watching = (
            one is not None
            and one.pages.epoch[0] != NO_EPOCH
            and one.pages.received.room() >= LEAST_ROOM
            and not one.account.wait_until_ns
        )
        if watching != self._watching:
            self._watching = watching
            self._epoll.modify(self._network, select.EPOLLIN if watching else 0)

    def _change_over(self) -> None:
        """Stop and run as the lines say."""
        active = self._active
        if active is not None and not active.told_to_run:
            self._left = _where(active)
            self._active = None
            active.answer(STOPPED)
        if self._active is None:
            for one in self._attached.values():
                if one.told_to_run:
                    self._active = one
                    if _where(one) != self._left:
                        self._begin_anew(one)
                    one.answer(RUNNING)
                    return

    def _begin_anew(self, one: Attachment) -> None:
        """Its memory is not what the connections were to: another boot, or other workloads."""
        self._network.drop_connections()
        self._left = _where(one)

    def _move(self, one: Attachment) -> bool:
        """Move bytes for a while; whether there were still some."""
        pages, network = one.pages, self._network

        def running() -> bool:
            return one.told_to_run

        if pages.epoch[0] == NO_EPOCH:
            return False
        if pages.epoch[0] != self._left[0]:
            self._begin_anew(one)
        try:
            for _ in range(_MOVES_AT_ONCE):
                if not running():
                    break
                if not one.account.settle(network.take_traffic()):
                    return False
                moved = network.carry_out(pages.to_send, running)
                moved |= network.carry_in(pages.received, running)
                if not moved:
                    return False
                os.eventfd_write(one.wake_fd, 1)
        except ValueError as error:
            self._send({"event": "trouble", "message": str(error)})
            self._detach(one)
            return False
        return True  # or it is to stop

    def _detach(self, one: Attachment) -> None:
        if self._active is one:
            self._left = _where(one)
            self._active = None
        one.answer(STOPPED)
        for fd in (one.kick_fd, one.pidfd):
            self._epoll.unregister(fd)
        del self._attached[one.pid]
        one.close()

    # -- commands ---------------------------------------------------------------------------

    def _send(self, message: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _answer(self) -> bool:
        """Read what has come on the control connection; False once it is closed."""
        part = self._control.recv(1 << 16)
        *lines, self._words = (self._words + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            try:
                answer = self._carry_out(message)
            except (TestbedError, KeyError, TypeError, ValueError, OSError) as error:
                answer = {"error": {"type": type(error).__name__, "message": str(error)}}
            self._send({**answer, "ask": message.get("ask")})
        return bool(part)

    def _carry_out(self, message: dict[str, Any]) -> dict[str, Any]:
        match message["command"]:
            case "services":
                return self._services(message)
            case "attach":
                return self._attach(message)
            case "detach":
                one = self._attached.get(message["pid"])
                if one is None:
                    raise LabError(f"the NIC is not attached to process {message['pid']}")
                self._detach(one)
                return {"detached": message["pid"]}
            case unknown:
                raise ValueError(f"a NIC knows no command {unknown!r}")

    def _services(self, message: dict[str, Any]) -> dict[str, Any]:
        workloads = of_network(tuple(from_json(one) for one in message["workloads"]))
        ping = any(isinstance(one, Ping) for one in workloads)
        ports = [one.port for one in workloads if not isinstance(one, Ping | Bulk)]
        peers = {
            DIALLED + number: (one.address, one.port)
            for number, one in enumerate(workloads)
            if isinstance(one, Bulk)
        }
        if len(set(ports)) < len(ports):
            raise LabError(f"workloads of one VM share a TCP port, of {sorted(ports)}")
        try:
            self._network.listeners.listen(ports)
            self._network.dial(peers)
            if ping != self._network.answers_echoes:
                self._network.answer_echoes(self._open_echoes() if ping else None)
        except OSError as error:
            raise LabError(f"open the sockets of the VM's workloads: {error}") from error
        return {"ports": self._network.listeners.ports, "ping": self._network.answers_echoes}

    def _attach(self, message: dict[str, Any]) -> dict[str, Any]:
        pid = message["pid"]
        if pid in self._attached:
            raise LabError(f"the NIC is attached to process {pid} already")
        one = Attachment(pid, message["line"], message["vcpus"])
        self._attached[pid] = one
        for fd in (one.kick_fd, one.pidfd):
            self._epoll.register(fd, select.EPOLLIN)
        one.answer(STOPPED)
        self._change_over()
        return {"state": RUNNING if self._active is one else STOPPED}


def _where(one: Attachment) -> tuple[int, int, int]:
    """How far the NIC is in this guest's memory: the same there as where it left, if copied."""
    pages = one.pages
    return pages.epoch[0], pages.received.put_position, pages.to_send.taken_position
