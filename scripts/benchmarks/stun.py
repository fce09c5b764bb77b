"""The stun of a migration in a lab: a guest that is being written goes to and fro, unshaped.

The switchover goal is set from the measured rate so that at most 1000 pages are left; runs that
left more are not counted, and said. Stun: from the cut of the guest's port until the last vCPU
runs at the destination. Guest gap: the longest time in which a vCPU saw no heartbeat.
"""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING

from testbed import topology as topologies
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.up import up
from testbed.report.store import from_json

if TYPE_CHECKING:
    from testbed.report.result import EngineReport

_RUNS = 20
_BAR_MS = 10.0
_MOST_PAGES = 1000
_PAGES_LEFT = 700  # the goal; the rate of the moment decides
_TOPOLOGY = """\
name: {name}
switches: {{tor: {{mtu: 9000}}}}
datastores: {{shared01: {{hosts: "esx[01-02]"}}}}
distributed_switches:
  DSwitch: {{mtu: 9000, uplinks: [uplink1], portgroups: {{vMotion: {{}}, VM-Network: {{}}}}}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 8}}
    memory: 8GiB
    nics: {{vmnic0: {{switch: tor, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks:
      vmk1: {{portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
vms:
  db01:
    host: esx01
    memory: 512MiB
    vcpus: 2
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: 192.168.10.50/24}}]
    workload: {{kind: uniform, dirty_rate: 200MB/s, working_set: 20%}}
"""


def run(runs: int | None = None) -> list[dict[str, object]]:
    """Median and longest stun, the guest's gap, and the pages that were sent in one.

    Raises:
        RuntimeError: no migration left few enough pages.
    """
    reports, failed = measure(runs or _RUNS)
    counted = [report for report in reports if report.iterations[-1].pages <= _MOST_PAGES]
    if not counted:
        raise RuntimeError(f"each of {len(reports)} migrations left over {_MOST_PAGES} pages")
    stuns = [(report.stun_ns or 0) / 1e6 for report in counted]
    gaps = [(report.guest_gap_ns or 0) / 1e6 for report in counted]
    pages = [report.iterations[-1].pages for report in counted]
    return [
        _row("stun, median", statistics.median(stuns), "ms", len(counted), _BAR_MS),
        _row("stun, longest", max(stuns), "ms", len(counted)),
        _row("guest gap, median", statistics.median(gaps), "ms", len(counted)),
        _row("pages sent in the stun, median", statistics.median(pages), "pages", len(counted)),
        _row("migrations that left more pages", len(reports) - len(counted), "", len(reports)),
        _row("migrations that did not converge", failed, "", len(reports) + failed),
    ]


def _row(
    name: str, value: float, unit: str, runs: int, bar: float | None = None
) -> dict[str, object]:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": None,
        "peer_value": None,
        "ratio": None,
        "bar": None if bar is None else f"< {bar:g}",
        "met": None if bar is None else value < bar,
        "runs": runs,
    }


def measure(wanted: int) -> tuple[list[EngineReport], int]:
    """Migrate to and fro until `wanted` runs left few enough pages, or twice as many were made.

    Returns:
        Their reports, and how many failed: on a busy machine the goal is out of reach at times.

    Raises:
        RuntimeError: one failed for another reason, or as many as are wanted.
    """
    reports: list[EngineReport] = []
    failed = 0
    name = f"bench-{os.getpid()}"
    goal_ns = 1_000_000
    with ExitStack() as stack:
        stack.callback(down, name)
        up(topologies.loads(_TOPOLOGY.format(name=name), "stun.py"))
        while _counted(reports) < wanted and len(reports) < 2 * wanted:
            answer = request(
                LabDirectory(name),
                {
                    "command": "migrate",
                    "vm": "db01",
                    "to": ("esx02", "esx01")[len(reports) % 2],
                    "switchover_goal_ns": goal_ns,
                    "verify": False,
                    "command_line": "scripts/bench stun",
                },
                timeout_s=120,
            )
            result = from_json(answer, name)
            if result.failure is not None:
                failed += 1
                if "does not converge" in result.failure.cause and failed < wanted:
                    continue
            if result.engine is None or result.failure is not None:
                raise RuntimeError(f"migration {len(reports)} failed: {result.failure}")
            reports.append(result.engine)
            rate_bps = result.engine.iterations[0].throughput_bps
            goal_ns = round(_PAGES_LEFT * 4096 * 8e9 / rate_bps)
    return reports, failed


def _counted(reports: list[EngineReport]) -> int:
    return sum(report.iterations[-1].pages <= _MOST_PAGES for report in reports)
