"""The content of files follows from where it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from testbed.content import content


@given(st.integers(0, 300_000), st.integers(0, 200_000), st.integers(0, 9))
def test_any_part_is_the_same_part_of_the_whole(offset: int, length: int, file: int) -> None:
    whole = content(7, file, 0, 500_000)
    assert content(7, file, offset, length) == whole[offset : offset + length]


def test_far_into_a_file() -> None:
    far = 2**40 + 5
    assert content(1, 2, far, 100)[3:] == content(1, 2, far + 3, 97)


def test_no_two_places_look_alike() -> None:
    """A byte shifted, lost or from another file does not pass for the right one."""
    one = content(7, 1, 0, 1 << 20)
    assert len({one[at : at + 16] for at in range(0, 1 << 20, 16)}) == 1 << 16
    for other in (content(7, 1, 1, 1 << 20), content(7, 2, 0, 1 << 20), content(8, 1, 0, 1 << 20)):
        same = sum(a == b for a, b in zip(one[:65536], other[:65536], strict=True))
        assert same < 65536 / 256 * 1.5
    assert max(map(one.count, (bytes([value]) for value in range(256)))) < (1 << 20) / 256 * 1.1
