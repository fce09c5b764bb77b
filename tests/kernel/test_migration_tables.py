"""A published table of pre-copy (vmotion-facts.md, row 20) on a real transfer."""

from __future__ import annotations

import operator
import time

import pytest

from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Writer
from testbed.migration.source import migrate
from tests.kernel.migration_pair import destination, joined, run, specification, starting

pytestmark = [pytest.mark.root, pytest.mark.needs_feature("pagemap_scan")]

MIB = 1 << 20
PUBLISHED_MB = [
    2048,
    512,
    128,
    32,
]  # copied before the cut-off, which is as short as a timer's tick
DIVISOR = 48
RATE = 16 * MIB  # a second; 134 Mb/s, which any machine carries
TRIES = 3
WRITTEN_LATE_MB = (
    RATE // 4 / MIB * DIVISOR * 0.02
)  # in the 20 ms that a busy machine takes at times


def bytes_sent(names):
    """Of each iteration, at full size; a guest that writes a quarter of what the link carries."""
    writer = Writer("sequential", RATE // 4, 40 * MIB)
    guest = GuestSpec("vm", 2048 * MIB // DIVISOR // 4096 * 4096, 1, (writer,))
    spec = specification(guest=guest, switchover_goal_ns=20_000_000)

    def work(tell, told):
        with Guest.power_on(spec.guest) as guest:
            tell("on")
            told.recv(10)
            time.sleep(0.1)
            return [one.memory_bytes * DIVISOR / MIB for one in migrate(guest, spec).iterations]

    with starting(names) as start:
        there, here = start(1, destination(spec)), start(0, work)
        there.told()
        here.told()
        here.go()
        return here.told()[1]


def test_the_published_table_comes_about():
    """Each iteration sends what the one before dirtied meanwhile: within 5 %, and 20 ms."""
    with joined() as names:
        rate = f"{RATE * 8 * 9014 // 8948}bit"  # full frames at MTU 9000
        shaping = ["root", "tbf", "rate", rate, "burst", "64k", "latency", "200ms"]
        run("tc", "-n", names[0], "qdisc", "add", "dev", "eth0", *shaping)
        for _ in range(TRIES):  # another load of the machine may have stopped the writer
            found = bytes_sent(names)
            off = [abs(a - b) for a, b in zip(found, PUBLISHED_MB, strict=False)]
            most = [0.05 * volume + WRITTEN_LATE_MB for volume in PUBLISHED_MB]
            if len(off) == 4 and all(map(operator.le, off, most)):
                return
    pytest.fail(f"{found} MB, not {PUBLISHED_MB}")
