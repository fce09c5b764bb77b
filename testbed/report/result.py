"""What a migration achieved: the result type that is stored, charted and compared.

Times are nanoseconds of CLOCK_MONOTONIC, counted from the start of the migration where
the name says `at_ns`; the machine has one clock, so both hosts' times compare.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from testbed.guest.trace import TraceReport  # noqa: TC001 - the store reads the types
from testbed.report.felt import Felt  # noqa: TC001
from testbed.report.hosts import HostReport  # noqa: TC001
from testbed.report.post_copy import PostCopyReport  # noqa: TC001

SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, SCHEMA_VERSION)
"""Version 2 is a version 3 in which nothing says what came with it."""


@dataclass(frozen=True, slots=True)
class Iteration:
    """One round of the copy: phase -1 is all memory, 0 and up what was dirtied meanwhile.

    Of its pages, `zero_pages` were all zero and told instead of sent. `memory_bytes` are the
    contents of the others, `wire_bytes` all that the sockets carried (headers of ours included,
    TCP's and Ethernet's not). The round ends when the destination has acknowledged it.
    `dirty_pages` were found dirty at its end. `stunned` marks the last one, sent while the guest
    stood still.
    """

    number: int
    pages: int
    memory_bytes: int
    wire_bytes: int
    at_ns: int
    duration_ns: int
    dirty_pages: int
    stunned: bool
    zero_pages: int = 0

    @property
    def throughput_bps(self) -> float:
        """Page contents sent and acknowledged, bits per second."""
        return self.memory_bytes * 8e9 / self.duration_ns if self.duration_ns else 0.0

    @property
    def dirty_rate_bytes_per_s(self) -> float:
        """Distinct pages dirtied during the round x 4096, bytes per second."""
        return self.dirty_pages * 4096e9 / self.duration_ns if self.duration_ns else 0.0

    @property
    def transmit_to_dirty_percent(self) -> float | None:
        """Pages transmitted in per cent of those dirtied meanwhile ("t2d"); None: none were."""
        sent = self.pages - self.zero_pages
        return 100 * sent / self.dirty_pages if self.dirty_pages else None


@dataclass(frozen=True, slots=True)
class Sample:
    """A point of the time series: bytes the destination's TCP has acknowledged so far."""

    at_ns: int
    phase: str
    acknowledged_bytes: int
    pages_left: int


@dataclass(frozen=True, slots=True)
class Verification:
    """Both memories compared at rest by a reader that took no part in the migration.

    By content; of synthetic memory the guest's own pages by content, the rest by version.
    """

    pages_compared: int
    pages_different: int
    compared_by: Literal["content", "version"] = "content"


