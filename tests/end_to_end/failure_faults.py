"""Phases of a migration, waited for in a lab, and the faults that strike in them."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, prlimit
from typing import TYPE_CHECKING

from testbed.guest import layout
from testbed.guest.specification import GuestSpec
from testbed.kernel import netns
from testbed.migration.handshake import Offering
from testbed.migration.specification import PORT, MigrationSpec
from tests.end_to_end.failure_lane import ADDRESSES, wait_until
from tests.end_to_end.failure_scene import connections, process
from tests.end_to_end.replayed import memory_of
from tests.end_to_end.wires import MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.end_to_end.failure_lane import Lane, Migration

WIRE = ("tor-a", "tor-b")
FAR_NS, UNHEARD_NS, TOO_FAR_NS = 120 * MS, 250 * MS, 2500 * MS
"""One way: a handshake can be seen, an answer is late, and beyond the timeout of such a cell."""
SLOW_BPS = 50_000_000
"""Pre-copy takes 1.5 s, the last pages half a second."""
MEMORY_BYTES = 8 << 20


# ---------------------------------------------------------------- phases


@contextmanager
def preparation(lane: Lane, begin: Callable[[], Migration]) -> Iterator[Migration]:
    """The destination's VMX is there, and waits for its host's agent, which stands still."""
    to = lane.other(lane.host())
    agent = process(lane.name, to, f"agent-{to}")
    assert agent, f"{to} has no agent"
    os.kill(agent, signal.SIGSTOP)
    try:
        move = begin()
        wait_until(lambda: process(lane.name, to, "vmx-db01") > 0, "the destination's VMX is there")
        yield move
    finally:
        with suppress(ProcessLookupError):
            os.kill(agent, signal.SIGCONT)


@contextmanager
def connect(lane: Lane, begin: Callable[[], Migration]) -> Iterator[Migration]:
    """The source has a socket; over this link three round trips take 0.7 s."""
    lane.net.link(*WIRE, delay_ns=FAR_NS)
    move = begin()

    def connecting() -> bool:
        with netns.inside(f"tb.{lane.name}.{move.source}"):
            return bool(connections())

    wait_until(connecting, "the source connects")
    yield move


@contextmanager
def trace(lane: Lane, begin: Callable[[], Migration]) -> Iterator[Migration]:
    """All vCPUs are to stand still while tracing is installed, and one does not answer."""
    found = lane.vm()
    memory = memory_of(found["vmx_pid"], MEMORY_BYTES)
    late = found["counters"]["vcpu_pids"][1]

    def beat() -> bytes:
        with Path(memory).open("rb") as file:
            return os.pread(file.fileno(), 8, layout.RECORD_BYTES + 8 * layout.STEPS)

    def still() -> bool:
        before = beat()
        time.sleep(0.05)
        return beat() == before

    os.kill(late, signal.SIGSTOP)
    try:
        move = begin()
        wait_until(still, "the other vCPU stands still")
        yield move
    finally:
        with suppress(ProcessLookupError):
            os.kill(late, signal.SIGCONT)


@contextmanager
def pre_copy(lane: Lane, begin: Callable[[], Migration]) -> Iterator[Migration]:
    """The source says that it copies."""
    lane.net.link(*WIRE, rate_bps=SLOW_BPS)
    move = begin()
    wait_until(lambda: "pre-copy" in move.phases, "pages are copied")
    yield move


@contextmanager
def switchover(lane: Lane, begin: Callable[[], Migration]) -> Iterator[Migration]:
    """The guest's port at the source is cut, and the last pages are sent."""
    lane.net.link(*WIRE, rate_bps=SLOW_BPS)
    with lane.port(lane.host()) as port:
        move = begin()
        wait_until(lambda: not port.is_open(), "the guest is stunned")
        yield move


@contextmanager
def resume(lane: Lane, begin: Callable[[], Migration]) -> Iterator[Migration]:
    """The guest's port at the destination is open, and the source will not have heard of it."""
    with switchover(lane, begin) as move, lane.port(move.to) as port:
        lane.net.link(*WIRE, delay_ns=UNHEARD_NS)
        wait_until(port.is_open, "the guest is resumed")
        yield move


@contextmanager
def page_in(lane: Lane, begin: Callable[[], Migration]) -> Iterator[Migration]:
    """The source says that it sends what the guest, which runs at the destination, lacks."""
    lane.net.link(*WIRE, rate_bps=SLOW_BPS)
    move = begin()
    wait_until(lambda: "page-in" in move.phases, "missing pages are sent")
    yield move


@contextmanager
def after(lane: Lane, begin: Callable[[], Migration]) -> Iterator[Migration]:
    """The result has been told."""
    move = begin()
    move.ended()
    yield move


