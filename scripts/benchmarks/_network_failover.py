"""How long a failover and a failback take, and what they lose."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from _network_lab import RUNS, Ends, Lab, lab
from _row import Row, row

from testbed.lab.link_change import LinkChange
from testbed.measure.ping import PingTest
from testbed.measure.ping import measure as ping

if TYPE_CHECKING:
    from testbed.measure.ping_result import PingResult

_TOPOLOGY = """\
switches: {tor-a: {}, tor-b: {}}
links: [{between: [tor-a, tor-b], rate: 10Gbit}]
distributed_switches:
  DSwitch:
    uplinks: [uplink1, uplink2]
    portgroups:
      Team: {vlan: 20, teaming: {policy: explicit, active: [uplink1], standby: [uplink2]}}
hosts:
  "esx[01-02]":
    cpu: {cores: 2}
    memory: 1GiB
    nics:
      vmnic0: {switch: tor-a, rate: 10Gbit, uplink: DSwitch/uplink1}
      vmnic1: {switch: tor-b, rate: 10Gbit, uplink: DSwitch/uplink2}
    vmks: {vmk1: {portgroup: Team, ip: "192.168.20.[11-12]/24"}}
"""
_CABLE = ("esx01/vmnic0", "tor-a")
_BEFORE_S, _AFTER_S = 0.5, 1.5
_INTERVAL_NS = 1_000_000
_BAR_MS = 1000.0


def failover(runs: int | None) -> list[Row]:
    """A ping every millisecond while an active uplink's cable is cut, and while it is back.

    Both hosts have an uplink in each of two physical switches. The longest time without an
    answer, of the worst run; and what was lost, of all runs.
    """
    count = runs or RUNS
    down: list[PingResult] = []
    back: list[PingResult] = []
    with lab("team", _TOPOLOGY) as here:
        ends = here.ends("vmk1")
        for _ in range(count):
            down.append(_ping_over(here, ends, up=False))
            back.append(_ping_over(here, ends, up=True))
    return _outages("failover", down) + _outages("failback", back)


def _ping_over(here: Lab, ends: Ends, *, up: bool) -> PingResult:
    """Ping both before and after the change of the cable."""
    stop = threading.Event()
    found: list[PingResult] = []
    failed: list[Exception] = []

    def send() -> None:
        try:
            found.append(ping(*ends, PingTest(count=None, interval_ns=_INTERVAL_NS), stop))
        except Exception as error:  # a thread's error is its caller's
            failed.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        time.sleep(_BEFORE_S)
        here.change(LinkChange(_CABLE, up=up))
        time.sleep(_AFTER_S)
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _outages(what: str, found: list[PingResult]) -> list[Row]:
    longest = max(one.outage_ns for one in found) / 1e6
    sent, lost = (sum(getattr(one, key) for one in found) for key in ("sent", "lost"))
    bar = f"< {_BAR_MS:g}"
    return [
        row(
            f"{what}: longest gap of a 1 ms ping", longest, "ms", len(found),
            bar=bar, met=longest < _BAR_MS,
        ),
        row(f"{what}: lost of {sent} echoes", lost, "lost", len(found)),
    ]  # fmt: skip
