"""One generation of the vMotion stack as numbers: what limits it, and how we know each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

Kind: TypeAlias = Literal["sourced", "calibrated", "assumed"]

LEAST_WINDOW_BYTES = 128 << 10
"""Two trains of TCP segments (GSO, 64 KiB): below that it is their size that limits a stream."""
DEFAULT_WINDOW_BYTES = 562_540
"""SndBufSize and RcvBufSize, from which a window grows to the path (facts section 6)."""
TEN_GBE_BPS = 10 * 10**9


@dataclass(frozen=True, slots=True)
class Origin:
    """How a value is known: `sourced` from, `calibrated` on, or `assumed` because of `basis`.

    A claim that is judged on the row that a value was calibrated on is consistent, not reproduced.
    `given_by` names the profile whose file has it, `file` and `line` the place.
    """

    kind: Kind
    basis: str
    given_by: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Profile:
    """How a vMotion stack behaves. All values are at scale 1 until `scaled`.

    congestion_control: TCP's, by the kernel's name.
    window: payload in flight that a stream may have, in bytes; "path" grows it to the path's
        bandwidth-delay product, "kernel" leaves it to the kernel (see `window_for`).
    vmks, vmks_10gbe: most vMotion vmks of a host, all used by one migration; the latter of
        those on NICs of 10 GbE and more.
    helpers_per_vmk: stream helpers of a migration for each vmk, one TCP connection each.
    helper_rate_bps: a NIC's rate beyond each multiple of which there is one more (see `helpers`).
    vmotion_cores: cores of a host that its migrations together may use; None is all of them.
    cycles_per_byte, cycles_per_packet: CPU cycles at each end, of payload and of TCP segments
        (payload / MSS); a stream helper has one core at a time. 0 and 0: nothing is charged.
    trace_stop, trace_granularity: as `testbed.guest.trace`; a stop of None is no tracing laid over.
    switchover_goal_ns: pre-copy ends when the rest can be sent in that.
    min_progress_percent: the least ratio of transmit to dirty rate that goes on.
    sdps, sdps_target_percent: whether vCPUs are slowed down, and to which such ratio.
    quick_resume: whether a guest that does not converge is resumed before all pages arrived.
    bitmap: how the pages still to come are told of; None as the engine likes.
    remaining_pages: whether those are sent before the guest resumes, or fetched after it.
    encryption: of the streams; opportunistic is whenever both hosts can.
    zero_pages: whether a page of zeros is sent as a word.
    rtt_limit_ns: longest round trip that is supported; None is any.
    layer3_supported: whether vMotion over routers is.
    concurrent_1gbe, concurrent_10gbe: migrations of a host at a time, by its vMotion NIC's rate.
    timeout_ns: how long a connection may be silent.
    management_bytes: sent over the management vmk before a migration starts.
    heartbeat_bytes, heartbeat_interval_ns: and while it runs.
    sources: the origin of each of these, by the field's name.
    """

    name: str
    congestion_control: str
    window: int | Literal["path", "kernel"]
    vmks: int
    vmks_10gbe: int
    helpers_per_vmk: int
    helper_rate_bps: int | None
    vmotion_cores: int | None
    cycles_per_byte: float
    cycles_per_packet: float
    trace_stop: Literal["stop-based", "loose"] | None
    trace_granularity: Literal["4KiB", "2MiB", "1GiB"]
    switchover_goal_ns: int
    min_progress_percent: int
    sdps: bool
    sdps_target_percent: int
    quick_resume: bool
    bitmap: Literal["full", "compacted"] | None
    remaining_pages: Literal["before resume", "after resume"]
    encryption: Literal["disabled", "opportunistic", "required"]
    zero_pages: bool
    rtt_limit_ns: int | None
    layer3_supported: bool
    concurrent_1gbe: int
    concurrent_10gbe: int
    timeout_ns: int
    management_bytes: int
    heartbeat_bytes: int
    heartbeat_interval_ns: int
    sources: Mapping[str, Origin] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )

    @property
    def charges_cpu(self) -> bool:
        """Whether sending and receiving cost cycles, so that a host's clock rate matters."""
        return self.cycles_per_byte > 0 or self.cycles_per_packet > 0

    @property
    def window_bytes(self) -> int | None:
        """The window, if it is fixed."""
        return self.window if isinstance(self.window, int) else None

    def window_for(self, rate_bps: int | None, rtt_ns: int) -> int | None:
        """Payload in flight for a stream over a path, in bytes; None leaves it to the kernel.

        A window that grows to the path holds its bandwidth-delay product (1.25 MB restore 125
        MB/s at 10 ms: facts section 6), and two trains more for what waits at the ends.

        Args:
            rate_bps: the path's; None is unshaped.
            rtt_ns: its round trip without load.
        """
        if isinstance(self.window, int):
            return self.window
        if self.window == "kernel" or rate_bps is None:
            return None
        product_bytes = -(-rate_bps * rtt_ns // (8 * 10**9))
        return max(DEFAULT_WINDOW_BYTES, product_bytes + LEAST_WINDOW_BYTES)

    def helpers(self, rate_bps: int | None) -> int:
        """Stream helpers for a vmk on a NIC of this nominal rate; None is unshaped."""
        if self.helper_rate_bps is None or rate_bps is None:
            return self.helpers_per_vmk
        return max(self.helpers_per_vmk, -(-rate_bps // self.helper_rate_bps))

    def most_vmks(self, rate_bps: int | None) -> int:
        """The most vMotion vmks on NICs of this nominal rate; None, unshaped, counts as fast."""
        fast = rate_bps is None or rate_bps >= TEN_GBE_BPS
        return min(self.vmks, self.vmks_10gbe) if fast else self.vmks

    def concurrent(self, rate_bps: int | None) -> int:
        """Migrations at a time of a host whose vMotion NIC has this nominal rate."""
        fast = rate_bps is None or rate_bps >= TEN_GBE_BPS
        return self.concurrent_10gbe if fast else self.concurrent_1gbe

    def scaled(self, scale: Fraction) -> Profile:
        """The same at a lab's scale: buffers and messages; never times, ratios or cycles."""
        if scale == 1:
            return self
        window = self.window
        return replace(
            self,
            window=int(window * scale) if isinstance(window, int) else window,
            management_bytes=int(self.management_bytes * scale),
            heartbeat_bytes=int(self.heartbeat_bytes * scale),
        )

    def to_json(self) -> dict[str, Any]:
        """Its name, its values and their origins."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        del values["sources"]
        return {
            **values,
            "sources": {name: asdict(origin) for name, origin in self.sources.items()},
        }
