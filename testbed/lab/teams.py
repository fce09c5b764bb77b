"""Failover: follows the links of uplinks and moves the ports of a team when one changes."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.kernel.iochain.pins import Pins
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
                wanted.setdefault(where, []).extend(ports)
        for where in [*self._hosts]:
            # A namespace that was made anew is another one, whatever its name.
            if where not in wanted or not self._hosts[where].is_there():
                self._hosts.pop(where).close()
        for where, found in wanted.items():
            host = self._hosts.get(where)
            if host is not None:
                host.settle([port for port in found if len(port.uplinks) == 1])
            # With one uplink there is nothing to choose.
            several = [port for port in found if len(port.uplinks) > 1]
            if host is not None and not several:
                self._hosts.pop(where).close()
            elif several:
                if host is None:
                    host = self._hosts[where] = _Host(where, self._changed)
                self._announce(host.take(several))

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
        self._announce(moved)
        took_ns = time.monotonic_ns() - at_ns
        names = tuple(port.end.name for port in moved)
        self.events.append(TeamEvent(at_ns, host.where, uplink, up, names, took_ns))
        del self.events[:-MOST_EVENTS]

    def _announce(self, moved: Sequence[LocalPort]) -> None:
        """Say at once where the addresses are, and again over 100 ms: the first may be lost."""
        with ExitStack() as undo:
            announcers = []
            for port in moved:
                if port.group.teaming.notify:
                    with suppress(KernelError):  # its adapter is going: nothing is to be announced
                        announcers.append(undo.enter_context(Announcer(*port.adapter, port.mac)))
            if not announcers:
                return
            _send(announcers)
            task = asyncio.get_running_loop().create_task(_repeat(announcers, undo.pop_all()))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)


async def _repeat(announcers: Sequence[Announcer], closing: ExitStack) -> None:
    with closing:
        for _ in range(ANNOUNCEMENTS - 1):
            await asyncio.sleep(ANNOUNCEMENT_GAP_NS / 1e9)
            _send(announcers)


def _send(announcers: Sequence[Announcer]) -> None:
    for announcer in announcers:
        with suppress(KernelError):  # one that is down or gone doesn't silence the others
            announcer.send()


_Changed: TypeAlias = "Callable[[_Host, str, bool], None]"


class _Host:
    """One host's uplinks and ports."""

    def __init__(self, where: str, changed: _Changed) -> None:
        self.where = where
        self.pinned: dict[str, str | None] = {}
        self._ports: list[LocalPort] = []
        self._changed = changed
        self._identity = netns.identity(where)
        self._watch = LinkWatch(where)
        self._pins = Pins(where)
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._read)

    def is_there(self) -> bool:
        """Whether the namespace is still the one that is followed."""
        try:
            return netns.identity(self.where) == self._identity
        except KernelError:
            return False

    def settle(self, ports: Sequence[LocalPort]) -> None:
        """These have one uplink now; those that had several leave by the one that remains."""
        names = [port.end.name for port in ports if port.end.name in self.pinned]
        if names:
            self._pins.hold(names)
            for name in names:
                self._pins.set(name, 1)

    def take(self, ports: Sequence[LocalPort]) -> list[LocalPort]:
        """These are the ports now, each to be pinned as the links stand; those that moved.

        All pins are written: a port may have been made anew, or its uplinks renumbered.
        """
        self._ports = list({port.end.name: port for port in ports}.values())
        names = [port.end.name for port in self._ports]
        self._pins.hold(names)
        self.pinned = {dev: uplink for dev, uplink in self.pinned.items() if dev in set(names)}
        self._read()
        return self.rebalance(anew=True)

    def alive(self) -> Collection[str]:
        """The uplinks with a link."""
        return {
            uplink
            for uplink in {u for port in self._ports for u in port.uplinks}
            if self._watch.has_carrier(uplink)
        }

    def rebalance(self, *, anew: bool = False) -> list[LocalPort]:
        """Pin each port to the uplink that it should have now; those that moved.

        `anew`: whatever their pins are now.
        """
        alive, moved = self.alive(), []
        for port in self._ports:
            dev = port.end.name
            number = port.uplink(alive, self.pinned.get(dev))
            uplink = port.uplinks[number - 1] if number else None
            other = dev not in self.pinned or self.pinned[dev] != uplink
            if other or anew:
                self._pins.set(dev, number)
            if other and dev in self.pinned and uplink is not None:
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
