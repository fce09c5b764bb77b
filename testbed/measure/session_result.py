"""What clients of a VM found on their TCP sessions: rates, gaps, and bytes that were wrong."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from testbed.measure.series import Series

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which nothing came, and when it ended (CLOCK_MONOTONIC)."""

    length_ns: int
    ended_at_ns: int


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """`downloads` came whole; `rate` has what came in each grain, in bits/s of content.

    `wrong_bytes` are not what the VM's file holds there: 0, or the measurement proves a fault.
    `broken` says why the session ended before its time; None: it did not.
    """

    downloads: int
    received_bytes: int
    wrong_bytes: int
    longest_gap: Gap
    rate: Series
    broken: str | None


@dataclass(frozen=True, slots=True)
class MediaResult:
    """Parts of a media stream: `late` came more than 10 ms after they were due.

    `missing` were never sent, as they were too late for use. `gaps` has the time since the part
    before at each arrival; `longest_gap` the longest, the time up to the end included; 10 ms is
    what is expected.
    """

    parts: int
    late: int
    missing: int
    received_bytes: int
    wrong_bytes: int
    longest_gap: Gap
    gaps: Series
    broken: str | None


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Messages on one open TCP session: `rtt` has each answered one's round trip, when sent.

    `longest_interruption` is the longest time without an answer, while one was awaited.
    """

    sent: int
    answered: int
    wrong_bytes: int
    longest_interruption: Gap
    rtt: Series
    broken: str | None


def longest_gap(began_ns: int, arrivals_ns: Sequence[int], ended_ns: int) -> Gap:
    """The longest time in which nothing came."""
    times = [began_ns, *arrivals_ns, max(ended_ns, arrivals_ns[-1] if arrivals_ns else 0)]
    length, at = max((after - before, after) for before, after in pairwise(times))
    return Gap(length, at)


def longest_interruption(sent_ns: Sequence[int], answered_ns: Sequence[int], ended_ns: int) -> Gap:
    """The longest time without an answer, from the first message that waited for it on.

    Args:
        sent_ns: when each message was sent, ascending.
        answered_ns: when the answer to each of the first was there, in the same order.
        ended_ns: when waiting for the others ended.
    """
    worst = Gap(0, ended_ns)
    before = 0
    for number, at_ns in enumerate([*answered_ns, ended_ns]):
        if number < len(sent_ns):
            length = at_ns - max(before, sent_ns[number])
            if length > worst.length_ns:
                worst = Gap(length, at_ns)
        before = at_ns
    return worst


def rate_series(
    name: str, began_ns: int, ended_ns: int, arrivals: Sequence[tuple[int, int]], grain_ns: int
) -> Series:
    """Bits/s in each grain from `began_ns` to `ended_ns`, the last one whole too.

    Args:
        name: the series'.
        began_ns: when the first grain begins.
        ended_ns: when the last one ends, or it is left out.
        arrivals: (time, bytes), ascending.
        grain_ns: how long each is.
    """
    count = max(0, (ended_ns - began_ns) // grain_ns)
    starts = tuple(began_ns + number * grain_ns for number in range(count))
    times = [at_ns for at_ns, _ in arrivals]
    bounds = [bisect_left(times, start) for start in (*starts, began_ns + count * grain_ns)]
    totals = (sum(size for _, size in arrivals[first:last]) for first, last in pairwise(bounds))
    return Series(name, "bit/s", starts, tuple(total * 8e9 / grain_ns for total in totals))
