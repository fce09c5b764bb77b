"""How late a delay line let frames go, and whether that was still the delay asked for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.plan.policies import Delay

_UNIT_NS = 64
_FINE = 32  # units counted one by one; above, each doubling has half as many steps
_MOST_NS = 1 << 40
LATE_NS = 1_000_000
LATE_SHARE = 10


def bucket_of(late_ns: int) -> int:
    """The number of the bucket that a lateness falls in: it is there to within 1/16."""
    units = min(abs(late_ns), _MOST_NS) // _UNIT_NS
    if units >= _FINE:
        shift = units.bit_length() - 5
        units = shift * (_FINE // 2) + (units >> shift)
    return units if late_ns >= 0 else -units - 1


def bounds_ns(bucket: int) -> tuple[int, int]:
    """The latenesses of a bucket, from the first to the last."""
    number = bucket if bucket >= 0 else -bucket - 1
    if number < _FINE:
        shift, units = 0, number
    else:
        shift = number // (_FINE // 2) - 1
        units = number - shift * (_FINE // 2)
    first, last = (units << shift) * _UNIT_NS, ((units + 1) << shift) * _UNIT_NS - 1
    return (first, last) if bucket >= 0 else (-last, -max(first, 1))


@dataclass(eq=True)
class Lateness:
    """A histogram with at most some 2000 buckets, however many frames it has seen."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, latenesses_ns: Iterable[int]) -> None:
        """Count some frames; early ones are negative."""
        for late_ns in latenesses_ns:
            self.counts[bucket_of(late_ns)] += 1

    @property
    def frames(self) -> int:
        """How many were counted."""
        return self.counts.total()

    def quantile_ns(self, share: float) -> int:
        """The lateness that this share of the frames kept, rounded up by at most 1/16.

        0 of none.
        """
        left = math.ceil(share * self.frames - 1e-9)  # 0.99 of 100 is 99, not a little more
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return bounds_ns(bucket)[1]
        return 0


@dataclass(frozen=True)
class DirectionStatistics:
    """One direction of a delay line since it started, or since an earlier reading.

    `queue_drops` were lost as the kernel's queue was full, `user_drops` as the process read
    too slowly.
    """

    queue_drops: int
    user_drops: int
    lateness: Lateness

    @property
    def frames(self) -> int:
        """How many were let go; a train of TCP segments is one."""
        return self.lateness.frames

    @property
    def p50_ns(self) -> int:
        """The median lateness."""
        return self.lateness.quantile_ns(0.5)

    @property
    def p99_ns(self) -> int:
        """The lateness that 99 % kept."""
        return self.lateness.quantile_ns(0.99)

    @property
    def max_ns(self) -> int:
        """The worst."""
        return self.lateness.quantile_ns(1)

    def since(self, earlier: DirectionStatistics) -> DirectionStatistics:
        """What has happened after an earlier reading of the same line."""
        return DirectionStatistics(
            self.queue_drops - earlier.queue_drops,
            self.user_drops - earlier.user_drops,
            Lateness(self.lateness.counts - earlier.lateness.counts),
        )

    def figures(self) -> dict[str, int]:
        """What a result says of it."""
        return {
            "frames": self.frames,
            "late_p50_ns": self.p50_ns,
            "late_p99_ns": self.p99_ns,
            "late_max_ns": self.max_ns,
            "queue_drops": self.queue_drops,
            "user_drops": self.user_drops,
        }

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "queue_drops": self.queue_drops,
            "user_drops": self.user_drops,
            "lateness": sorted(self.lateness.counts.items()),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DirectionStatistics:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is not of that form.
        """
        counts = Counter({int(bucket): int(count) for bucket, count in data["lateness"]})
        return cls(data["queue_drops"], data["user_drops"], Lateness(counts))


def verdict(statistics: DirectionStatistics, delay: Delay) -> str | None:
    """Why a direction can't be called a link with this delay; None if it can.

    It lost frames of itself, or one frame in a hundred was later than 1 ms and a tenth of the
    delay: the medians of a measurement would show it.
    """
    if statistics.queue_drops:
        return f"its queue in the kernel was full: {statistics.queue_drops} frames lost"
    if statistics.user_drops:
        return f"its process read too slowly: {statistics.user_drops} frames lost"
    allowed_ns = max(LATE_NS, delay.delay_ns // LATE_SHARE)
    if statistics.p99_ns > allowed_ns:
        return (
            f"1 % of the frames were over {format_duration(statistics.p99_ns)} late, "
            f"{format_duration(allowed_ns)} is allowed"
        )
    return None
