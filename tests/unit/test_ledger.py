"""A host's CPU account: its limits hold, whoever works, and none of its processes can block it."""

from __future__ import annotations

import heapq
import os
import signal
import time
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import LabError
from testbed.ledger import BURST_NS, SLICE_NS, Cost, Ledger, book

if TYPE_CHECKING:
    from pathlib import Path

MHZ = 2260.0
CORE_HZ = MHZ * 1e6


@dataclass
class Host:
    """Workers that charge again and again, on simulated time."""

    share_cores: float
    host_cores: float
    core_hz: float = CORE_HZ
    clocks: tuple[int, ...] = (0, 0)
    own: dict[int, int] = field(default_factory=dict)
    done: list[tuple[int, int, int, float]] = field(default_factory=list)
    """(begin, end, worker, cycles), in the order in which they were charged."""

    def run(self, chunks: list[float], until_ns: int, idle_ns: tuple[int, ...] = (0,)) -> None:
        """Let worker number n charge chunks[n] until then, idling between two charges."""
        rates = (self.core_hz, self.share_cores * self.core_hz, self.host_cores * self.core_hz)
        waiting = [(0, number) for number in range(len(chunks))]
        while waiting:
            now, number = heapq.heappop(waiting)
            before = (self.own.get(number, 0), *self.clocks)
            (self.own[number], *after), wait = book(before, now, chunks[number], rates)
            self.clocks = tuple(after)
            self.done.append((now, now + wait, number, chunks[number]))
            again = now + wait + idle_ns[len(self.done) % len(idle_ns)] + 1
            if again < until_ns:
                heapq.heappush(waiting, (again, number))

    def cycles(self, number: int) -> float:
        return sum(cycles for _, _, who, cycles in self.done if who == number)


CHUNKS = st.lists(st.floats(1e6, 2e7), min_size=1, max_size=9)
CORES = st.floats(0.25, 8)
IDLE = st.lists(st.integers(0, 40_000_000), min_size=1, max_size=5).map(tuple)


@given(CHUNKS, CORES, CORES, IDLE)
def test_no_interval_holds_more_than_the_capacity(
    chunks: list[float], share_cores: float, host_cores: float, idle_ns: tuple[int, ...]
) -> None:
    host = Host(share_cores, host_cores)
    host.run(chunks, 100_000_000, idle_ns)
    hz = min(share_cores, host_cores) * CORE_HZ
    # From the begin of any charge to the end of any later one, by the least of all begins.
    taken_ns, least = 0.0, float("inf")
    for begin, end, _, cycles in host.done:
        least = min(least, taken_ns - begin)
        taken_ns += cycles / hz * 1e9
        assert taken_ns - end - least <= BURST_NS + 1


@given(CHUNKS, CORES, IDLE)
def test_a_worker_has_one_core(chunks: list[float], cores: float, idle_ns: tuple[int, ...]) -> None:
    host = Host(cores, 16)
    host.run(chunks, 100_000_000, idle_ns)
    for number in range(len(chunks)):
        own = [one for one in host.done if one[2] == number]
        allowed = CORE_HZ * (own[-1][1] + BURST_NS + 1) / 1e9
        assert host.cycles(number) <= allowed * (1 + 1e-9)


@given(st.lists(st.floats(1e3, 1e7), min_size=1, max_size=50), st.floats(100, 4000))
def test_half_the_megahertz_take_twice_as_long(charges: list[float], mhz: float) -> None:
    def takes_ns(hz: float) -> int:
        now, clocks = BURST_NS, tuple([0] * 3)
        for cycles in charges:
            clocks, wait = book(clocks, now, cycles, (hz, hz, 8 * hz))
            now += wait
        return clocks[0]  # since the burst: a wait begins once that is used up

    once, twice = takes_ns(mhz * 1e6), takes_ns(mhz * 5e5)
    assert twice == pytest.approx(2 * once, abs=2 * len(charges))


@given(CHUNKS, CORES, st.floats(1, 10), IDLE)
def test_a_limit_that_does_not_limit_changes_nothing(
    chunks: list[float], share_cores: float, wider: float, idle_ns: tuple[int, ...]
) -> None:
    narrow, wide = Host(share_cores, share_cores), Host(share_cores, share_cores * wider)
    for host in (narrow, wide):
        host.run(chunks, 100_000_000, idle_ns)
    assert narrow.done == wide.done


def test_eight_workers_share_a_core_and_fill_it() -> None:
    host = Host(1, 8)
    host.run([8e6] * 8, 2_000_000_000)  # 1 MiB at 8 cycles a byte
    each = [host.cycles(number) for number in range(8)]
    assert max(each) - min(each) <= 8e6
    assert sum(each) == pytest.approx(2 * CORE_HZ, rel=0.02)


def test_one_worker_gets_one_core_of_eight() -> None:
    host = Host(8, 8)
    host.run([8e6], 2_000_000_000)
    assert host.cycles(0) == pytest.approx(2 * CORE_HZ, rel=0.01)


