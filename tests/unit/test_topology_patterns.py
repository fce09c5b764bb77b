"""Host patterns: what they stand for, and that values vary in step with names."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.topology.patterns import MAX_VALUES, expand
from testbed.topology.problems import Refusal


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("esx[01-03]", ["esx01", "esx02", "esx03"]),
        ("esx[9-11]", ["esx9", "esx10", "esx11"]),
        ("tor-[a,b]", ["tor-a", "tor-b"]),
        ("leaf-[a-c]", ["leaf-a", "leaf-b", "leaf-c"]),
        ("r[1,2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("esx[01,05-06]", ["esx01", "esx05", "esx06"]),
        ("192.168.20.[11-12]/24", ["192.168.20.11/24", "192.168.20.12/24"]),
        ("fd00::[11-12]/64", ["fd00::11/64", "fd00::12/64"]),
        ("plain", ["plain"]),
    ],
)
def test_a_pattern_stands_for_its_values_in_order(pattern: str, values: list[str]) -> None:
    assert expand(pattern) == values


@pytest.mark.parametrize(
    "pattern",
    [
        "esx[01-02",
        "esx01-02]",
        "esx[]",
        "esx[1,]",
        "esx[[1]]",
        "esx[2-1]",
        "esx[c-a]",
        "esx[1-09]",
        "esx[a b]",
        "e[1-5000]",
        "e[1-100][1-100]",
        "e[000000001-999999999]",
    ],
)
def test_a_wrong_pattern_is_refused_and_shown(pattern: str) -> None:
    with pytest.raises(Refusal) as refusal:
        expand(pattern)
    assert pattern in refusal.value.message
    assert refusal.value.remedy


@settings(deadline=None)
@given(
    prefix=st.text("abc-", max_size=5),
    first=st.integers(0, 900),
    count=st.integers(1, 100),
    width=st.integers(4, 6),
    suffix=st.text("xyz", max_size=3),
)
def test_a_padded_range_has_every_number_once(
    prefix: str, first: int, count: int, width: int, suffix: str
) -> None:
    last = first + count - 1
    values = expand(f"{prefix}[{first:0{width}d}-{last:0{width}d}]{suffix}")
    numbers = [int(v.removeprefix(prefix)[:width]) for v in values]
    assert numbers == list(range(first, last + 1))
    assert {len(v) for v in values} == {len(prefix) + width + len(suffix)}


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), max_size=4))
def test_several_brackets_multiply(brackets: list[list[str]]) -> None:
    pattern = "n" + "".join(f"[{','.join(items)}]" for items in brackets)
    count = 1
    for items in brackets:
        count *= len(items)
    values = expand(pattern)
    assert len(values) == count
    assert set(values) >= {"n" + "".join(items[0] for items in brackets)}


@settings(deadline=None)
@given(st.text("ab0129-,[]", max_size=30))
def test_any_text_is_expanded_within_bounds_or_refused(text: str) -> None:
    try:
        values = expand(text)
    except Refusal:
        return
    assert 1 <= len(values) <= MAX_VALUES
