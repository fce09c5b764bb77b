"""A lab of `scripts/bench network`'s own, and its links."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from _row import Row, row, say

from testbed import topology as topologies
from testbed.kernel import netns
from testbed.lab.adapters import adapter, common_addresses
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.up import up
from testbed.lab.wires import over_wires
from testbed.measure.endpoint import Endpoint
from testbed.measure.iperf import measure as iperf
from testbed.measure.iperf_result import IperfTest
from testbed.measure.ping import PingTest
from testbed.measure.ping import measure as ping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.lab.link_change import LinkChange
    from testbed.plan.plan import Plan

Ends: TypeAlias = tuple[Endpoint, Endpoint]
T = TypeVar("T")

RUNS = 3
MTU = 1500
_TRIES = 4
_LEAST_IDLE = 0.1
_LINK_DEADLINE_S = 60


@dataclass(slots=True)
class Lab:
    """A lab that is up; how many runs were measured in it, repeated, and disturbed to the last."""

    directory: LabDirectory
    plan: Plan
    measured: int = 0
    repeated: int = 0
    troubled: int = 0

    def ends(self, vmk: str, to: str = "esx02") -> Ends:
        """This vmk of esx01 and of another host; it is tried with a ping, which ARP may delay."""
        a, b = (adapter(self.plan, f"{host}/{vmk}") for host in ("esx01", to))
        ours, theirs = common_addresses(a, b)
        found = Endpoint(netns.path_of(a.netns), ours), Endpoint(netns.path_of(b.netns), theirs)
        ping(*found, PingTest(count=1))
        return found

    def change(self, change: LinkChange) -> None:
        """Change a link as `testbed link` does.

        Raises:
            TestbedError: it could not be made.
        """
        message = {"command": "link", "change": change.to_json(), "for_ns": None}
        request(self.directory, message, timeout_s=_LINK_DEADLINE_S)

    def undisturbed(self, what: str, measure: Callable[[], T]) -> T:
        """Measure again while a run was disturbed; after a few times the last one counts.

        It was if a delay line says that it was late or lost frames, or if the CPUs were hardly
        ever idle: then it is they who limit what is measured.
        """
        for left in reversed(range(_TRIES)):
            before = _cpu_ticks()
            result, wires = over_wires(self.directory, measure)
            idle, total = (b - a for a, b in zip(before, _cpu_ticks(), strict=True))
            trouble = next((wire.trouble for wire in wires if wire.trouble), None)
            if trouble is None and idle >= _LEAST_IDLE * total:
                break
            trouble = trouble or f"the CPUs were idle for {idle / max(total, 1):.0%} of the time"
            say(f"{what}: {trouble}; {'repeated' if left else 'counted all the same'}")
            self.repeated += left > 0
            self.troubled += left == 0
        self.measured += 1
        return result

    def troubles(self, part: str) -> list[Row]:
        """How many runs were disturbed."""
        return [
            row(f"{part}: disturbed runs, repeated", self.repeated, "runs", self.measured),
            row(f"{part}: disturbed runs, counted", self.troubled, "runs", self.measured),
        ]


@contextmanager
def lab(part: str, topology: str) -> Iterator[Lab]:
    """A lab with a private name; `topology` is all of the file but the name."""
    name = f"bench-{os.getpid()}-{part}"
    try:
        brought = up(topologies.loads(f"name: {name}\n{topology}", f"{part}.yaml"))
        yield Lab(LabDirectory(name), brought.plan)
    finally:
        down(name)


def _cpu_ticks() -> tuple[int, int]:
    """For how long all CPUs were idle since the machine's start, and for how long they were."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def tcp_bps(ends: Ends, duration_s: int = 2, omit_s: int = 1) -> float:
    """What iperf3's receiver counted in `duration_s` after `omit_s`: one stream, cubic."""
    return iperf(*ends, IperfTest(duration_s=duration_s, omit_s=omit_s)).received_bps
