"""Failover: follows the links of uplinks and moves the ports of a team when one changes."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from testbed.errors import KernelError
from testbed.kernel.chain_pins import Pins
from testbed.kernel.port import ANNOUNCEMENT_GAP_NS, ANNOUNCEMENTS, Announcer
from testbed.kernel.watch import LinkWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from testbed.plan.network import Network
    from testbed.plan.ports import LocalPort

MOST_EVENTS = 100


@dataclass(frozen=True, slots=True)
class TeamEvent:
    """An uplink's link went down or came up, and what was done about it.

    `at_ns` is CLOCK_MONOTONIC's when the kernel's word was read, `took_ns` until the last port
    was moved and announced.
    """

    at_ns: int
    host: str
    uplink: str
    up: bool
    moved: tuple[str, ...]
    took_ns: int


class Teams:
    """The ports of all virtual switches with uplinks, and what each is pinned to.

    A port is moved by writing the number of its new uplink into a cell of its program's map;
    then it is announced from its own adapter, so that the physical switches learn the new way.
    """

    def __init__(self) -> None:
        self.events: list[TeamEvent] = []
        self._hosts: dict[str, _Host] = {}
        self._announcing: set[asyncio.Task[None]] = set()

    def follow(self, *networks: Network) -> None:
        """Follow the ports of these from now on: at the start, and whenever ports come or go.

        Raises:
            KernelError: a namespace or a port is not there.
        """
        wanted: dict[str, list[LocalPort]] = {}
        for network in networks:
            for (where, _), ports in network.ports.items():
                # With one uplink there is nothing to choose.
                wanted.setdefault(where, []).extend(p for p in ports if len(p.uplinks) > 1)
        for where in [*self._hosts]:
            if not wanted.get(where):
                self._hosts.pop(where).close()
        for where, ports in wanted.items():
            if ports and where not in self._hosts:
                self._hosts[where] = _Host(where, self._changed)
            if ports:
                self._hosts[where].take(ports)

    def pinned(self) -> dict[tuple[str, str], str | None]:
        """The uplink of each port that has a choice, by namespace and port."""
        return {
            (where, dev): uplink
            for where, host in self._hosts.items()
            for dev, uplink in host.pinned.items()
        }

    def close(self) -> None:
        """Stop following."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
        for task in self._announcing:
            task.cancel()

    def _changed(self, host: _Host, uplink: str, up: bool) -> None:
        at_ns = time.monotonic_ns()
        moved = host.rebalance()
        announced = [port for port in moved if port.group.teaming.notify]
        if announced:
            self._announce(announced)
        took_ns = time.monotonic_ns() - at_ns
        names = tuple(port.end.name for port in moved)
        self.events.append(TeamEvent(at_ns, host.netns, uplink, up, names, took_ns))
        del self.events[:-MOST_EVENTS]

    def _announce(self, ports: Sequence[LocalPort]) -> None:
        """Say at once where the addresses are, and again over 100 ms: the first may be lost."""
        with ExitStack() as undo:
            announcers = [undo.enter_context(Announcer(*port.adapter, port.mac)) for port in ports]
            for announcer in announcers:
                announcer.send()
            task = asyncio.get_running_loop().create_task(_repeat(announcers, undo.pop_all()))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)


async def _repeat(announcers: Sequence[Announcer], closing: ExitStack) -> None:
    with closing:
        for _ in range(ANNOUNCEMENTS - 1):
            await asyncio.sleep(ANNOUNCEMENT_GAP_NS / 1e9)
            for announcer in announcers:
                try:
                    announcer.send()
                except KernelError:
                    return  # the adapter went meanwhile: nothing is left to be announced


_Changed: TypeAlias = "Callable[[_Host, str, bool], None]"


class _Host:
    """One host's uplinks and ports."""

    def __init__(self, netns: str, changed: _Changed) -> None:
        self.netns = netns
        self.pinned: dict[str, str | None] = {}
        self._ports: list[LocalPort] = []
        self._changed = changed
        self._watch = LinkWatch(netns)
        self._pins = Pins(netns)
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._read)

    def take(self, ports: Sequence[LocalPort]) -> None:
        """These are the ports now; each is pinned as the links stand."""
        self._ports = list({port.end.name: port for port in ports}.values())
        self._pins.hold([port.end.name for port in ports])
        names = {port.end.name for port in ports}
        self.pinned = {dev: uplink for dev, uplink in self.pinned.items() if dev in names}
        self.rebalance()

    def alive(self) -> Collection[str]:
        """The uplinks with a link."""
        return {
            uplink
            for uplink in {u for port in self._ports for u in port.uplinks}
            if self._watch.has_carrier(uplink)
        }

    def rebalance(self) -> list[LocalPort]:
        """Pin each port to the uplink that it should have now; those that moved."""
        alive, moved = self.alive(), []
        for port in self._ports:
            dev = port.end.name
            number = port.uplink(alive, self.pinned.get(dev))
            uplink = port.uplinks[number - 1] if number else None
            if dev not in self.pinned or self.pinned[dev] != uplink:
                self._pins.set(dev, number)
                if dev in self.pinned and uplink is not None:
                    moved.append(port)
                self.pinned[dev] = uplink
        return moved

    def _read(self) -> None:
        uplinks = {uplink for port in self._ports for uplink in port.uplinks}
        for name, up in self._watch.read():
            if name in uplinks:
                self._changed(self, name, up)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watch.fileno())
        self._watch.close()
        self._pins.close()
