"""SDPS at work: slows vCPUs down while their guest is copied, and gives back what they had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.migration.convergence import transmit_rate_bps
from testbed.migration.sdps import slow_down
from testbed.report.result import Slowdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.guest.machine import Guest
    from testbed.migration.specification import MigrationSpec
    from testbed.report.result import Iteration


class Slowing:
    """Asked after each iteration. A context manager: at its end vCPUs run as they did before."""

    def __init__(self, guest: Guest, spec: MigrationSpec) -> None:
        """The guest runs as it did."""
        self._guest, self._spec = guest, spec
        self._before = guest.throttles()
        self.sleep_ns_per_ms: int | None = None
        """What SDPS has vCPUs sleep now; None: nothing."""
        self.steps: list[Slowdown] = []

    def follow(self, iterations: Sequence[Iteration]) -> None:
        """Slow down, or let go, as the last iteration asks for; `steps` tell of each change."""
        if self._spec.sdps is None:
            return
        last = iterations[-1]
        transmit, dirty = transmit_rate_bps(iterations) / 8, last.dirty_rate_bytes_per_s
        sleep_ns = slow_down(
            transmit,
            dirty,
            self.sleep_ns_per_ms,
            self._spec.sdps,
            self._spec.min_progress_percent,
        )
        if sleep_ns == self.sleep_ns_per_ms:
            return
        self.sleep_ns_per_ms = sleep_ns
        for vcpu, before_ns in enumerate(self._before):  # what an operator asked for stays
            self._guest.throttle(max(before_ns, sleep_ns or 0), vcpu)
        at_ns = last.at_ns + last.duration_ns
        self.steps.append(Slowdown(last.number, at_ns, sleep_ns or 0, transmit, dirty))

    def __enter__(self) -> Slowing:
        return self

    def __exit__(self, *_: object) -> None:
        for vcpu, before_ns in enumerate(self._before):
            self._guest.throttle(before_ns, vcpu)
