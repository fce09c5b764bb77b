"""What both ends of a migration are told before it starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from testbed.guest.specification import GuestSpec
from testbed.guest.trace import TraceMode
from testbed.migration.sdps import SdpsSpec

PORT = 8000  # vMotion's (vmotion-facts.md, section 6)
MOST_STREAMS = 128  # 16 NICs of 8 helpers each

Bitmap: TypeAlias = Literal["full", "compacted"]
Remaining: TypeAlias = Literal["before resume", "after resume"]


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One TCP connection: from which address to which, pinned to an adapter or not."""

    source_address: str
    destination_address: str
    source_device: str | None = None


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

    Each of `streams` is a TCP connection with a stream helper of its own; none: one, from
    `source_address` to `destination_address`. `window_bytes` is the payload that each may have in
    flight; None: as much as the path takes. Cycles are charged to the ledgers of both hosts.
    `zero_pages`: pages of zeros are told, not sent. `bitmap` is what tells the destination of the
    pages still to come; None: nothing does. `remaining_pages` are those not sent when the guest
    was suspended; `quick_resume` lets it resume without them if pre-copy does not converge, with
    `resume_file` on the shared datastore should the network fail. Without convergence `sdps` slows
    the vCPUs down; None: the migration fails. `downtime_limit_ns` is never exceeded by an
    estimate, `deadline_ns` is what the migration may take from its start; None: no limit.
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
    streams: tuple[StreamSpec, ...] = ()
    window_bytes: int | None = None
    cycles_per_byte: float = 0
    cycles_per_packet: float = 0
    zero_pages: bool = False
    bitmap: Bitmap | None = None
    remaining_pages: Remaining = "before resume"
    sdps: SdpsSpec | None = None
    quick_resume: bool = False
    resume_file: str = ""
    encrypted: bool = False
    downtime_limit_ns: int | None = None
    deadline_ns: int | None = None

    def __post_init__(self) -> None:
        if len(self.secret) != 32:
            raise ValueError(f"the secret has {len(self.secret)} bytes; it must have 32")
        if not 0 < self.migration_id < 2**63:
            raise ValueError(f"migration id {self.migration_id} is not of 63 bits")
        if self.switchover_goal_ns <= 0 or self.timeout_ns <= 0:
            raise ValueError("switchover goal and timeout must be above 0")
        limits = self.window_bytes, self.downtime_limit_ns, self.deadline_ns
        if any(limit is not None and limit <= 0 for limit in limits):
            raise ValueError("window, downtime limit and deadline must be above 0, or None")
        if len(self.streams) > MOST_STREAMS:
            raise ValueError(f"{len(self.streams)} streams; {MOST_STREAMS} are allowed")
        if self.cycles_per_byte < 0 or self.cycles_per_packet < 0:
            raise ValueError("cycles per byte and per packet must not be below 0")

    @property
    def may_resume_early(self) -> bool:
        """Whether the guest may run before all of its pages are there.

        Not if it is to be verified: it is held until both memories have been compared.
        """
        wanted = self.quick_resume or self.remaining_pages == "after resume"
        return wanted and not self.verify

    @property
    def connections(self) -> tuple[StreamSpec, ...]:
        """The streams, one at least; the first carries the control messages."""
        alone = StreamSpec(self.source_address, self.destination_address, self.source_device)
        return self.streams or (alone,)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; the secret is in it."""
        return asdict(self) | {"secret": self.secret.hex(), "guest": self.guest.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MigrationSpec:
        """What `to_json` made; fields with a default may be left out.

        Raises:
            TypeError, ValueError, KeyError: it is none.
        """
        trace, sdps = data.get("trace"), data.get("sdps")
        return cls(
            **data
            | {
                "secret": bytes.fromhex(data["secret"]),
                "guest": GuestSpec.from_json(data["guest"]),
                "trace": trace and TraceMode(**trace),
                "streams": tuple(StreamSpec(**one) for one in data.get("streams", ())),
                "sdps": sdps and SdpsSpec(**sdps),
            }
        )
