"""Quantities keep their value through text, and nonsense is refused with an example."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import units


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [("10Gbit", 10**10), ("2.5Gbit", 2_500_000_000), ("100 Mbit", 10**8), ("9600bps", 9600)],
)
def test_a_rate_is_in_decimal_bits_per_second(text: str, rate_bps: int) -> None:
    assert units.parse_rate_bps(text) == rate_bps


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1GiB", 2**30), ("1GB", 10**9), ("1.5MiB", 3 * 2**19), ("0B", 0), ("64kB", 64_000)],
)
def test_a_size_tells_powers_of_1024_from_powers_of_1000(text: str, size_bytes: int) -> None:
    assert units.parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_ns"), [("500ms", 5 * 10**8), ("1.5us", 1500), ("2min", 12 * 10**10)]
)
def test_a_duration_is_in_nanoseconds(text: str, duration_ns: int) -> None:
    assert units.parse_duration_ns(text) == duration_ns


def test_a_share_is_exact() -> None:
    assert units.parse_percent("0.1%") == Fraction(1, 1000)
    with pytest.raises(ValueError, match="more than 100%"):
        units.parse_percent("101%")


@pytest.mark.parametrize(("text", "scale"), [("1", Fraction(1)), ("1/10", Fraction(1, 10))])
def test_a_scale_is_one_over_a_whole_number(text: str, scale: Fraction) -> None:
    assert units.parse_scale(text) == scale


@pytest.mark.parametrize("text", ["2", "2/3", "1/0", "0", "1/-2", "10", "1/1.5"])
def test_no_other_scale_is_taken(text: str) -> None:
    with pytest.raises(ValueError, match="write it like"):
        units.parse_scale(text)


PARSERS = [
    units.parse_rate_bps,
    units.parse_size_bytes,
    units.parse_rate_bytes_per_s,
    units.parse_duration_ns,
    units.parse_percent,
    units.parse_scale,
]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "text", ["", "-1GB", "1e3MB", "10", "ten", "1 000MB", "\u0661GB", "9" * 5000]
)
def test_nonsense_is_refused_in_a_short_message(parse: object, text: str) -> None:
    with pytest.raises(ValueError, match="; ") as refusal:
        parse(text)  # type: ignore[operator]
    assert len(str(refusal.value)) < 150


@pytest.mark.parametrize("parse", PARSERS)
@settings(deadline=None)
@given(text=st.text())
def test_any_text_is_a_quantity_or_a_value_error(parse: object, text: str) -> None:
    try:
        value = parse(text)  # type: ignore[operator]
    except ValueError:
        return
    assert value >= 0


def test_a_fraction_of_a_bit_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of bits"):
        units.parse_rate_bps("1.5bps")


@settings(deadline=None)
@given(st.integers(0, 10**12))
def test_whole_bytes_survive_the_way_through_text(size_bytes: int) -> None:
    assert units.parse_size_bytes(f"{size_bytes}B") == size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_rate(9_870_000_000), "9.87 Gbit/s"),
        (units.format_rate(999_900_000), "1000 Mbit/s"),
        (units.format_size(3 * 2**29), "1.5 GiB"),
        (units.format_byte_rate(4e8), "400 MB/s"),
        (units.format_duration(6_120_000), "6.12 ms"),
        (units.format_duration(12), "12 ns"),
        (units.format_duration(999_700), "1000 us"),
        (units.format_duration(1500 * 10**9), "1500 s"),
    ],
)
def test_quantities_read_well(text: str, expected: str) -> None:
    assert text == expected
