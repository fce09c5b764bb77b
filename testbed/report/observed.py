"""What can be observed of a migration on any host, emulated or real: measurements side by side.

A host's log tells less of a migration than the emulation measures. What both can tell is an
`Observed`, each quantity defined once, so that figures of both compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from testbed.report.figures import precopy
from testbed.report.result import Failure, Iteration  # noqa: TC001 - the store reads the types

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.report.result import EngineReport, MigrationResult

LOG_SCHEMA_VERSION = 1
STOPPED = ("switchover", "resume", "page-in")
"""The phases after pre-copy."""
PAGE_BYTES = 4096
RATE_BYTES = 4 << 20
"""Rounds of less tell how long a round trip takes, not how fast the path is."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One migration as its hosts' logs tell it; None is what they don't tell.

    `began` is UTC. `precopy_bytes_per_s` are page contents of all rounds while the guest ran /
    their time, `page_in_bytes_per_s` those sent while it stood still, or of the
    `pages_after_resume` that came after it ran; `transmit_bytes_per_s` are all from the first page
    to the last. When pre-copy stopped, `pages_left` were left for the
    switchover, at an estimate of `stop_bytes_per_s`, which was `transmit_to_dirty_percent` of the
    rate at which the guest dirtied distinct pages. `stun_ns` is how long the guest stood still,
    `total_ns` from the begin to the end on the host that tells it. `iterations` are told only by
    the testbed's own logs. Rates are bytes per second, of an emulation at the lab's scale.
    """

    migration_id: int | None = None
    vm: str | None = None
    source: str | None = None
    destination: str | None = None
    source_address: str | None = None
    destination_address: str | None = None
    began: str | None = None
    outcome: Literal["completed", "failed", "unknown"] = "unknown"
    failure: Failure | None = None
    memory_bytes: int | None = None
    precopy_bytes_per_s: int | None = None
    page_in_bytes_per_s: int | None = None
    transmit_bytes_per_s: int | None = None
    stop_bytes_per_s: int | None = None
    pages_left: int | None = None
    switchover_goal_ns: int | None = None
    transmit_to_dirty_percent: int | None = None
    pages_after_resume: int | None = None
    stun_ns: int | None = None
    total_ns: int | None = None
    iterations: tuple[Iteration, ...] = ()


@dataclass(frozen=True, slots=True)
class LogResult:
    """A migration read from logs of ESXi hosts, or of the testbed's, for the store.

    `logs` are the files' names, `lines` how many of their lines tell of this migration.
    """

    schema_version: int
    kind: Literal["esxi-log"]
    testbed_version: str
    created: str
    command: str
    logs: tuple[str, ...]
    lines: int
    observed: Observed


def observed(result: MigrationResult, migration_id: int | None = None) -> Observed:
    """What the logs of the emulation's hosts could tell of a result."""
    engine = result.engine
    known = Observed(
        migration_id=migration_id,
        vm=result.guest.name,
        source=result.source,
        destination=result.destination,
        outcome=result.outcome,
        failure=result.failure,
        memory_bytes=result.guest.memory_bytes,
        switchover_goal_ns=result.switchover_goal_ns,
    )
    if engine is None:
        return known
    reached = result.failure is None or result.failure.phase in STOPPED
    return measured(known, engine, stopped=reached)


def measured(known: Observed, engine: EngineReport, *, stopped: bool) -> Observed:
    """With all that the engine has measured; `stopped`: pre-copy came to its end."""
    rounds = precopy(engine)
    stun = next((one for one in engine.iterations if one.stunned), None)
    seen = replace(known, iterations=engine.iterations, total_ns=engine.total_ns)
    seen = replace(seen, stun_ns=engine.stun_ns)
    if engine.streams:
        first = engine.streams[0]
        ends = first.source_address, first.destination_address
        seen = replace(seen, source_address=ends[0], destination_address=ends[1])
    if rounds:
        seen = replace(seen, precopy_bytes_per_s=_precopy_rate(rounds))
        if stopped:
            seen = stopping(seen, rounds)
    if stun is not None:
        span_ns = stun.at_ns + stun.duration_ns - engine.iterations[0].at_ns
        sent_bytes = sum(one.memory_bytes for one in engine.iterations)
        seen = replace(seen, page_in_bytes_per_s=round(stun.throughput_bps / 8))
        if (after := engine.post_copy) is not None:
            late_bytes = after.pages_missing * PAGE_BYTES
            span_ns, sent_bytes = span_ns + after.whole_ns, sent_bytes + late_bytes
            seen = replace(
                seen,
                pages_after_resume=after.pages_missing,
                page_in_bytes_per_s=round(late_bytes * 1e9 / max(1, after.whole_ns)),
            )
        seen = replace(seen, transmit_bytes_per_s=round(sent_bytes * 1e9 / max(1, span_ns)))
    return seen


def stopping(known: Observed, rounds: Sequence[Iteration]) -> Observed:
    """As pre-copy stops after these rounds, for the reason that they give (convergence.decide).

    A guest that dirtied nothing meanwhile counts as one that dirtied a page: the ratio is finite.
    """
    last = rounds[-1]
    telling = next((it for it in reversed(rounds) if it.memory_bytes >= RATE_BYTES), rounds[0])
    return replace(
        known,
        precopy_bytes_per_s=_precopy_rate(rounds),
        pages_left=last.dirty_pages,
        stop_bytes_per_s=round(telling.throughput_bps / 8),
        transmit_to_dirty_percent=round(100 * last.pages / max(last.dirty_pages, 1)),
    )


def _precopy_rate(rounds: Sequence[Iteration]) -> int:
    spent_ns = max(1, sum(one.duration_ns for one in rounds))
    return round(sum(one.memory_bytes for one in rounds) * 1e9 / spent_ns)
