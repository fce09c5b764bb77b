"""vCPUs get the share of their time that they are allowed; so do processes that don't cooperate."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from testbed.errors import InputError
from testbed.guest.duty_cycle import DutyCycle
from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Writer

pytestmark = pytest.mark.root

MIB = 1 << 20
SATURATED = GuestSpec("vm", 16 * MIB, 2, (Writer("uniform", 10**12, 8 * MIB),))


def sleep_for(share):
    return round(1e6 * (1 / share - 1))


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def once(condition):
    """Another program may have the CPU for a while, which the next try makes up for."""
    return any(condition() for _ in range(5))


def shares(guest, seconds):
    before = guest.counters()
    time.sleep(seconds)
    after = guest.counters()
    ran, slept = (after[word] - before[word] for word in ("run_ns", "throttled_ns"))
    return ran / (ran + slept)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_vcpu_gets_its_share(share):
    with Guest.power_on(SATURATED) as guest:
        guest.throttle(sleep_for(share))
        time.sleep(0.05)
        wanted = pytest.approx(share, abs=0.2 * min(1, 4 * share))
        assert once(lambda: shares(guest, 0.8) == wanted)
        assert not guest.counters()["idle_ns"].any()
        guest.throttle(None)
        guest.suspend()  # whoever sleeps for the throttle has ended that
        guest.resume()
        before = guest.counters()
        wait_until(lambda: min(guest.counters()["run_ns"] - before["run_ns"]) > 50_000_000)
        assert (guest.counters()["throttled_ns"] == before["throttled_ns"]).all()


def test_one_vcpu_is_throttled_alone_and_a_sleeping_one_stops_at_once():
    with Guest.power_on(SATURATED) as guest:
        guest.throttle(10**9, vcpu=1)  # a second for each millisecond
        wait_until(lambda: guest.counters()["throttled_ns"][1] > 20_000_000)
        assert guest.counters()["throttled_ns"][0] == 0
        guest.suspend(deadline_ns=500_000_000)
        guest.resume()
        guest.claim(1, deadline_ns=500_000_000)
        guest.release(1)


@pytest.fixture
def spinning():
    """A process that takes all the time that it gets."""
    pid = os.fork()
    if not pid:
        while True:
            pass
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def cpu_share(pid, seconds):
    """Of its own time and that in which it might have run: other processes take some, too."""

    def ticks():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")

    before, began = ticks(), time.monotonic()
    time.sleep(seconds)
    return (ticks() - before) / (time.monotonic() - began)


def test_a_process_gets_its_share_and_is_left_running(spinning):
    with DutyCycle([spinning], 0.2, period_ns=20_000_000) as cycle:
        assert once(lambda: cpu_share(spinning, 1.0) < 0.4)  # of a CPU that it shares
        cycle.share = 0.02
        assert once(lambda: cpu_share(spinning, 0.5) < 0.2)
        wait_until(lambda: state(spinning) == "T")
        cycle.share = 1
        wait_until(lambda: state(spinning) == "R")
        cycle.share = 0.02
    wait_until(lambda: state(spinning) == "R")
    time.sleep(0.05)
    assert state(spinning) == "R"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_cycle_that_is_ended_from_outside_leaves_nothing_stopped(spinning, number):
    with DutyCycle([spinning], 0.02, period_ns=50_000_000) as cycle:
        wait_until(lambda: state(spinning) == "T")
        os.kill(cycle.pid, number)
        wait_until(lambda: state(cycle.pid) == "Z")
        if number == signal.SIGTERM:
            wait_until(lambda: state(spinning) == "R")
    wait_until(lambda: state(spinning) == "R")


def test_processes_go_on_when_whoever_throttles_them_dies(spinning):
    owner = os.fork()
    if not owner:
        DutyCycle([spinning], 0.02, period_ns=50_000_000)
        signal.pause()
    wait_until(lambda: state(spinning) == "T")
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    for _ in range(3):
        wait_until(lambda: state(spinning) == "R")
        time.sleep(0.06)
    assert state(spinning) == "R"


def test_a_cycle_ends_with_the_last_of_its_processes():
    pid = os.fork()
    if not pid:
        signal.pause()
    with DutyCycle([pid], 0.5) as cycle:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_until(lambda: state(cycle.pid) == "Z")


@pytest.mark.parametrize(("share", "period_ns"), [(0, 10**7), (1.1, 10**7), (0.5, 10**6)])
def test_what_it_cannot_do_is_refused(share, period_ns):
    with pytest.raises(InputError, match="give"):
        DutyCycle([os.getpid()], share, period_ns)
