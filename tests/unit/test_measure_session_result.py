"""Gaps, interruptions and rates from times of arrival."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from testbed.measure.session_result import (
    Gap,
    longest_gap,
    longest_interruption,
    rate_series,
)


def test_the_longest_gap_may_be_the_first_or_the_last() -> None:
    assert longest_gap(0, [50, 60, 70], 80) == Gap(50, 50)
    assert longest_gap(0, [5, 60, 70], 80) == Gap(55, 60)
    assert longest_gap(0, [5, 10, 15], 80) == Gap(65, 80)
    assert longest_gap(0, [], 80) == Gap(80, 80)


def test_an_interruption_counts_from_the_first_message_that_waits() -> None:
    # Sent every 10, answered after 1: nothing stands still, though answers are 10 apart.
    assert longest_interruption([0, 10, 20], [1, 11, 21], 30) == Gap(1, 1)
    # From 10 on no answers until 48, then all at once.
    assert longest_interruption([0, 10, 20, 30, 40], [1, 48, 48, 48, 48], 50) == Gap(38, 48)
    # The last two are never answered.
    assert longest_interruption([0, 10, 20], [1], 100) == Gap(90, 100)
    assert longest_interruption([], [], 100) == Gap(0, 100)


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 10**6)), max_size=50),
    st.integers(1, 3000),
)
def test_a_rate_series_loses_no_byte(arrivals: list[tuple[int, int]], grain_ns: int) -> None:
    arrivals.sort()
    series = rate_series("x", 0, 10_001 + grain_ns, arrivals, grain_ns)
    counted = sum(value * grain_ns / 8e9 for value in series.values)
    assert abs(counted - sum(size for _, size in arrivals)) < 1
    assert series.at_ns[0] == 0
    assert all(b - a == grain_ns for a, b in zip(series.at_ns, series.at_ns[1:], strict=False))
