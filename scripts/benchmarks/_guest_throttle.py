"""How much of its time a throttled vCPU gets, and a process that is stopped and continued."""

from __future__ import annotations

import os
import signal
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from _row import Row, row

from testbed.guest.duty_cycle import DutyCycle
from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUNS = 2
_SHARES = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)
# Long enough that a pause of the machine, which counts as run and is slept for, has evened out.
_MEASURED_S, _UNTHROTTLED_S, _SETTLING_S = 1.0, 0.2, 0.1
_MOST_POINTS = 2.0
_ACCOUNTS = (("its own account", True), ("CPU time", True), ("work done", False))
_MIB = 1 << 20
# A writer that is asked for more than a CPU can do is never idle.
_BUSY = GuestSpec("bench", 16 * _MIB, 1, (Writer("uniform", 10**11, 8 * _MIB),))


def throttle(runs: int | None) -> list[Row]:
    """The share asked for and the share there was, in points (%).

    Of a vCPU that is never idle: by its own account, run / (run + throttled); by the CPU time that
    the kernel counted, which other load makes less, and what the vCPU does in order to sleep more;
    and, without a bar, by what it got done, against what it did unthrottled just before. Of a
    process that spins, by the duty cycle: the CPU time that the kernel counted.
    """
    count, rows = runs or _RUNS, []
    with Guest.power_on(_BUSY) as guest:
        for share in _SHARES:
            found = [_throttled(guest, share) for _ in range(count)]
            for number, (name, bar) in enumerate(_ACCOUNTS):
                values = [one[number] for one in found]
                rows.append(_row(f"sleep word, {name}", share, values, bar=bar))
    with _spinning() as pid:
        for share in _SHARES:
            with DutyCycle([pid], share):
                time.sleep(_SETTLING_S)
                values = [_used(pid) for _ in range(count)]
            rows.append(_row("SIGSTOP duty cycle", share, values, bar=True))
    return rows


def _throttled(guest: Guest, share: float) -> tuple[float, ...]:
    """The share by each of the accounts."""
    guest.throttle(None)
    full, _ = _while_asleep(guest, _UNTHROTTLED_S)
    guest.throttle(round(1e6 * (1 / share - 1)))
    found, passed_ns = _while_asleep(guest, _MEASURED_S)
    ran, throttled, pages, cpu_ns = found
    own = ran / (ran + throttled)
    work = pages / (ran + throttled) / (full[2] / (full[0] + full[1]))
    return own, cpu_ns / passed_ns, work


def _while_asleep(guest: Guest, measured_s: float) -> tuple[tuple[float, ...], float]:
    """How much is added meanwhile: ns run, ns throttled, pages written, ns of CPU; the time."""
    time.sleep(_SETTLING_S)
    before, began_ns = _counted(guest), time.monotonic_ns()
    time.sleep(measured_s)
    after, ended_ns = _counted(guest), time.monotonic_ns()
    return tuple(b - a for a, b in zip(before, after, strict=True)), ended_ns - began_ns


def _counted(guest: Guest) -> tuple[float, ...]:
    vcpu, task = guest.counters()[0], guest.task_counters()[0, 0]
    words = float(vcpu["run_ns"]), float(vcpu["throttled_ns"]), float(task["pages_written"])
    return *words, float(_schedstat(guest.pids[0])[0])


def _used(pid: int) -> float:
    """The share of a CPU that a process has."""
    before, began_ns = _schedstat(pid), time.monotonic_ns()
    time.sleep(_MEASURED_S)
    after, ended_ns = _schedstat(pid), time.monotonic_ns()
    return (after[0] - before[0]) / (ended_ns - began_ns)


def _schedstat(pid: int) -> tuple[int, ...]:
    """For how long a process has run, and waited for a CPU, in ns; how often it ran."""
    return tuple(map(int, Path(f"/proc/{pid}/schedstat").read_text().split()))


@contextmanager
def _spinning() -> Iterator[int]:
    """A process that takes all the time that it gets."""
    pid = os.fork()
    if not pid:
        while True:
            pass
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _row(name: str, share: float, found: list[float], *, bar: bool) -> Row:
    asked, value = 100 * share, 100 * statistics.median(found)
    name, peer = f"{name}, {asked:g} %", ("asked", asked)
    if not bar:
        return row(name, value, "%", len(found), peer=peer)
    return row(
        name, value, "%", len(found), peer=peer,
        bar=f"within {_MOST_POINTS:g} points", met=abs(value - asked) <= _MOST_POINTS,
    )  # fmt: skip
