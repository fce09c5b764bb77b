from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.measure.series import Series, parallel, sequential
from testbed.measure.theory import tcp_goodput_bps, tcp_payload_bytes

MBIT = 10**6


def rate(*points: tuple[int, float], name: str = "rate") -> Series:
    return Series(name, "bit/s", tuple(at for at, _ in points), tuple(v for _, v in points))


def test_streams_at_the_same_time_add_up_and_runs_after_one_another_do_not() -> None:
    early, late = rate((0, 100.0), (10, 100.0)), rate((20, 100.0), (30, 100.0))
    assert set(sequential("all", [late, early]).values) == {100.0}
    assert parallel("all", [early, early]).values == (200.0, 200.0)


def test_parallel_covers_only_the_time_when_all_ran() -> None:
    a, b = rate((0, 1.0), (10, 2.0), (20, 3.0)), rate((5, 10.0), (15, 20.0), (40, 5.0))
    assert parallel("sum", [a, b]) == rate(
        (5, 11.0), (10, 12.0), (15, 22.0), (20, 23.0), name="sum"
    )
    assert parallel("max", [a, b], max).values == (10.0, 10.0, 20.0, 20.0)


def test_what_ran_in_parallel_is_not_joined_as_a_sequence_and_the_other_way_round() -> None:
    a, b = rate((0, 1.0), (10, 1.0)), rate((20, 1.0), (30, 1.0))
    with pytest.raises(ValueError, match="parallel"):
        sequential("x", [a, a])
    with pytest.raises(ValueError, match="one after another"):
        parallel("x", [a, b])
    with pytest.raises(ValueError, match="different units"):
        sequential("x", [a, Series("rtt", "ns", (50,), (1.0,))])


@pytest.mark.parametrize(
    ("times", "values"), [((1, 2), (1.0,)), ((2, 1), (1.0, 1.0)), ((1, 1), (1.0, 2.0))]
)
def test_a_series_whose_times_make_no_sense_is_refused(
    times: tuple[int, ...], values: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="series x"):
        Series("x", "ns", times, values)


@given(
    st.sets(st.integers(0, 1000), min_size=1),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
def test_windows_side_by_side_hold_every_point_once(
    times: set[int], a: int, b: int, c: int
) -> None:
    whole = rate(*((at, float(at)) for at in sorted(times)))
    first, middle, last = sorted((a, b, c))
    halves = whole.window(first, middle), whole.window(middle, last)
    assert halves[0].at_ns + halves[1].at_ns == whole.window(first, last).at_ns
    assert all(first <= at < last for at in whole.window(first, last).at_ns)


def test_goodput_is_what_gigabit_ethernet_is_known_to_carry() -> None:
    assert tcp_payload_bytes(1500) == 1448
    assert tcp_payload_bytes(1500, 6) == 1428
    assert tcp_goodput_bps(1000 * MBIT, 1500) == pytest.approx(941.5 * MBIT, rel=1e-4)
    assert tcp_goodput_bps(1000 * MBIT, 9000) == pytest.approx(990.0 * MBIT, rel=1e-4)
