"""A guest that dirties pages faster than the link carries them, and what lets it move."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from _engine_lab import attempted, migrated
from _network_lab import Lab, lab
from _row import Row, row

from testbed.guest.memory import PAGE_BYTES

if TYPE_CHECKING:
    from testbed.report.result import MigrationResult

_TOPOLOGY = """\
switches: {tor: {mtu: 9000}}
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch: {mtu: 9000, uplinks: [uplink1], portgroups: {vMotion: {}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 4GiB
    nics: {vmnic0: {switch: tor, rate: 200Mbit, mtu: 9000, uplink: DSwitch/uplink1}}
    vmks: {vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
vms:
  busy:
    host: esx01
    memory: 128MiB
    datastore: shared01
    nics: []
    workload: {kind: uniform, dirty_rate: 100MB/s, working_set: 64MiB}
  calm:
    host: esx01
    memory: 128MiB
    datastore: shared01
    nics: []
    workload: {kind: uniform, dirty_rate: 1MB/s, working_set: 64MiB}
"""
_PROBE = {"interval_ns": 10**7, "from": None, "late_after_ns": 10**8, "around_ns": 10**9}


def converge(runs: int | None) -> list[Row]:
    """100 MB/s of page writes over a link of 25 MB/s, with neither, either, and a calm guest.

    The guest's writes are told as the mean of the whole move, its stun included.
    """
    count = runs or 1
    with lab("converge", _TOPOLOGY) as here:
        rows = [_fails(here)]
        for name, options in (
            ("SDPS", {"sdps": True, "quick_resume": False}),
            ("Quick Resume", {"sdps": False, "quick_resume": True}),
        ):
            found = []
            for _ in range(count):
                found.append(attempted(here, "busy", "esx02", probe=_PROBE, **options))
                migrated(here, "busy", "esx01", sdps=True)
            rows += _rows(name, found)
        calm = attempted(here, "calm", "esx02", probe=_PROBE, sdps=True, quick_resume=True)
        return [*rows, *_idle(calm)]


def _fails(here: Lab) -> Row:
    found = attempted(here, "busy", "esx02", sdps=False, quick_resume=False)
    said = found.failure is not None and "does not converge" in found.failure.cause
    cause = "" if found.failure is None else found.failure.cause
    return row(f"neither: fails ({cause})", float(said), "", 1, bar="says so", met=said)


def _rows(name: str, found: list[MigrationResult]) -> list[Row]:
    count = len(found)
    engines = [one.engine for one in found if one.engine is not None and one.failure is None]
    rows = [row(f"{name}: moved", len(engines), "", count, bar="all", met=len(engines) == count)]
    if not engines:
        return rows
    seconds = [engine.total_ns / 1e9 for engine in engines]
    stuns = [(engine.stun_ns or 0) / 1e6 for engine in engines]
    rows.append(row(f"{name}: time", statistics.median(seconds), "s", count))
    rows.append(row(f"{name}: stun", statistics.median(stuns), "ms", count))
    if steps := [step for engine in engines for step in engine.slowdowns]:
        longest = max(step.sleep_ns_per_ms for step in steps) / 1e6
        rows.append(row(f"{name}: longest sleep per ms of running", longest, "ms", count))
    late = [engine.post_copy for engine in engines if engine.post_copy is not None]
    if late:
        pages = statistics.median(one.pages_missing for one in late)
        rows.append(row(f"{name}: pages after resume", pages, "pages", count))
    return [*rows, *_felt(name, found)]


def _felt(name: str, found: list[MigrationResult]) -> list[Row]:
    felt = [one.felt.guest for one in found if one.felt is not None and one.felt.guest is not None]
    usual = [one.workloads[0].usual_per_s for one in felt]
    means = [
        one.workloads[0].operations * 1e9 / (one.until_ns - one.from_ns) * PAGE_BYTES / 1e6
        for one in felt
    ]
    before = [rate * PAGE_BYTES / 1e6 for rate in usual if rate]
    if not before:
        return [row(f"{name}: the guest's rate was not felt", None, "MB/s", len(found))]
    value, peer = statistics.median(means), ("before", statistics.median(before))
    name = f"{name}: the guest's writes meanwhile"
    return [row(name, value, "MB/s", len(found), peer=peer, ratio=value / peer[1])]


def _idle(calm: MigrationResult) -> list[Row]:
    if calm.engine is None or calm.failure is not None:
        raise RuntimeError(f"calm: {calm.failure}")
    steps = len(calm.engine.slowdowns)
    name = "a calm guest: steps of SDPS"
    early = calm.engine.post_copy is not None
    return [
        row(name, steps, "", 1, bar="none", met=not steps),
        row("a calm guest: resumed early", float(early), "", 1, bar="no", met=not early),
        *_felt("a calm guest", [calm]),
    ]
