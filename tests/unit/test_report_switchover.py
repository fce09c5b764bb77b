"""A result says what its stun was made of, and why it was longer than it should have been."""

from __future__ import annotations

from dataclasses import replace

from testbed.report.post_copy import PostCopyReport
from testbed.report.result import EngineReport, Iteration, Slowdown, Switchover
from testbed.report.switchover_figures import switchover_rows, why_over_goal

MS = 10**6
PARTS = Switchover(80 * MS, 5 * MS, 500 * MS, "full", 32 << 20, 300 * MS, 0)
ENGINE = EngineReport(
    iterations=(
        Iteration(-1, 1000, 4096000, 4096000, 0, 100 * MS, 10, False),
        Iteration(0, 10, 40960, 41000, 100 * MS, 500 * MS, 0, True),
    ),
    samples=(),
    streams=(),
    prepare_ns=1,
    total_ns=700 * MS,
    stun_ns=510 * MS,
    guest_gap_ns=511 * MS,
    tracking="pagemap",
    source_cpu_ns=1,
    destination_cpu_ns=1,
    switchover=PARTS,
)


def names(engine, goal_ns=10**9):
    return [name for name, *_ in switchover_rows(engine, goal_ns)]


def test_a_stun_over_the_goal_says_what_it_was_made_of():
    why = why_over_goal(ENGINE, 100 * MS)
    assert why.startswith("by 410 ms: 5 ms until")
    assert "500 ms for 10 pages and the full bitmap of 32 MiB (estimated: 80 ms)" in why
    assert "5 ms until it ran" in why
    assert "Stun over the goal" in names(ENGINE, 100 * MS)


def test_a_stun_within_the_goal_needs_no_reason():
    assert why_over_goal(ENGINE, 510 * MS) == ""
    assert why_over_goal(replace(ENGINE, stun_ns=None), 1) == ""
    assert names(ENGINE) == ["Switchover", "Bitmap"]


def test_only_what_happened_is_told():
    assert names(replace(ENGINE, switchover=None)) == []
    slowed = replace(ENGINE, slowdowns=(Slowdown(2, 1, 1_000_000, 1e7, 2e7),))
    name, value, meaning = switchover_rows(slowed, 10**9)[0]
    assert (name, value) == ("SDPS", "1 steps from iteration 2 on; vCPUs at 50.0%")
    assert "20 MB/s" in meaning
    fetched = PostCopyReport(90, 80, 10, 4, 0, 10**6, 3, 2, MS, MS, 2 * MS, 1, 1, 7 * MS, "cut")
    *_, (name, value, meaning) = switchover_rows(replace(ENGINE, post_copy=fetched), 10**9)
    assert value == "90 pages in 7 ms, 10 on demand; 4 by file, as cut"
    zero = replace(ENGINE.iterations[0], zero_pages=600)
    assert names(replace(ENGINE, iterations=(zero, ENGINE.iterations[1])))[0] == "Zero pages"


def test_what_stayed_in_the_swap_file_is_told():
    swapped = replace(PARTS, swapped_pages=131069, swap_bitmap_bytes=557056)
    *_, (name, value, meaning) = switchover_rows(replace(ENGINE, switchover=swapped), 10**9)
    assert (name, value) == ("Swapped pages", "131,069 in the swap file")
    assert meaning == "not sent: the swap bitmap and slots, 544 KiB, were"
