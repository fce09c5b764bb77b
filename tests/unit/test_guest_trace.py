"""How a way to trace pages is asked for."""

import pytest

from testbed.guest.trace import TraceMode, describe_mode, parse_mode


@pytest.mark.parametrize("stop", ["loose", "stop-based"])
@pytest.mark.parametrize("granularity", ["4KiB", "2MiB", "1GiB"])
def test_a_mode_reads_as_it_is_written(stop, granularity):
    mode = parse_mode(f"{stop}/{granularity}")
    assert mode == TraceMode(stop, granularity)
    assert describe_mode(mode) == f"{stop}/{granularity}"


def test_pages_are_of_4_kib_unless_said():
    assert parse_mode("loose") == TraceMode("loose", "4KiB")


@pytest.mark.parametrize("text", ["", "tight", "loose/4KB", "loose/1GiB/2MiB", "/4KiB"])
def test_what_is_none_is_refused_with_what_may_be_written(text):
    with pytest.raises(ValueError, match=r"stop-based or loose, .*loose/1GiB"):
        parse_mode(text)
