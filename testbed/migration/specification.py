"""What both ends of a migration are told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.guest.specification import GuestSpec
    from testbed.guest.trace import TraceMode

PORT = 8000  # vMotion's (vmotion-facts.md, section 6)


@dataclass(frozen=True, slots=True)
class MigrationSpec:
    """One migration, as source and destination know it.

    `migration_id` is the epoch in microseconds; `secret` 32 random bytes that only the two ends
    know. Buffers of None are sized by the kernel as it goes. `source_device` pins the stream to
    an adapter. Defaults are vMotion's: switchover goal 500 ms (facts row 44), least ratio of
    transmit to dirty rate 130 % and timeout 20 s (facts section 6). `max_iterations` ends
    what the ratio lets through: 1.3 to the 40th is four orders of magnitude. `verify` holds the
    guest at the destination, for at most `hold_timeout_ns`, while memories are compared. `trace`
    is how page tracing is laid over the guest (facts rows 34-36); None: without stopping a vCPU.
    """

    migration_id: int
    secret: bytes = field(repr=False)
    guest: GuestSpec
    source_address: str
    destination_address: str
    port: int = PORT
    source_device: str | None = None
    congestion_control: str = "cubic"
    send_buffer_bytes: int | None = None
    receive_buffer_bytes: int | None = None
    switchover_goal_ns: int = 500_000_000
    min_progress_percent: int = 130
    max_iterations: int = 40
    timeout_ns: int = 20_000_000_000
    verify: bool = False
    hold_timeout_ns: int = 300_000_000_000
    trace: TraceMode | None = None

    def __post_init__(self) -> None:
        if len(self.secret) != 32:
            raise ValueError(f"the secret has {len(self.secret)} bytes; it must have 32")
        if not 0 < self.migration_id < 2**63:
            raise ValueError(f"migration id {self.migration_id} is not of 63 bits")
        if self.switchover_goal_ns <= 0 or self.timeout_ns <= 0:
            raise ValueError("switchover goal and timeout must be above 0")
