"""What guests send and receive is charged to the host that they run at, as its file says."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from testbed import topology as topologies
from testbed.lab import accounts
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.up import up
from testbed.ledger import BURST_NS, Ledger
from tests.end_to_end.labs import run, small_topology

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

LAB = "hostcpu"
DIRECTORY = LabDirectory(LAB)
MHZ = 100
CYCLES = 20  # a byte: 5 MB/s for one core
AT_ONCE = 2**20  # what may be in buffers between the two guests
PROFILE = f"{{inherits: unlimited, cycles_per_byte: {{value: '{CYCLES}', assumed: a test}}}}"
WRITER = "workload: {kind: uniform, dirty_rate: 20MB/s, working_set: 25%}"
NIC = "nics: [{portgroup: VM-Network, ip: 192.168.10.51/24}]\n"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    """Up, with a VM on each host: one sends to the other. Its file."""
    text = small_topology(LAB).replace("switches:\n", f"profile: {PROFILE}\nswitches:\n", 1)
    text = text.replace("cpu: {cores: 4}", f"cpu: {{cores: 4, mhz: {MHZ}}}")
    text = text.replace(WRITER, "workload: {kind: bulk, to: 192.168.10.51}")
    text = text.replace(NIC, f"{NIC}    workload: {{kind: sink}}\n")
    file = tmp_path / f"{LAB}.yaml"
    file.write_text(text)
    up(topologies.load(file))
    yield file
    down(LAB)


def used(host: str) -> int:
    return Ledger.join(accounts.ledger_path(DIRECTORY, host)).used()["vm"]


def came() -> int:
    found: dict[str, Any] = request(DIRECTORY, {"command": "vm", "vm": "client"}, timeout_s=60)
    return int(found["counters"]["workloads"][0]["bytes"])


def wait_for_more(than: int) -> None:
    deadline = time.monotonic() + 20
    while came() <= than:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_bulk_is_charged_where_it_runs(lab: Path) -> None:
    wait_for_more(0)
    begin, before = time.monotonic(), came()
    time.sleep(0.5)
    after = came()
    took_s = time.monotonic() - begin + BURST_NS / 1e9
    assert after - before <= took_s * MHZ * 1e6 / CYCLES + AT_ONCE
    assert used("esx01") >= before * CYCLES
    assert used("esx02") >= before * CYCLES
    run("migrate", "db01", "--to", "esx02", "--lab", LAB, "--no-results")
    sent = used("esx01")
    wait_for_more(came() + AT_ONCE)
    assert used("esx01") == sent
    # The prices of the file hold from then on, for a VM that runs as well.
    lab.write_text(lab.read_text().replace(PROFILE, "unlimited"))
    run("apply", lab)
    sent = used("esx02")
    wait_for_more(came() + AT_ONCE)
    assert used("esx02") == sent
