"""When pre-copy ends: on paper, against the published table, and never without end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.guest.specification import GuestSpec
from testbed.migration.convergence import decide, overdue, stun_ns, transmit_rate_bps
from testbed.migration.phase import (
    MigrationFailed,
    MigrationLost,
    MigrationUncertain,
    Phase,
    enter,
    failure,
)
from testbed.migration.sdps import SdpsSpec
from testbed.migration.specification import MigrationSpec
from testbed.report.result import Iteration

MB = 1024 * 1024  # the table's MB/s x s come out even in these


def spec(**changes):
    guest = GuestSpec("vm", 2048 * MB, 1)
    return MigrationSpec(1, bytes(32), guest, "10.0.0.1", "10.0.0.2", **changes)


def iterate(memory_bytes, rate, dirty_rate, limits, working_set=1 << 60):
    """Pre-copy on paper: rates in bytes per second; returns its iterations and the decision."""
    iterations, pages = [], memory_bytes // 4096
    while True:
        duration_ns = max(1, round(pages * 4096e9 / rate))
        dirty = min(round(duration_ns * dirty_rate / 4096e9), working_set // 4096)
        number = len(iterations) - 1
        iterations.append(
            Iteration(number, pages, pages * 4096, pages * 4096, 0, duration_ns, dirty, False)
        )
        decision = decide(iterations, limits)
        if decision.next != "copy":
            return iterations, decision
        pages = dirty


def test_the_published_table():
    """Facts row 20: R = 128 MB/s, D = 32 MB/s; 8 MB are left when the goal is 0.1 s."""
    limits = spec(switchover_goal_ns=100_000_000)
    iterations, decision = iterate(2048 * MB, 128 * MB, 32 * MB, limits)
    assert [it.pages * 4096 // MB for it in iterations] == [2048, 512, 128, 32]
    assert [round(it.duration_ns / 1e9, 2) for it in iterations] == [16, 4, 1, 0.25]
    assert iterations[-1].dirty_pages * 4096 // MB == 8
    assert decision.next == "switch over"


def test_the_published_table_stops_one_round_earlier_at_the_default_goal():
    iterations, decision = iterate(2048 * MB, 128 * MB, 32 * MB, spec())
    assert (iterations[-1].dirty_pages * 4096 // MB, decision.next) == (32, "switch over")


def test_the_published_table_of_a_vm_of_24_gb():
    """Facts row 43, at 10 Gb/s: 24 GB dirty 8, 8 dirty 3, 3 dirty 1; 1 GB left is copied, too."""
    gb, rate = 10**9 // 4096, 10**10
    iterations = []
    for number, (pages, dirty) in enumerate([(24, 8), (8, 3), (3, 1), (1, 0.33)], -1):
        size = pages * gb * 4096
        duration_ns = size * 8 * 10**9 // rate
        dirty_pages = round(dirty * gb)
        iterations.append(
            Iteration(number, pages * gb, size, size, 0, duration_ns, dirty_pages, False)
        )
        wanted = "copy" if number < 2 else "switch over"
        assert decide(iterations, spec()).next == wanted
    assert [it.number for it in iterations] == [-1, 0, 1, 2]
    ratios = [it.transmit_to_dirty_percent for it in iterations]
    assert [round(ratio) for ratio in ratios] == [300, 267, 300, 303]


def test_t2d_is_what_is_transmitted_for_what_is_dirtied():
    assert Iteration(0, 400, 0, 0, 0, 1, 100, False).transmit_to_dirty_percent == 400
    assert Iteration(0, 400, 0, 0, 0, 1, 0, False).transmit_to_dirty_percent is None


def slow_iterations():
    """Twice: 100 MB/s sent, 90 MB/s dirtied."""
    pages = 100 * MB // 4096
    return [Iteration(n, pages, 100 * MB, 0, 0, 10**9, pages * 9 // 10, False) for n in (-1, 0)]


def test_without_convergence_it_slows_down_or_resumes_early_or_fails():
    slow = slow_iterations()
    sdps = SdpsSpec(longest_sleep_ns=1000)
    assert decide(slow, spec()).next == "fail"
    assert decide(slow, spec(sdps=sdps)).next == "copy"
    assert decide(slow, spec(sdps=sdps), 999).next == "copy"
    assert decide(slow, spec(sdps=sdps), 1000).next == "fail"  # nothing more is to be done
    assert decide(slow, spec(quick_resume=True)).next == "resume early"
    assert decide(slow, spec(quick_resume=True, sdps=sdps), 10).next == "copy"
    assert decide(slow, spec(quick_resume=True, verify=True)).next == "fail"
    assert decide(slow, spec(sdps=sdps, max_iterations=2)).next == "fail"


def test_the_downtime_limit_is_for_all_that_crosses_the_path_in_the_stun():
    pages = 1 << 28  # 1 TiB at 10 GB/s
    iteration = Iteration(-1, pages, pages * 4096, 0, 0, pages * 4096 // 10, 1000, False)
    rest_ns = stun_ns([iteration], 1000, spec())
    assert rest_ns == pytest.approx(1000 * 4096 / 10, rel=1e-6)
    # 32 MB of bitmap (facts row 39) at 10 GB/s
    full = spec(bitmap="full")
    assert stun_ns([iteration], 1000, full) - rest_ns == pytest.approx((32 << 20) / 10, rel=1e-3)
    assert stun_ns([iteration], 1000, spec(remaining_pages="after resume")) == 0
    assert decide([iteration], full).next == "switch over"
    assert decide([iteration], spec(bitmap="full", downtime_limit_ns=10**6)).next == "copy"
    assert decide([iteration], spec(bitmap="compacted", downtime_limit_ns=10**6)).next != "copy"


def test_a_deadline_passes():
    assert not overdue(10**15, spec())
    assert not overdue(10**9, spec(deadline_ns=10**9))
    assert "1 s" in overdue(10**9 + 1, spec(deadline_ns=10**9))


def test_a_guest_faster_than_the_path_fails_and_says_why():
    iterations, decision = iterate(2048 * MB, 100 * MB, 90 * MB, spec())
    assert (decision.next, len(iterations)) == ("fail", 2)
    assert "94.4 MB/s" in decision.cause  # dirtied
    assert "105 MB/s" in decision.cause  # transmitted
    assert "dirty rate" in decision.remedy


def test_a_working_set_that_fits_the_goal_converges_however_fast_it_is_written():
    _, decision = iterate(2048 * MB, 100 * MB, 900 * MB, spec(), working_set=40 * MB)
    assert decision.next == "switch over"


def test_one_slow_iteration_is_forgiven_two_are_not():
    def iteration(number, duration_ns, dirty_pages):
        return Iteration(number, 100000, 100000 * 4096, 0, 0, duration_ns, dirty_pages, False)

    good, bad = (1_000_000_000, 60000), (1_000_000_000, 90000)
    for history, wanted in (
        ([good, bad], "copy"),
        ([bad, good], "copy"),
        ([bad], "copy"),
        ([good, bad, bad], "fail"),
    ):
        iterations = [iteration(n - 1, *it) for n, it in enumerate(history)]
        assert decide(iterations, spec()).next == wanted


@given(
    st.integers(MB, 1 << 40),
    st.integers(1000, 1 << 34),
    st.integers(0, 1 << 35),
    st.integers(1, 10**10),
)
def test_it_always_ends_and_never_switches_over_above_the_goal(size, rate, dirty_rate, goal_ns):
    limits = spec(switchover_goal_ns=goal_ns)
    iterations, decision = iterate(size, rate, dirty_rate, limits)
    assert len(iterations) <= limits.max_iterations
    last = iterations[-1]
    if decision.next == "switch over":
        reference = next((it for it in reversed(iterations) if it.pages >= 1024), iterations[0])
        rest_ns = last.dirty_pages * 4096 * 8e9 / reference.throughput_bps
        assert rest_ns <= goal_ns


def test_a_guest_whose_pages_come_after_it_runs_cannot_fail_back():
    assert enter(Phase.RESUME, Phase.COMPLETED) is Phase.COMPLETED
    with pytest.raises(ValueError, match="cannot follow"):
        enter(Phase.PAGE_IN, Phase.FAILED)
    for phase, kind in (
        (Phase.PRECOPY, MigrationFailed),
        (Phase.RESUME, MigrationUncertain),
        (Phase.PAGE_IN, MigrationLost),
    ):
        assert type(failure(phase, "db01", "a wire broke", ())) is kind


def test_phases_follow_one_another_and_a_resumed_guest_cannot_fail():
    phase = Phase.CONNECT
    for following in list(Phase)[1:-1]:
        phase = enter(phase, following)
    for illegal in ((Phase.RESUME, Phase.FAILED), (Phase.CONNECT, Phase.RESUME)):
        with pytest.raises(ValueError, match="cannot follow"):
            enter(*illegal)


@pytest.mark.parametrize(
    "wrong",
    [{"secret": b"short"}, {"migration_id": 0}, {"switchover_goal_ns": 0}, {"timeout_ns": 0}],
)
def test_a_specification_that_cannot_be_is_refused(wrong):
    fields = {"migration_id": 1, "secret": bytes(32), **wrong}
    with pytest.raises(ValueError, match=r"must|bits"):
        MigrationSpec(
            guest=GuestSpec("vm", MB, 1),
            source_address="10.0.0.1",
            destination_address="10.0.0.2",
            **fields,
        )
    assert "secret" not in repr(spec())


def test_pages_that_are_told_instead_of_sent_make_no_path_faster():
    """1 GiB of which 64 MiB are not zero, in half a second: 128 MiB/s, not 2 GiB/s."""
    pages, zero = 1 << 18, (1 << 18) - (1 << 14)
    sent = Iteration(-1, pages, 64 << 20, 64 << 20, 0, 500_000_000, 8192, False, zero)
    assert transmit_rate_bps([sent]) == sent.throughput_bps == (128 << 20) * 8
    assert sent.transmit_to_dirty_percent == 200
    # Of a VM that is nearly all zero too little is sent to tell.
    empty = Iteration(-1, pages, 5 * 4096, 25000, 0, 500_000_000, 5, False, pages - 5)
    assert transmit_rate_bps([empty]) == (2 << 30) * 8
    assert decide([empty], spec()).next == "switch over"


def test_a_path_of_which_nothing_is_known_is_tried_before_the_stun():
    """A VM that was all zero has written 200 MB: at 100 Mb/s that takes 16 s, not 0.1."""
    pages, dirty = 1 << 18, 200 * MB // 4096
    empty = Iteration(-1, pages, 5 * 4096, 25000, 0, 500_000_000, dirty, False, pages - 5)
    assert decide([empty], spec()).next == "copy"
    sent = Iteration(0, dirty, 200 * MB, 200 * MB, 0, 16_000_000_000, 2 * 2560, False)
    assert stun_ns([empty, sent], 2 * 2560, spec()) > 10**9
    assert decide([empty, sent], spec()).next == "copy"
    still = Iteration(0, dirty, 0, 25000, 0, 500_000_000, dirty, False, dirty)  # zeros again
    assert decide([empty, still], spec()).next == "switch over"
