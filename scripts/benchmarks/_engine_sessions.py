"""Pings and sessions of a guest that moves again and again."""

from __future__ import annotations

import math
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from _engine_lab import attempted, migrated
from _network_lab import Lab, lab
from _row import Row, row

from testbed.lab.client import request
from testbed.report.store import felt_from_json

_MOVES = 100
_PINGED = 10
_INTERVAL_NS = 10_000_000
_MORE_LOST = 2
_AROUND_S = 4.0
_MARGIN = 1.4
_DEADLINE_S = 1800
_TOPOLOGY = """\
switches: {tor: {mtu: 9000}}
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch: {mtu: 9000, uplinks: [uplink1], portgroups: {vMotion: {}, VM-Network: {}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics: {vmnic0: {switch: tor, rate: 500Mbit, mtu: 9000, uplink: DSwitch/uplink1}}
    vmks: {vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
vms:
  web:
    host: esx01
    memory: 24MiB
    datastore: shared01
    nics: [{portgroup: VM-Network, ip: 192.168.10.50/24}]
    workload:
      - {kind: uniform, dirty_rate: 2MB/s, working_set: 25%}
      - {kind: web, file: 1MiB}
      - {kind: media, rate: 8Mbit}
      - {kind: echo}
      - {kind: ping}
  client:
    host: esx02
    memory: 16MiB
    datastore: shared01
    nics: [{portgroup: VM-Network, ip: 192.168.10.51/24}]
"""
_PROBE = {
    "interval_ns": _INTERVAL_NS,
    "from": "client",
    "late_after_ns": 100_000_000,
    "around_ns": 0,
}


def sessions(runs: int | None) -> list[Row]:
    """Pings every 10 ms that are lost in a move beside its stun, and what 100 moves do to sessions.

    Downloads, media and echo are one connection each, which lives through all moves; every byte
    is compared. `runs` is the number of moves.
    """
    moves = runs or _MOVES
    with lab("sessions", _TOPOLOGY) as here:
        began = time.monotonic()
        rows = _pings(here, _PINGED)
        return [*rows, *_sessions(here, moves, (time.monotonic() - began) / _PINGED)]


def _pings(here: Lab, count: int) -> list[Row]:
    more, lost, stuns_ms = [], [], []
    for number in range(count):
        result = attempted(here, "web", ("esx02", "esx01")[number % 2], probe=_PROBE)
        if result.engine is None or result.felt is None or result.felt.ping is None:
            raise RuntimeError(f"move {number}: {result.failure}, {result.felt}")
        stun_ns, ping = result.engine.stun_ns or 0, result.felt.ping
        stuns_ms.append(stun_ns / 1e6)
        lost.append(ping.lost)
        more.append(ping.lost - math.ceil(stun_ns / _INTERVAL_NS))
    return [
        row("stun, median", statistics.median(stuns_ms), "ms", count),
        row("pings lost in a move, median", statistics.median(lost), "pings", count),
        row(
            "pings lost beyond one per 10 ms of stun, worst move", max(more), "pings", count,
            bar=f"<= {_MORE_LOST}", met=max(more) <= _MORE_LOST,
        ),
    ]  # fmt: skip


def _sessions(here: Lab, moves: int, each_s: float) -> list[Row]:
    """Feel for as long as the moves take by the first ones, and a margin."""
    asked = {
        "command": "feel",
        "vm": "web",
        "probe": _PROBE,
        "for_ns": round((moves * each_s * _MARGIN + _AROUND_S) * 1e9),
    }
    with ThreadPoolExecutor() as pool:
        feeling = pool.submit(request, here.directory, asked, timeout_s=_DEADLINE_S)
        time.sleep(_AROUND_S / 2)
        stuns_ns, made = 0, 0
        while made < moves and not feeling.done():
            stuns_ns += migrated(here, "web", ("esx02", "esx01")[made % 2]).stun_ns or 0
            made += 1
        done = not feeling.done()
        felt = felt_from_json(feeling.result(), here.directory.name)
    rows = [row("moves under the eyes of open sessions", made, "", made, met=done, bar="all")]
    if felt.ping is not None:
        beyond = (felt.ping.lost - stuns_ns / _INTERVAL_NS) / made
        name = "pings lost beyond one per 10 ms of stun, per move"
        rows.append(
            row(name, beyond, "pings", made, bar=f"<= {_MORE_LOST}", met=beyond <= _MORE_LOST)
        )
    for one in felt.sessions:
        whole = one.trouble is None
        name = f"{one.service}: {one.trouble or 'open to the end'}, wrong bytes"
        rows += [
            row(name, one.wrong_bytes, "bytes", made, bar="none, open", met=whole),
            row(f"{one.service}: received", one.received_bytes / 1e6, "MB", made),
            row(f"{one.service}: longest gap", one.longest_gap_ns / 1e6, "ms", made),
        ]
    seen = {one.service for one in felt.sessions}
    name = "sessions: downloads, media, echo"
    return [*rows, row(name, len(seen), "", made, bar="3", met=len(seen) == 3)]
