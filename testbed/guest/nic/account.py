"""What a VM's traffic costs its host in CPU: waited for by the NIC process, as a busy core would.

All that the VM sends and receives passes here, whichever workload it is of. The host it runs on
is charged: after a move another one, with the next attachment.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from testbed.ledger import Ledger, Worker


class Account:
    """A host's ledger and its prices; one core serves the VM, as one thread moves its bytes.

    Args:
        terms: "path" of the ledger, which exists, "cycles_per_byte" and "cycles_per_packet".
            None: nothing is charged.

    Raises:
        OSError, LabError: there is no such ledger.
    """

    def __init__(self, terms: dict[str, Any] | None) -> None:
        self._worker: Worker | None = None
        self.wait_until_ns = 0
        """Not 0 while the host's CPU has not yet done what was asked of it (CLOCK_MONOTONIC)."""
        if terms is not None:
            self._cycles_per_byte = float(terms["cycles_per_byte"])
            self._cycles_per_packet = float(terms["cycles_per_packet"])
            self._worker = Ledger.join(Path(terms["path"])).worker("vm")

    def settle(self, traffic: tuple[int, int]) -> bool:
        """Charge so many bytes and packets; whether more may be moved now."""
        if self._worker is None:
            return True
        size_bytes, packets = traffic
        cycles = size_bytes * self._cycles_per_byte + packets * self._cycles_per_packet
        if time.monotonic_ns() < self.wait_until_ns and not cycles:
            return False
        wait_ns = self._worker.settle(cycles)
        self.wait_until_ns = time.monotonic_ns() + wait_ns if wait_ns else 0
        return not wait_ns

    def close(self) -> None:
        """Let go of the ledger."""
        if self._worker is not None:
            self._worker.close()
