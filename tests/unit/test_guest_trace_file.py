"""A trace file says what it says: round trips, and mistakes told with line, cause and remedy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.guest.trace_file import parse, read, render
from testbed.guest.workloads import TraceRange

HEADER = "at_s,until_s,first_page,pages,rate\n"

ranges = st.builds(
    lambda at, length, first, pages, rate: TraceRange(at, at + length, first, pages, rate),
    st.integers(0, 10**14),
    st.integers(1, 10**14),
    st.integers(0, 10**12 - 1),
    st.integers(1, 10**12 - 1),
    st.integers(1, 10**15 - 1),
)


@given(st.lists(ranges, min_size=1).map(tuple), st.text("a #,\n"))
def test_a_trace_comes_back_as_it_was(trace, comment):
    assert parse(render(trace, comment), "t.csv") == trace


def test_people_write_it_with_comments_spaces_and_units():
    text = f"# a backup\n\n{HEADER}  # begins\n0, 1.5, 0, 25600, 100MB/s\n1.5,2,4096,128,512 kB/s\n"
    assert parse(text, "t.csv") == (
        TraceRange(0, 1_500_000_000, 0, 25600, 100_000_000),
        TraceRange(1_500_000_000, 2_000_000_000, 4096, 128, 512_000),
    )


def test_all_mistakes_are_told_at_once_each_with_its_line():
    text = (
        HEADER + "0,1,0,1,1MB/s\n"
        "x,1,0,1,1MB/s\n"
        "0,1,-5,many,1MB/s\n"
        "0,1,0,1,100\n"
        "2,1,0,1,1MB/s\n"
        "# a comment counts as a line\n"
        "0,1,0,1\n"
        "0,1.5s,0,0,0B/s\n"
    )
    with pytest.raises(InputError) as caught:
        parse(text, "t.csv")
    assert str(caught.value).splitlines() == [
        "t.csv:3:1: at_s: 'x' is not a time; write seconds since the beginning, like 1.5",
        "t.csv:4:5: first_page: '-5' is not a whole number; write it like 4096",
        "t.csv:4:8: pages: 'many' is not a whole number; write it like 4096",
        "t.csv:5:9: rate: '100' is not a byte rate; write it like 400MB/s",
        "t.csv:6:3: until_s: it ends at 1 s, but begins at 2 s; let it end later",
        "t.csv:8:1: 4 values where there are 5 columns; give at_s,until_s,first_page,pages,rate",
        "t.csv:9:3: until_s: '1.5s' is not a time; write seconds since the beginning, like 1.5",
        "t.csv:9:10: pages: 0 writes nothing; give at least 1, or leave the line out",
        "t.csv:9:12: rate: 0B/s writes nothing; give at least 1, or leave the line out",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv:1:1: no header; begin with"),
        ("0,1,0,1,1MB/s\n", "t.csv:1:1: '0,1,0,1,1MB/s' is not the header; begin with"),
        (HEADER, "t.csv:1:1: the trace has no range"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(text, message):
    with pytest.raises(InputError) as caught:
        parse(text, "t.csv")
    assert str(caught.value).startswith(message)


@given(st.text("0123456789.,ans_-#\nMB/ \x00é"))
def test_whatever_is_in_it_a_line_is_told_or_it_is_taken(text):
    try:
        assert parse(HEADER + text, "t.csv")
    except InputError as error:
        assert all(line.startswith("t.csv:") for line in str(error).splitlines())  # noqa: PT017


def test_a_file_that_is_not_there_or_not_text_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: No such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not text"):
        read(tmp_path / "binary")
    (tmp_path / "good").write_text(HEADER + "0,1,0,1,1MB/s\n")
    assert len(read(tmp_path / "good")) == 1
