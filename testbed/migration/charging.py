"""What the bytes of a stream cost the CPU of the host at this end."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.ledger import Cost
from testbed.migration import tcp_info
from testbed.migration.stream import TURN_NS

if TYPE_CHECKING:
    from contextlib import ExitStack

    from testbed.ledger import Ledger, Worker
    from testbed.migration.specification import MigrationSpec
    from testbed.migration.stream import Stream

# What is less is charged along with what comes next.
_LEAST_BYTES = 65536


def check_ledger(spec: MigrationSpec, ledger: Ledger | None) -> None:
    """See that what a migration costs can be charged to somebody.

    Raises:
        InputError: it costs cycles, and there is no ledger.
    """
    if ledger is None and _costs(spec):
        raise InputError("a migration that costs cycles needs the ledger of its host")


def charge(stream: Stream, spec: MigrationSpec, ledger: Ledger | None, undo: ExitStack) -> None:
    """Have a stream pay for its bytes from now on: its stream helper is one core of its host."""
    if ledger is not None and _costs(spec):
        worker = undo.enter_context(ledger.worker("vmotion", cores=1))
        cost = Cost(spec.cycles_per_byte, spec.cycles_per_packet)
        stream.pay = _Payer(stream, cost, worker).pay


def _costs(spec: MigrationSpec) -> bool:
    return spec.cycles_per_byte > 0 or spec.cycles_per_packet > 0


class _Payer:
    def __init__(self, stream: Stream, cost: Cost, worker: Worker) -> None:
        self._stream, self._cost, self._worker = stream, cost, worker
        self._mss_bytes = tcp_info.read(stream.socket).mss_bytes
        self._owed_bytes = self._turn_ns = 0
        self._lock = Lock()  # one thread sends while another receives, after resume

    def pay(self, size_bytes: int) -> None:
        """Charge, and wait as long as the ledger says; the stream's turn comes meanwhile."""
        with self._lock:
            self._owed_bytes += size_bytes
            if self._owed_bytes < _LEAST_BYTES:
                return
            wait_ns = self._worker.settle(self._cost.cycles(self._owed_bytes, self._mss_bytes))
            self._owed_bytes = 0
        while wait_ns:
            self._wait(wait_ns)
            with self._lock:
                wait_ns = self._worker.settle()

    def _wait(self, wait_ns: int) -> None:
        now = time.monotonic_ns()
        end_ns = now + wait_ns
        while now < end_ns:
            time.sleep(min(end_ns - now, TURN_NS) / 1e9)
            now = time.monotonic_ns()
            if now >= self._turn_ns:
                self._turn_ns = now + TURN_NS
                self._stream.turn()