PHASES = {
    "preparation": preparation,
    "connect": connect,
    "trace": trace,
    "pre-copy": pre_copy,
    "switchover": switchover,
    "resume": resume,
    "page-in": page_in,
    "after": after,
}


# ---------------------------------------------------------------- faults


class Faults:
    """What can happen to a migration from one host of a lane to the other. A context manager.

    At its end a link that is to come up again has, and strangers have been turned away.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.source = lane.host()
        self.destination = lane.other(self.source)
        self._agent = process(lane.name, self.destination, f"agent-{self.destination}")
        self._threads: list[threading.Thread] = []
        self._said: list[str] = []

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()
        assert not self._said, self._said

    def strike(self, fault: str, move: Migration | None) -> None:
        """Let it happen; returns when it has."""
        link = self._lane.net.link
        match fault:
            case "link down for 1 s":
                link(*WIRE, up=False)
                self._start(lambda: (time.sleep(1), link(*WIRE, up=True)))
            case "link down for good":
                link(*WIRE, up=False)
            case "delay over the timeout" | "round trip over the limit":
                link(*WIRE, delay_ns=TOO_FAR_NS if "timeout" in fault else UNHEARD_NS)
            case "destination's VMX killed":
                self._kill(self.destination, "vmx-db01")
            case "source's VMX killed":
                self._kill(self.source, "vmx-db01")
            case "destination's agent killed":
                self._kill(self.destination, f"agent-{self.destination}", self._agent)
            case "strangers on port 8000":
                self._start(self._be_strangers)
            case "cancelled":
                assert move is not None
                move.cancel()
            case "source's host off":
                self._host_off(self.source)
            case _:
                raise ValueError(fault)

    def _start(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:  # told at the end
                self._said.append(repr(error))

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _kill(self, host: str, command: str, known: int = 0) -> None:
        pid = known or process(self._lane.name, host, command)
        assert pid, f"no {command} at {host}"
        os.kill(pid, signal.SIGKILL)

    def _host_off(self, host: str) -> None:
        """Every process of a host ends at once, and its NIC has no link."""
        self._lane.net.link(f"{host}/vmnic0", "tor-a" if host == "esx01" else "tor-b", up=False)
        inside = netns.identity(f"tb.{self._lane.name}.{host}")
        for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
            with suppress(OSError):
                if Path(f"/proc/{pid}/ns/net").stat().st_ino == inside:
                    os.kill(int(pid), signal.SIGKILL)

    @contextmanager
    def too_full(self) -> Iterator[None]:
        """The kernel gives none of the lab's new VMXes as much memory as the guest has."""
        pid = self._preloaded()
        prlimit(pid, RLIMIT_FSIZE, (MEMORY_BYTES // 2, RLIM_INFINITY))
        try:
            yield
        finally:
            prlimit(pid, RLIMIT_FSIZE, (RLIM_INFINITY, RLIM_INFINITY))

    def _preloaded(self) -> int:
        """What VMXes are forked from: the supervisor's child that has no namespace of its own."""
        supervisor = self._lane.net.status()["supervisor_pid"]
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        own = Path(f"/proc/{supervisor}/ns/net").stat().st_ino
        (found,) = [pid for pid in children if Path(f"/proc/{pid}/ns/net").stat().st_ino == own]
        return int(found)

    def _be_strangers(self) -> None:
        """Garbage, and who knows the migration but not its secret: neither gets anything."""
        log = self._lane.net.directory.path / "logs" / self.source / "vmkernel.log"
        told = re.findall(r"\b\d{16}\b", log.read_text()) or ["1"]
        here, there = ADDRESSES[self.source], ADDRESSES[self.destination]
        guest = GuestSpec("db01", MEMORY_BYTES, 2)
        false = MigrationSpec(int(told[-1]), secrets.token_bytes(32), guest, here, there)
        assert self._heard(os.urandom(4096), None) == b""
        offering = Offering(false, 0)
        heard = self._heard(offering.hello, offering)
        assert not offering.done
        assert len(heard) < 100  # a nonce at most

    def _heard(self, says: bytes, offering: Offering | None) -> bytes:
        """All that a stranger gets who says this."""
        heard = b""
        with netns.inside(f"tb.{self._lane.name}.{self.source}"):
            sock = socket.create_connection((ADDRESSES[self.destination], PORT), 10)
        with sock, suppress(ConnectionError):
            sock.sendall(says)
            while data := sock.recv(4096):
                heard += data
                if offering is not None and offering.wants:
                    sock.sendall(offering.feed(data))
        return heard
