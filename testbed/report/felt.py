"""What was felt of a migration, or in a time: by the guest itself, and by clients beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from testbed.measure.guest_felt import GuestFelt  # noqa: TC001 - the store reads the types
from testbed.measure.series import Series  # noqa: TC001 - as above
from testbed.units import format_duration

if TYPE_CHECKING:
    from testbed.measure.guest_felt import WorkloadFelt


@dataclass(frozen=True, slots=True)
class PingFelt:
    """Echo requests to the guest, `interval_ns` apart.

    sent = received + late + lost; late ones took more than `late_after_ns`. `outage_ns` is the
    longest time without an answer. `by_guest`: the guest's vCPUs answer; else the kernel does,
    which shows how long the network was away, not the guest. The round trips are None, and their
    series empty, if nothing was answered.
    """

    interval_ns: int
    late_after_ns: int
    by_guest: bool
    sent: int
    received: int
    late: int
    lost: int
    outage_ns: int
    median_ns: float | None
    p99_ns: float | None
    maximum_ns: float | None
    rtt: Series


@dataclass(frozen=True, slots=True)
class SessionFelt:
    """A TCP session with a service of the guest, open all the time.

    `counts` are its own figures: downloads; parts, those late and missing; messages sent and
    answered. Of what was received every byte was compared, `wrong_bytes` were not what they should
    be. `longest_gap_ns` is the longest time in which nothing came though it should have, from
    `longest_gap_at_ns` on. `broken` says why it ended early. `course` is its rate (web), the
    gaps between parts (media), or the round trips (echo).
    """

    service: Literal["web", "media", "echo"]
    counts: dict[str, int]
    received_bytes: int
    wrong_bytes: int
    longest_gap_ns: int
    longest_gap_at_ns: int
    course: Series
    broken: str | None = None

    @property
    def trouble(self) -> str | None:
        """What was wrong with it, in words."""
        wrong = [f"{self.wrong_bytes:,} wrong bytes"] if self.wrong_bytes else []
        return "; ".join([*wrong, *([f"broken: {self.broken}"] if self.broken else [])]) or None


@dataclass(frozen=True, slots=True)
class Felt:
    """What was felt; times count from the begin of what was done to the guest.

    `guest` and `series` are from its own counters, read by a probe every `guest.interval_ns`;
    series are told at that interval, or in as few times as wide ones as keep them at 10000 points.
    Those that never left 0 are left out. `ping` and `sessions` are those of `client`; `troubles`
    are parts that could not be measured.
    """

    guest: GuestFelt | None
    series: tuple[Series, ...] = ()
    client: str = ""
    ping: PingFelt | None = None
    sessions: tuple[SessionFelt, ...] = ()
    troubles: tuple[str, ...] = ()


def in_short(felt: Felt) -> str:
    """One line: dip and longest halt of each workload at work, pings lost, sessions' gaps."""
    parts = []
    if felt.guest is not None:
        parts += [text for one in felt.guest.workloads if (text := _workload_in_short(one))]
        gap_ns = max(vcpu.longest_gap_ns for vcpu in felt.guest.vcpus)
        parts.append(f"no heartbeat for {format_duration(gap_ns)}")
    if felt.ping is not None:
        late = f", {felt.ping.late:,} late" if felt.ping.late else ""
        parts.append(f"{felt.ping.lost:,} of {felt.ping.sent:,} pings lost{late}")
    parts += [
        f"{one.service} silent for {format_duration(one.longest_gap_ns)}"
        + (f" ({one.trouble})" if one.trouble else "")
        for one in felt.sessions
    ]
    return "; ".join([*parts, *felt.troubles])


def _workload_in_short(one: WorkloadFelt) -> str:
    parts = []
    if one.dip is not None and one.lowest_over_ns is not None:
        parts.append(
            f"{one.operation} {one.dip:.0%} down for {format_duration(one.lowest_over_ns)}"
        )
    if one.halt_ns is not None:
        parts.append(f"none for {format_duration(one.halt_ns)}")
    return ", ".join(parts)
