"""The stun of a migration: a guest that is being written goes to and fro, unshaped, unverified.

The switchover goal is set from the measured rate so that at most 1000 pages are left. Stun:
from the first instant of the stun until the last vCPU runs at the destination. Guest gap: the
longest time in which a vCPU of the guest saw no heartbeat.
"""

from __future__ import annotations

import pickle
import secrets
import socket
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parent))
from _pair import A, B, Pair, child, pair

from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.migration.destination import Destination
from testbed.migration.source import migrate
from testbed.migration.specification import MigrationSpec

if TYPE_CHECKING:
    from testbed.report.result import EngineReport

_RUNS = 20
_BAR_NS = 10_000_000
_PAGES_LEFT = 700  # the goal; the rate of the moment decides, and 1000 are the most
_GUEST = GuestSpec("bench", 512 << 20, 2, "uniform", 200 * 10**6, 100 << 20, 1)


def run(runs: int | None = None) -> list[dict[str, object]]:
    """Median stun and guest gap of the migrations, and the most pages that were left."""
    reports = measure(runs or _RUNS)
    left = [report.iterations[-1].pages for report in reports]
    stuns = [report.stun_ns or 0 for report in reports]
    gaps = [report.guest_gap_ns or 0 for report in reports]
    return [
        _row("stun", statistics.median(stuns) / 1e6, "ms", len(reports), _BAR_NS / 1e6),
        _row("guest gap", statistics.median(gaps) / 1e6, "ms", len(reports), None),
        _row("stun, longest", max(stuns) / 1e6, "ms", len(reports), None),
        _row("pages sent in the stun, most", max(left), "pages", len(reports), None),
    ]


def _row(name: str, value: float, unit: str, runs: int, bar: float | None) -> dict[str, object]:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": None,
        "peer_value": None,
        "ratio": None,
        "bar": None if bar is None else f"<= {bar:g}",
        "met": None if bar is None else value <= bar,
        "runs": runs,
    }


@dataclass(frozen=True, slots=True)
class _Leg:
    """One stay of the guest: where it comes from and where it goes, None at the ends."""

    arrival: MigrationSpec | None
    here: str
    there: str


def measure(runs: int) -> tuple[EngineReport, ...]:
    """Let the guest go to and fro; every stay is a process of its own, forked for it."""
    reports: list[EngineReport] = []
    goal_ns = 1_000_000
    with pair() as names, ExitStack() as stays:
        leaving = _stay(stays, names, _Leg(None, A, B))
        for number in range(runs):
            here, there = (A, B) if number % 2 == 0 else (B, A)
            spec = MigrationSpec(
                time.time_ns() // 1000,
                secrets.token_bytes(32),
                _GUEST,
                here,
                there,
                switchover_goal_ns=goal_ns,
            )
            arriving = _stay(stays, names, _Leg(spec, there, here))
            leaving.send(pickle.dumps(spec))
            reports.append(pickle.loads(_told(leaving)))  # noqa: S301 - our own child
            rate_bps = reports[-1].iterations[0].throughput_bps
            goal_ns = round(_PAGES_LEFT * 4096 * 8e9 / rate_bps)
            leaving = arriving
        leaving.send(b"")
    return tuple(reports)


def _told(channel: socket.socket) -> bytes:
    channel.settimeout(60)
    data = channel.recv(1 << 20)
    if not data:
        raise RuntimeError("a stay of the guest ended early")
    return data


def _stay(stays: ExitStack, names: Pair, leg: _Leg) -> socket.socket:
    """Fork a process that takes the guest in, and moves it on when told to where."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def work() -> None:
        ours.close()
        names.enter(leg.here)
        with _guest(leg, theirs) as guest:
            order = theirs.recv(1 << 16)
            if order:
                report = migrate(guest, pickle.loads(order))  # noqa: S301 - our own parent
                theirs.send(pickle.dumps(report))

    stays.enter_context(ours)
    stays.enter_context(child(work))
    theirs.close()
    _told(ours)
    return ours


def _guest(leg: _Leg, channel: socket.socket) -> Guest:
    if leg.arrival is None:
        guest = Guest.power_on(_GUEST)
        channel.send(b"ready")
        return guest
    with Destination(leg.arrival) as destination:
        channel.send(b"ready")
        return destination.receive().guest