@given(st.integers(0, 10**18), st.floats(0, 1e12))
def test_what_waits_for_nothing_is_at_most_the_burst(now_ns: int, cycles: float) -> None:
    """However long a host was idle."""
    _, wait = book((0,), now_ns + BURST_NS, cycles, (CORE_HZ,))
    assert wait >= cycles / CORE_HZ * 1e9 * (1 - 1e-9) - BURST_NS


def test_a_cost_counts_segments() -> None:
    cost = Cost(cycles_per_byte=8, cycles_per_packet=1000)
    assert cost.cycles(1448 * 10 + 1, 1448) == 8 * 14481 + 11 * 1000
    assert cost.cycles(0, 1448) == 0


# ---------------------------------------------------------------- the file


def open_ledger(path: Path, **share_cores: float) -> Ledger:
    return Ledger.open(path / "esx01.ledger", 8, MHZ, share_cores)


def test_shares_are_counted_apart(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with ledger.worker("vm") as guest, ledger.worker("management") as agent:
        guest.charge(300)
        guest.charge(0.4)
        agent.charge(50)
    assert Ledger.join(tmp_path / "esx01.ledger").used() == {
        "vmotion": 0,
        "vm": 300,
        "management": 50,
    }


def test_it_is_opened_anew_with_what_was_used(tmp_path: Path) -> None:
    open_ledger(tmp_path).worker("vmotion").charge(1000)
    ledger = Ledger.open(tmp_path / "esx01.ledger", 8, 10)
    assert ledger.used()["vmotion"] == 1000
    wait_ns = ledger.worker("vmotion").charge(10e6)  # a second, at 10 MHz
    assert 900_000_000 < wait_ns <= 1_000_000_000


def test_workers_of_a_share_wait_for_one_another_and_others_do_not(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger", 1000, MHZ, {"vmotion": 1})
    first, second = ledger.worker("vmotion"), ledger.worker("vmotion")
    other = ledger.worker("vm")
    assert 900_000_000 < first.charge(CORE_HZ) <= 1_000_000_000
    assert 1_900_000_000 < second.charge(CORE_HZ) <= 2_000_000_000
    assert other.charge(CORE_HZ / 1000) == 0  # within the burst


def test_work_of_any_size_is_settled_in_slices(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    worker, waits = ledger.worker("vmotion"), 0
    wait_ns = worker.settle(CORE_HZ / 10)
    while wait_ns:
        waits += 1
        wait_ns = worker.settle()
    assert ledger.used()["vmotion"] == pytest.approx(CORE_HZ / 10, abs=101)
    assert 0 < waits <= 101 - BURST_NS / SLICE_NS


@pytest.mark.parametrize("figures", [(0, MHZ, {}), (8, -1, {}), (8, MHZ, {"vmotion": 0})])
def test_impossible_hosts_are_refused(
    tmp_path: Path, figures: tuple[float, float, dict[str, float]]
) -> None:
    with pytest.raises(ValueError, match="a host of"):
        Ledger.open(tmp_path / "ledger", *figures)
    assert not (tmp_path / "ledger").exists()


def test_unknown_shares_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fault-tolerance"):
        Ledger.open(tmp_path / "ledger", 8, MHZ, {"fault-tolerance": 1})


def test_another_file_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("bread, milk")
    with pytest.raises(LabError, match="no ledger"):
        Ledger.join(tmp_path / "note")


def test_a_killed_process_leaves_nothing_locked(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        flock(os.open(tmp_path / "esx01.ledger", os.O_RDWR), LOCK_EX)
        os.write(told, b"!")
        while True:
            signal.pause()
    try:
        os.read(ready, 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)
    assert ledger.worker("vmotion").charge(1) == 0


def test_four_processes_get_the_capacity_together(tmp_path: Path) -> None:
    """One core for all of them; each charges a tenth of a millisecond at a time."""
    ledger = open_ledger(tmp_path, vmotion=1)
    begin_ns = time.monotonic_ns()
    pids = [fork_worker(ledger, begin_ns + 300_000_000) for _ in range(4)]
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    took_s = (time.monotonic_ns() - begin_ns + BURST_NS) / 1e9
    assert codes == [0] * 4
    used = ledger.used()["vmotion"]
    assert used <= took_s * CORE_HZ
    assert used >= 0.3 * CORE_HZ / 10  # a busy machine gives them little time


def fork_worker(ledger: Ledger, until_ns: int) -> int:
    """A process that works as fast as it is let, until then and its last wait is over."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        worker = ledger.worker("vmotion")
        while time.monotonic_ns() < until_ns:
            wait_ns = worker.settle(CORE_HZ / 10_000)
            while wait_ns:
                time.sleep(wait_ns / 1e9)
                wait_ns = worker.settle()
        code = 0
    finally:
        os._exit(code)
