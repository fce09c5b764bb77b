"""The queue of a lab's migrations: as many are under way as hosts, network and datastore take."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.migration.concurrency import Limits, admit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from testbed.migration.concurrency import Move
    from testbed.topology.model import Host


def host_limits(hosts: Iterable[Host], scale: int) -> dict[str, int]:
    """How many migrations each host takes part in at a time, by its profile and vMotion NICs."""
    return {host.name: host.profile.concurrent(_vmotion_rate_bps(host, scale)) for host in hosts}


def _vmotion_rate_bps(host: Host, scale: int) -> int | None:
    """The nominal rate of the fastest NIC that a vMotion vmk may leave by; None: not shaped."""
    switches = {vmk.vswitch for vmk in host.vmks_for("vmotion")}
    nics = {nic for one in host.vswitches if one.name in switches for nic in one.uplinks}
    rates = [one.rate_bps for one in host.uplinks if one.name in nics]
    shaped = [rate for rate in rates if rate is not None]
    return max(shaped) * scale if shaped and len(shaped) == len(rates) else None


@dataclass(slots=True, eq=False)
class _Entry:
    move: Move
    network_limit: int | None
    host_limits: Mapping[str, int]
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class MigrationQueue:
    """Admits in turn (testbed/migration/concurrency.py).

    Args:
        hosts: how many migrations each host takes part in at a time, as the lab is now.
    """

    def __init__(self, hosts: Callable[[], Mapping[str, int]]) -> None:
        self._hosts = hosts
        self._waiting: list[_Entry] = []
        self._running: list[_Entry] = []

    @asynccontextmanager
    async def admitted(
        self,
        move: Move,
        network_limit: int | None,
        wait: Callable[[str], None],
        gone: asyncio.Event,
        host_limits: Mapping[str, int] | None = None,
    ) -> AsyncIterator[bool]:
        """Take part when it is its turn.

        Args:
            move: what is to be admitted.
            network_limit: how many its network takes at a time; None: any number.
            wait: called with the cause, if it can't be admitted at once.
            gone: set when it is to wait no more.
            host_limits: how many its two hosts take for its own part; None: as the others.

        Yields:
            Whether it has been admitted; False if it waits no more.
        """
        entry = _Entry(move, network_limit, host_limits or {})
        self._waiting.append(entry)
        try:
            causes = self._admit().get(id(entry), ())
            if not entry.admitted.is_set():
                wait("; ".join(causes))
                await _first_of(entry.admitted, gone)
            yield entry.admitted.is_set()
        finally:
            (self._running if entry.admitted.is_set() else self._waiting).remove(entry)
            self._admit()

    def _host_limits(self) -> dict[str, int]:
        """The strictest of what those at a host ask for."""
        own = self._hosts()
        asked: dict[str, list[int]] = {}
        for entry in (*self._running, *self._waiting):
            for host in (entry.move.source, entry.move.destination):
                limit = entry.host_limits.get(host, own.get(host))
                if limit is not None:
                    asked.setdefault(host, []).append(limit)
        return {host: min(limits) for host, limits in asked.items()}

    def _admit(self) -> dict[int, tuple[str, ...]]:
        """Admit whom there is room for; why each of the others waits."""
        running = [entry.move for entry in self._running]
        limits = Limits(
            hosts=self._host_limits(),
            networks={
                entry.move.network: entry.network_limit
                for entry in (*self._running, *self._waiting)
                if entry.network_limit is not None
            },
        )
        decided = admit([entry.move for entry in self._waiting], running, limits)
        starting = {id(move) for move in decided.start}
        causes = {id(waiting.move): waiting.causes for waiting in decided.waiting}
        for entry in [*self._waiting]:
            if id(entry.move) in starting:
                self._waiting.remove(entry)
                self._running.append(entry)
                entry.admitted.set()
        return {id(entry): causes.get(id(entry.move), ()) for entry in self._waiting}


async def _first_of(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
