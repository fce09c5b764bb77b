"""In which order missing pages are sent, and how many at a time."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.migration.backlog import Backlog
from testbed.migration.push_window import LEAST_PAGES, PushWindow


@settings(max_examples=50)
@given(st.data())
def test_each_page_is_taken_once_and_what_is_demanded_first(data):
    pages = sorted(data.draw(st.sets(st.integers(0, 5000), max_size=300)))
    backlog = Backlog(np.array(pages, np.int64))
    taken, demanded = [], []
    while backlog.left:
        if data.draw(st.booleans()):
            wanted = data.draw(st.lists(st.sampled_from(pages), max_size=4))
            demanded += [page for page in wanted if page not in {*taken, *demanded}]
            demanded = list(dict.fromkeys(demanded))
            backlog.demand(wanted)
        assert backlog.is_demanded == bool(demanded)
        most = data.draw(st.integers(1, 20))
        found = backlog.take(most).tolist()
        assert found == sorted(found)
        assert 0 < len(found) <= most
        if demanded:
            assert found == sorted(demanded[:most])
            del demanded[:most]
        taken += found
        assert backlog.left == len(pages) - len(taken)
    assert sorted(taken) == pages
    assert not len(backlog.take(5))


def test_the_push_goes_on_behind_what_was_demanded_and_round_to_the_start():
    backlog = Backlog(np.arange(0, 10000, 2))
    assert backlog.take(3).tolist() == [0, 2, 4]
    backlog.demand([9990])
    assert backlog.take(3).tolist() == [9990]
    assert backlog.take(3).tolist() == [9992, 9994, 9996]
    assert backlog.take(3).tolist() == [9998]
    assert backlog.take(3).tolist() == [6, 8, 10]
    assert backlog.demanded == 1


def under_way(pages_per_ms, delay_ms, rounds_ms=3000, noise=None):
    """Push over a path; the window, and how long a page took, at its end."""
    window, path, free_ms, took = PushWindow(), deque(), 0.0, []
    random = np.random.default_rng(2)
    placed = 0
    for step in range(rounds_ms * 10):
        now = step / 10
        while path and path[0][0] <= now:
            _, pages, sent_ms = path.popleft()
            placed += pages
            took.append(now - sent_ms)
            window.has_placed(placed, round(now * 1e6))
        while not window.full:
            pages = window.frame_pages
            free_ms = max(free_ms, now) + pages / pages_per_ms
            late = 0.0 if noise is None else random.exponential(noise)
            path.append((free_ms + delay_ms + late, pages, now))
            window.has_sent(pages, round(now * 1e6))
    return window, placed / rounds_ms, sum(took[-500:]) / len(took[-500:])


@pytest.mark.parametrize(("pages_per_ms", "delay_ms"), [(29, 0.2), (29, 10), (290, 0.2), (290, 5)])
def test_the_window_fills_a_path_and_queues_little(pages_per_ms, delay_ms):
    """1 and 10 Gb/s, near and far."""
    _, rate, took_ms = under_way(pages_per_ms, delay_ms)
    assert rate > 0.7 * pages_per_ms
    assert took_ms < delay_ms * 1.5 + 2


def test_a_slow_path_holds_no_more_than_the_least():
    window, rate, took_ms = under_way(2.9, 0.1)
    assert window.pages <= 2 * LEAST_PAGES
    assert rate > 2.5
    assert took_ms < 2 * LEAST_PAGES / 2.9


def test_single_late_pages_do_not_close_the_window():
    _, rate, _ = under_way(29, 1, noise=0.5)
    assert rate > 10
