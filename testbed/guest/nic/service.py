"""The guest's end of its network: what vCPU 0 does about what the NIC process brings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from testbed.guest import layout
from testbed.guest.nic import echoes
from testbed.guest.nic.bulk import BulkService, SinkService
from testbed.guest.nic.connections import all_connections
from testbed.guest.nic.records import (
    DATA,
    DIALLED,
    ECHO,
    ENDED,
    LOST,
    NO_EPOCH,
    OPENED,
    SENT,
    divide,
)
from testbed.guest.nic.services import EchoService, MediaService, WebService
from testbed.guest.task import LONGEST_STEP_NS, NEVER_NS
from testbed.guest.tasks.operations import count_operation
from testbed.guest.workloads import Bulk, Echo, Media, Ping, Sink, Web

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.guest.nic.connections import Connection
    from testbed.guest.nic.rings import Record
    from testbed.guest.nic.services import Service
    from testbed.guest.task import TaskContext
    from testbed.guest.workloads import NetworkWorkload

_LEAST_ROOM = 512  # a response's head, or a piece that is worth a record


class NicTask:
    """All that a VM says over its network, by one task of vCPU 0.

    Args:
        context: the vCPU's.
        workloads: those of the network.
        records: their records, in the same order.
    """

    def __init__(
        self,
        context: TaskContext,
        workloads: Sequence[NetworkWorkload],
        records: Sequence[memoryview],
    ) -> None:
        self._kick = context.kick
        self._pages = divide(layout.nic_bytes(context.memory, context.spec.vcpus))
        self._services: dict[int, Service] = {}
        self._ping: memoryview | None = None
        for number, (workload, record) in enumerate(zip(workloads, records, strict=True)):
            match workload:
                case Ping():
                    self._ping = record
                case Web():
                    self._services[workload.port] = WebService(workload, record, context.spec.seed)
                case Media():
                    self._services[workload.port] = MediaService(
                        workload, record, context.spec.seed
                    )
                case Echo():
                    self._services[workload.port] = EchoService(workload, record)
                case Sink():
                    self._services[workload.port] = SinkService(record)
                case Bulk():
                    self._services[DIALLED + number] = BulkService(workload, record)
        self._all = all_connections(self._pages.table, self._pages.to_send)
        self._open: dict[int, Connection] = {}
        self._needs_room = 0  # to go on: 0 if room is not what is lacking

    def start(self, now_ns: int) -> float:
        """On with the connections that the table holds."""
        if self._pages.epoch[0] == NO_EPOCH:
            self._pages.epoch[0] = now_ns
        self._open = {one.number: one for one in self._all if one.port}
        for one in tuple(self._open.values()):
            if one.port not in self._services:
                self._finish(one)
        self._kick()
        return now_ns

    def pending(self) -> bool:
        """Whether something has arrived, or there is room again to send."""
        if self._needs_room:
            return self._pages.to_send.room() >= self._needs_room
        return self._pages.received.waiting()

    def step(self, now_ns: int) -> float:
        """Take what has arrived for half of the time, and send for the rest."""
        self._needs_room = 0
        took = self._take(now_ns + LONGEST_STEP_NS // 2)
        due, sent = self._send(now_ns + LONGEST_STEP_NS)
        if took or sent:
            self._kick()
        return due

    def drain(self) -> None:
        """Nothing is under way between steps."""

    # -- what arrives -----------------------------------------------------------------------

    def _take(self, until_ns: int) -> bool:
        took = False
        while (record := self._pages.received.first()) is not None:
            if not self._receive(record):
                self._needs_room = len(record.payload)
                break
            self._pages.received.drop(record)
            took = True
            if time.monotonic_ns() >= until_ns:
                break
        return took

    def _receive(self, record: Record) -> bool:
        """Do what a record asks for; False if there is no room for the answer."""
        if record.kind == ECHO:
            return self._answer_echo(record)
        one = self._all[record.connection]
        if record.kind == OPENED:
            one.open(int.from_bytes(record.payload, "little"))
            self._open[one.number] = one
            if one.port not in self._services:
                self._finish(one)
        elif one.number in self._open:  # else it was closed here before
            return self._hear(one, record)
        return True

    def _hear(self, one: Connection, record: Record) -> bool:
        service = self._services.get(one.port)
        if record.kind == SENT:
            one.sent(int.from_bytes(record.payload, "little"))
        elif record.kind == LOST:
            self._finish(one)
        elif one.closing or service is None:
            pass
        elif record.kind == DATA:
            return service.receive(one, record.payload, record.at_ns)
        elif record.kind == ENDED:
            one.end()
            if service.end(one):
                self._finish(one)
        return True

    def _answer_echo(self, record: Record) -> bool:
        if self._ping is None:
            return True
        answer = echoes.reply(record.payload)
        if answer is None:
            return True
        now_ns = time.monotonic_ns()
        if not self._pages.to_send.put(ECHO, 0, now_ns, answer):
            return False
        count_operation(self._ping, now_ns - record.at_ns, now_ns)
        self._ping[layout.BYTES] += len(answer)
        return True

    def _finish(self, one: Connection) -> None:
        if one.close():
            del self._open[one.number]

    # -- what is sent -----------------------------------------------------------------------

    def _send(self, until_ns: int) -> tuple[float, bool]:
        """Let each connection say a little, in turn; when the next is due, and whether any did.

        The ring is full after a few: next time those come first that said nothing for longest.
        """
        to_send, sent = self._pages.to_send, False
        while True:
            soonest, said = NEVER_NS, False
            for one in tuple(self._open.values()):
                room, now_ns = to_send.room(), time.monotonic_ns()
                if now_ns >= until_ns:
                    return now_ns, sent
                if one.closing:
                    self._finish(one)
                    said |= not one.port
                    continue
                service = self._services[one.port]
                due = service.due(one, now_ns)
                if due > now_ns:
                    soonest = min(soonest, due)
                elif room < _LEAST_ROOM:
                    self._needs_room = max(self._needs_room, _LEAST_ROOM)
                elif (allowed := one.allowance()) >= _LEAST_ROOM:
                    service.send(one, min(room, allowed), now_ns)
                    said = True
                    del self._open[one.number]
                    if one.port:
                        self._open[one.number] = one
                # Without an allowance it waits for SENT, which is pending when it comes.
            sent |= said
            if not said:
                return soonest, sent
