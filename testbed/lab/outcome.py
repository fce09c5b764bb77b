"""How a migration ended, and the result that is made of it."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from testbed import __version__
from testbed.guest.workload_text import describe_workloads
from testbed.lab.link_change import LinkChange
from testbed.lab.path import find_path
from testbed.plan.steps import Netns
from testbed.report.hosts import host_report
from testbed.report.result import SCHEMA_VERSION
from testbed.units import format_duration, format_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.lab.adapter_paths import AdapterPath
    from testbed.lab.estate import Estate
    from testbed.lab.lines import Message
    from testbed.lab.path import Path
    from testbed.lab.terms import Terms
    from testbed.plan.steps import PowerOn
    from testbed.report.result import WireReport


@dataclass(frozen=True, slots=True)
class Arrived:
    """The guest runs at the destination; `memory_fd` is its memory in the VMX there."""

    memory_fd: int
    verification: Message | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`failure` None: the guest is at the destination; else it is where it was, or lost.

    `engine` is what the source measured, as JSON; None if its report was lost.
    """

    engine: Message | None
    arrived: Arrived | None
    failure: Message | None
    lost: bool = False
    """It ran at the destination without all of its pages, and can run nowhere any more."""

    @classmethod
    def completed(cls, arrived: Arrived, engine: Message | None) -> Outcome:
        """The guest is at the destination."""
        return cls(engine, arrived, None)

    @classmethod
    def failed(cls, said: Message) -> Outcome:
        """The guest is where it was, unless it is lost; `said` is the source's last word."""
        error: Message = said.get("error") or {}
        failure = {
            "phase": said.get("phase", "unknown"),
            "cause": said.get("cause") or error.get("message", "the source's VMX did not say"),
            "remedy": said.get("remedy", ""),
        }
        return cls(said.get("engine"), None, failure, lost=bool(said.get("lost")))


def migration_result(
    estate: Estate,
    request: Message,
    *,
    step: PowerOn,
    terms: Terms,
    outcome: Outcome,
    wires: tuple[WireReport, ...],
    since_ns: int,
    felt: Message | None,
    notices: Sequence[str],
) -> dict[str, Any]:
    """A `report.result.MigrationResult` as JSON, with the whole input in it.

    `step` is the VM as it was, `since_ns` when it began, on CLOCK_MONOTONIC; `felt` what was felt
    of it; `notices` what came up while it was carried out.
    """
    ways = [
        find_path(
            estate.topology,
            (step.host, path.source_vmk, path.source_network),
            (request["to"], path.destination_vmk, path.destination_network),
            path.mtu,
            estate.pinned(),
        )
        for path in terms.paths
    ]
    goodputs = [
        None if way is None else way.goodput_bps(path.ip_version)
        for way, path in zip(ways, terms.paths, strict=True)
    ]
    verification = outcome.arrived.verification if outcome.arrived else None
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "migration",
        "testbed_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": request["command_line"],
        "lab": estate.directory.name,
        "topology_file": estate.journal.topology_file,
        "topology_text": estate.journal.topology_text,
        "scale_divisor": estate.topology.scale.denominator,
        "topology_files": estate.journal.traces,
        "hosts": [
            asdict(host_report(host.name, host.cores, host.mhz, host.profile))
            for host in terms.hosts
        ],
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "mechanisms": {
            "rate": "HTB at each sending port, told rate x (MTU + 14) / (MTU + 38)",
            "latency": _latency_text(wires),
            "path": "; ".join(map(_path_text, terms.paths, ways)),
            "vMotion": _profile_text(terms),
            "dirty tracking": outcome.engine["tracking"] if outcome.engine else "unknown",
        },
        "source": step.host,
        "destination": request["to"],
        "guest": {
            "name": step.vm,
            "memory_bytes": step.memory_bytes,
            "vcpus": step.vcpus,
            "workload": describe_workloads(step.workloads),
            "backing": step.backing,
            "page_bytes": step.page_bytes,
        },
        "switchover_goal_ns": terms.spec.switchover_goal_ns,
        "outcome": "failed" if outcome.failure else "completed",
        "failure": outcome.failure,
        "engine": outcome.engine,
        "verification": verification
        and {
            "pages_compared": verification["pages_compared"],
            "pages_different": verification["pages_different"],
            "compared_by": verification["compared_by"],
        },
        "wires": [asdict(wire) for wire in wires],
        "notices": [
            *filter(None, map(_layer3, terms.paths)),
            *terms.notices,
            *notices,
            *_changes(estate, since_ns),
        ],
        "felt": felt,
        "path_goodput_bps": together_bps(ways, goodputs),
        "rtt_ns": terms.rtt_ns,
    }