@dataclass(frozen=True, slots=True)
class StreamReport:
    """One TCP stream, as TCP_INFO told at its end.

    `bytes` are all that it carried and the peer acknowledged. `most_in_flight_bytes` is the most
    payload that was seen sent but not yet acknowledged, in samples 25 ms apart after the first
    4 MiB, and `window_bytes` what it was to be limited to; None: it was not.
    """

    source_address: str
    destination_address: str
    congestion_control: str
    mss_bytes: int
    retransmitted_segments: int
    rtt_ns: int
    send_buffer_bytes: int
    receive_buffer_bytes: int
    bytes: int = 0
    most_in_flight_bytes: int = 0
    window_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Slowdown:
    """One step of SDPS, after an iteration: what each vCPU sleeps for a millisecond it has run."""

    after_iteration: int
    at_ns: int
    sleep_ns_per_ms: int
    transmit_bytes_per_s: float
    dirty_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Switchover:
    """What the stun was made of, at the source.

    `estimated_ns` is what the pages left were expected to take before the guest was stopped.
    `suspend_ns` until it stood still and its last pages were found; `bitmap_ns` until the bitmap
    of `bitmap_bytes` was encoded and sent; `copy_ns` until the destination had all that it
    waits for, the bitmap included. `pages_after_resume` were left for later. `swapped_pages` stay
    in the swap file: the swap bitmap and their slots were told in `swap_bitmap_bytes`.
    """

    estimated_ns: int
    suspend_ns: int
    copy_ns: int
    bitmap: Literal["full", "compacted"] | None
    bitmap_bytes: int
    bitmap_ns: int
    pages_after_resume: int
    swapped_pages: int = 0
    swap_bitmap_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What the two ends of the engine measured; the lab adds the rest.

    `stun_ns` runs from the first instant of the stun (the guest's port is cut) until every
    vCPU runs at the destination; None if the guest was held for verification.
    `guest_gap_ns` is what the guest itself saw: the longest time between its last
    heartbeat at the source and its first at the destination; None likewise.
    `prepare_ns` is what passed before the first page was sent: the destination populates the
    guest's memory then. CPU times are of the two VMX processes, from the connection on.
    `trace` says what page tracing cost the guest, if it was asked for in a mode. `slowdowns` are
    SDPS's, none if it wasn't needed. `encryption` names the cipher of the streams; None: none.
    `post_copy` tells of pages that came after the guest ran; None: all came before.
    """

    iterations: tuple[Iteration, ...]
    samples: tuple[Sample, ...]
    streams: tuple[StreamReport, ...]
    prepare_ns: int
    total_ns: int
    stun_ns: int | None
    guest_gap_ns: int | None
    tracking: str
    source_cpu_ns: int
    destination_cpu_ns: int
    trace: TraceReport | None = None
    switchover: Switchover | None = None
    slowdowns: tuple[Slowdown, ...] = ()
    encryption: str | None = None
    post_copy: PostCopyReport | None = None


@dataclass(frozen=True, slots=True)
class Guest:
    """The VM that was moved, at the lab's scale.

    `workload` are its workloads in words. Of `synthetic` memory the tracking's cost is not that of
    a guest, so nothing is claimed of it.
    """

    name: str
    memory_bytes: int
    vcpus: int
    workload: str
    backing: Literal["real", "synthetic"] = "real"
    page_bytes: int = 4096


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a migration failed, in which phase, and what can be done."""

    phase: str
    cause: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class WireDirection:
    """What a wire did to the frames that went one way while the measurement lasted.

    `frames` were delayed (a train of TCP segments is one), `dropped` were lost in its queue.
    Lateness is the time by which they came later than asked; netem does not tell it: None.
    """

    delay_ns: int
    jitter_ns: int
    frames: int
    dropped: int
    late_p50_ns: int | None = None
    late_p99_ns: int | None = None
    late_max_ns: int | None = None


@dataclass(frozen=True, slots=True)
class WireReport:
    """A link with latency during a measurement; `trouble` says why what it shows isn't valid."""

    link: str
    mechanism: str
    directions: tuple[WireDirection, ...]
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """One migration with its whole input, for the store.

    `scale_divisor` is k of a scale of 1/k: nominal sizes and rates are k times those here.
    `path_goodput_bps` is the TCP payload that the path's slowest link can carry
    (testbed.measure.theory); None if no link of the path is shaped. `wires` are the lab's links
    with latency, `notices` what a reader has to know beside the figures. `felt` is what the guest
    and its clients felt; None if nothing watched. `topology_files` are the texts of the files that
    the topology names (traces, profiles), by their paths in it; `hosts` the source and the
    destination, as they were modelled; `rtt_ns` the round trip between them before it began, over
    the first of its paths, the median of some echoes.
    """

    schema_version: int
    kind: Literal["migration"]
    testbed_version: str
    created: str
    command: str
    lab: str
    topology_file: str
    topology_text: str
    scale_divisor: int
    kernel: str
    mechanisms: dict[str, str]
    source: str
    destination: str
    guest: Guest
    switchover_goal_ns: int
    outcome: Literal["completed", "failed"]
    failure: Failure | None
    engine: EngineReport | None
    verification: Verification | None
    path_goodput_bps: int | None = None
    wires: tuple[WireReport, ...] = ()
    notices: tuple[str, ...] = ()
    felt: Felt | None = None
    topology_files: dict[str, str] = field(default_factory=dict)
    hosts: tuple[HostReport, ...] = ()
    rtt_ns: int | None = None

    @property
    def invalid(self) -> str | None:
        """Why the result says nothing about the lab as it was asked for; None if it does."""
        troubles = [f"{wire.link}: {wire.trouble}" for wire in self.wires if wire.trouble]
        return "; ".join(troubles) or None
