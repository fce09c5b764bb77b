"""SDPS on paper: guests that dirty faster than the path are slowed until pre-copy ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.migration.sdps import SdpsSpec, slow_down

MB = 10**6
SPEC = SdpsSpec()


def share(sleep_ns):
    return 1e6 / (1e6 + (sleep_ns or 0))


@dataclass
class PaperGuest:
    """Writes random pages: at `busy` when it has all of its time, but no more than at `pace`."""

    busy: float
    pace: float = math.inf
    working_set: float = math.inf

    def dirties(self, seconds, sleep_ns):
        """Distinct bytes in this time."""
        written = min(self.pace, self.busy * share(sleep_ns)) * seconds
        if math.isinf(self.working_set):
            return written
        return self.working_set * -math.expm1(-written / self.working_set)


@dataclass
class Precopy:
    """An iteration: what was sent at which rate, what was dirtied, and the sleep after it."""

    sent: float
    dirty: float
    seconds: float
    sleep_ns: int | None


def precopy(guest, rate, memory, spec=SPEC, most=40):
    """Iterate until the rest fits the goal of 500 ms; the guest sleeps as SDPS says."""
    done, left, sleep_ns = [], memory, None
    while left > rate / 2 or not done:
        assert len(done) < most, "it does not converge"
        seconds = left / rate
        dirty = guest.dirties(seconds, sleep_ns)
        sleep_ns = slow_down(rate, dirty / seconds, sleep_ns, spec)
        done.append(Precopy(left, dirty, seconds, sleep_ns))
        left = dirty
    return done


def test_a_guest_that_always_writes_is_at_its_target_after_one_iteration():
    # 10 Gb/s against 4 GB/s: it has to get to 250 MB/s, a sixteenth.
    sleep_ns = slow_down(1250 * MB, 4000 * MB, None, SPEC)
    assert share(sleep_ns) == pytest.approx(1 / 16)
    guest = PaperGuest(4000 * MB)
    assert guest.dirties(1, sleep_ns) == pytest.approx(250 * MB)
    assert slow_down(1250 * MB, 250 * MB, sleep_ns, SPEC) == pytest.approx(sleep_ns)
    done = precopy(guest, 1250 * MB, 16_000 * MB)
    # All of memory dirtied three times over in the first, then a fifth each time.
    sent = [it.sent / MB for it in done]
    assert sent == pytest.approx([16000, 51200, 10240, 2048], rel=1e-3)


@pytest.mark.parametrize("slack", [1, 2, 5, 20, 50])
def test_a_paced_guest_with_slack_is_slowed_until_it_feels_it(slack):
    """It would write `slack` times as fast if it were not paced: so little time does it need."""
    pace = 400 * MB
    guest = PaperGuest(pace * slack, pace, 2000 * MB)
    done = precopy(guest, 125 * MB, 4000 * MB)
    assert len(done) <= 10
    last = done[-1]
    assert last.dirty / last.seconds <= 125 * MB / 1.3
    assert guest.dirties(1, last.sleep_ns) <= 0.9 * guest.dirties(1, None)


def test_a_working_set_that_is_written_over_and_over_converges_too():
    """The dirty rate of a long iteration shows the working set, not how fast it is written."""
    done = precopy(PaperGuest(1000 * MB, working_set=500 * MB), 100 * MB, 4000 * MB)
    assert done[0].sleep_ns is None  # 500 MB in 40 s: no need yet
    assert len(done) <= 10


def test_what_advances_by_itself_is_never_slowed():
    for dirty in (0, 10 * MB, 96 * MB):
        assert slow_down(125 * MB, dirty, None, SPEC) is None
    assert slow_down(125 * MB, 97 * MB, None, SPEC) is not None
    assert slow_down(125 * MB, 97 * MB, None, SPEC, min_progress_percent=120) is None


def test_a_guest_that_calms_down_is_released():
    guest, calm = PaperGuest(2000 * MB, working_set=1000 * MB), PaperGuest(1 * MB)
    sleep_ns = slow_down(125 * MB, guest.dirties(1, None), None, SPEC)
    slept = [sleep_ns]
    while sleep_ns is not None:
        sleep_ns = slow_down(125 * MB, calm.dirties(1, sleep_ns), sleep_ns, SPEC)
        slept.append(sleep_ns)
        assert len(slept) < 10
    assert slept[:-1] == sorted(slept[:-1], reverse=True)


def test_one_iteration_without_a_write_does_not_let_go_at_once():
    sleep_ns = slow_down(125 * MB, 1000 * MB, None, SPEC)
    assert share(slow_down(125 * MB, 0, sleep_ns, SPEC)) == pytest.approx(2 * share(sleep_ns))


def test_it_never_sleeps_for_longer_than_the_most():
    assert slow_down(1 * MB, 100_000 * MB, None, SPEC) == 299_000_000
    assert slow_down(0, 1, None, SPEC) == 299_000_000
    short = SdpsSpec(longest_sleep_ns=3_000_000)
    assert slow_down(1 * MB, 100_000 * MB, None, short) == 3_000_000
    with pytest.raises(AssertionError, match="converge"):
        precopy(PaperGuest(1000 * MB), 125 * MB, 4000 * MB, short)
    assert precopy(PaperGuest(1000 * MB), 125 * MB, 4000 * MB)


@given(
    rate=st.floats(1 * MB, 12_500 * MB),
    times=st.floats(0, 60),
    slack=st.floats(1, 50),
    memory_s=st.floats(0.01, 1000),
    written=st.floats(0.05, 1),
)
def test_whatever_can_be_slowed_enough_converges_in_few_iterations(
    rate, times, slack, memory_s, written
):
    """`times` is the dirty rate over the rate."""
    memory = memory_s * rate
    pace = times * rate
    busy = min(pace * slack, 60 * rate)  # at its least it is far below the rate
    done = precopy(PaperGuest(busy, pace, memory * written), rate, memory, most=20)
    for it in done:
        assert it.sleep_ns is None or 0 < it.sleep_ns <= SPEC.longest_sleep_ns
    if times <= 1 / 1.3:
        assert not any(it.sleep_ns for it in done)


@pytest.mark.parametrize("wrong", [{"target_percent": 99}, {"longest_sleep_ns": 0}], ids=str)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"less|above"):
        SdpsSpec(**wrong)