def _latency_text(wires: tuple[WireReport, ...]) -> str:
    """`tor-a - tor-b: 5 ms there, 5 ms back, by a delay line on NFQUEUE`."""
    if not wires:
        return "none: links add no delay"
    return "; ".join(
        f"{wire.link}: "
        + ", ".join(
            f"{format_duration(direction.delay_ns)} {way}"
            for way, direction in zip(("there", "back"), wire.directions, strict=False)
        )
        + f", by {wire.mechanism}"
        for wire in wires
    )


def together_bps(ways: Sequence[Path | None], each_bps: Sequence[int | None]) -> int | None:
    """What several paths carry at once: those of one NIC, at either end, share it.

    None if one is not known.
    """
    sums = []
    for end in (0, 1):
        by_nic: dict[str, int] = {}
        for way, bps in zip(ways, each_bps, strict=True):
            if way is None or bps is None:
                return None
            by_nic[way.uplinks[end]] = max(bps, by_nic.get(way.uplinks[end], 0))
        sums.append(sum(by_nic.values()))
    return min(sums)


def _layer3(path: AdapterPath) -> str | None:
    if not path.routed:
        return None
    networks = f"{path.source_network.cidr} and {path.destination_network.cidr}"
    return f"layer-3 vMotion: {networks} are joined by routers; not supported before vSphere 6.0"


def _profile_text(terms: Terms) -> str:
    """`profile vsphere-7.0, 2 streams, window 562540 B`."""
    names = dict.fromkeys(host.profile.name for host in terms.hosts)
    count = len(terms.spec.streams)
    words = [f"profile {' to '.join(names)}", f"{count} stream{'s' if count > 1 else ''}"]
    if terms.spec.window_bytes is not None:
        words.append(f"a window of {terms.spec.window_bytes} B each")
    return ", ".join(words)


def _changes(estate: Estate, since_ns: int) -> list[str]:
    """What of the network is not as the topology's text says, and what happened meanwhile."""
    lasting = [f"not as in the file: {LinkChange.from_json(data)}" for data in estate.journal.links]
    links = [(at_ns, text) for at_ns, text in estate.link_events if at_ns >= since_ns]
    nodes = {step.name: step.node for step in estate.journal.plan.steps if isinstance(step, Netns)}
    teams = [
        (event.at_ns, f"{nodes[event.host]}/{event.uplink} {'up' if event.up else 'down'}")
        for event in estate.teams.events
        if event.at_ns >= since_ns and event.host in nodes
    ]
    return lasting + [f"meanwhile: {text}" for _, text in sorted(links + teams)]


def _path_text(path: AdapterPath, physical: Path | None) -> str:
    """`vmk1 to vmk1 over tor-a, tor-b, slowest link 10 Gbit/s, MTU 9000`."""
    ends = f"{path.source_vmk} to {path.destination_vmk}"
    if physical is None:
        return f"{ends}, not followed; MTU {path.mtu}"
    slowest = format_rate(physical.rate_bps) if physical.rate_bps else "not shaped"
    return f"{ends} over {', '.join(physical.nodes)}; slowest link {slowest}; MTU {path.mtu}"
