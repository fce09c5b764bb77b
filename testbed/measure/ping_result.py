"""What a ping found: round-trip times, losses, the longest outage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError
from testbed.measure.series import Series

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class PingResult:
    """sent = received in time + late + lost; times are CLOCK_MONOTONIC.

    `rtt` has the round-trip time of every answered echo (late ones too) at the time it was
    sent; `duplicates` are answers beyond the first. `outage_ns` is the longest time in which no
    answer arrived, so an undisturbed run has about the interval. Losses alone would tell too
    little: the kernel keeps echoes while it looks for a neighbour, and sends them afterwards.
    """

    sent: int
    received: int
    late: int
    lost: int
    duplicates: int
    rtt: Series
    lost_at_ns: tuple[int, ...]
    outage_ns: int
    errors: tuple[tuple[str, int], ...]

    @property
    def minimum_ns(self) -> float:
        """The shortest round trip."""
        return min(self.rtt.values)

    @property
    def median_ns(self) -> float:
        """The median round trip."""
        return quantile(self.rtt.values, 0.5)

    @property
    def p99_ns(self) -> float:
        """The 99th percentile of the round trips."""
        return quantile(self.rtt.values, 0.99)

    @property
    def maximum_ns(self) -> float:
        """The longest round trip."""
        return max(self.rtt.values)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values doesn't exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summarize(
    what: str,
    sent_ns: Sequence[int],
    arrivals: Sequence[tuple[int, int]],
    timeout_ns: int,
    errors: Mapping[str, int],
) -> PingResult:
    """The result of echoes sent at `sent_ns`, answered at (number, time).

    Raises:
        MeasurementError: not one was answered; `what` begins the message.
    """
    first: dict[int, int] = {}
    for number, at_ns in arrivals:
        first.setdefault(number, at_ns)
    if not first:
        causes = ", ".join(f"{cause} ({times} times)" for cause, times in errors.items())
        raise MeasurementError(
            f"{what}: none of {len(sent_ns)} echoes was answered"
            + (f": {causes}" if causes else "")
            + "; check addresses, links and routes of the path"
        )
    answered = sorted(first)
    rtts = tuple(float(max(0, first[number] - sent_ns[number])) for number in answered)
    late = sum(rtt > timeout_ns for rtt in rtts)
    return PingResult(
        sent=len(sent_ns),
        received=len(answered) - late,
        late=late,
        lost=len(sent_ns) - len(answered),
        duplicates=len(arrivals) - len(answered),
        rtt=Series("round trip", "ns", tuple(sent_ns[number] for number in answered), rtts),
        lost_at_ns=tuple(at for number, at in enumerate(sent_ns) if number not in first),
        outage_ns=_outage_ns(sent_ns, first),
        errors=tuple(sorted(errors.items())),
    )


def _outage_ns(sent_ns: Sequence[int], answered: Mapping[int, int]) -> int:
    arrivals = sorted(answered.values())
    times = [sent_ns[0], *arrivals, max(sent_ns[-1], arrivals[-1])]
    return max(later - earlier for earlier, later in pairwise(times))
