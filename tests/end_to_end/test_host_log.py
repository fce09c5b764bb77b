"""What the hosts of a running lab log, followed while a VM moves."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from testbed import topology
from testbed.lab.down import down
from testbed.lab.up import up
from testbed.report import store
from testbed.report.observed import observed
from testbed.report.vmkernel_parse import parse
from tests.end_to_end.labs import run, small_topology

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

NAME = "logging"


def test_both_hosts_log_a_migration_while_it_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    early = threading.Event()
    with ExitStack() as stack:
        up(
            topology.loads(
                small_topology(NAME, rate="100Mbit", memory="32MiB", dirty_rate="4MB/s"),
                str(tmp_path / "x.yaml"),
            )
        )
        stack.callback(down, NAME)
        follow = [sys.executable, "-m", "testbed", "log", "esx01", "-f", "--lab", NAME]
        following = stack.enter_context(subprocess.Popen(follow, stdout=subprocess.PIPE, text=True))
        lines = following.stdout
        assert lines is not None

        def listen() -> None:
            while line := lines.readline():
                told.append(line)
                if "S: iteration -1 " in line and moving.poll() is None:
                    early.set()
                if "S: completed" in line:
                    return

        move = ["migrate", "db01", "--to", "esx02", "--lab", NAME, "--results", str(tmp_path)]
        move += ["--switchover-goal", "100ms"]
        moving = stack.enter_context(subprocess.Popen([sys.executable, "-m", "testbed", *move]))
        stack.callback(moving.kill)
        listening = threading.Thread(target=listen)
        listening.start()
        stack.callback(listening.join, 60)
        stack.callback(following.kill)
        assert moving.wait(60) == 0
        listening.join(60)
        there = run("log", "esx02", "--lab", NAME).stdout.splitlines()
        with pytest.raises(AssertionError, match="has no host 'tor'"):
            run("log", "tor", "--lab", NAME)

    (stored,) = tmp_path.glob("*.json")
    result = store.read(stored)
    assert result.engine is not None
    assert early.is_set()  # it was told while the migration went on
    (one,) = parse([*told, *there])
    known = observed(result)
    assert (one.observed.vm, one.observed.outcome) == ("db01", "completed")
    assert one.observed.pages_left == known.pages_left
    assert one.observed.stun_ns == pytest.approx(known.stun_ns, abs=1000)
    assert one.observed.transmit_bytes_per_s == pytest.approx(known.transmit_bytes_per_s, abs=1000)
    assert len(one.observed.iterations) == len(result.engine.iterations)
    assert one.observed.source_address == "192.168.20.11"
    # No more than the link carries, and each line with a time, a CPU and a world.
    assert one.observed.precopy_bytes_per_s < 12.5e6
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (cpu\d+:\d+\)|info hostd)")
    assert all(stamp.match(line) for line in [*told, *there])
