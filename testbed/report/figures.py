"""What a result amounts to: the figures that the table, the page and the charts share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING

from testbed.guest.trace import describe_mode
from testbed.profiles import DEFAULT
from testbed.report.felt import in_short
from testbed.report.hosts import describe, limit_of_rtt
from testbed.report.switchover_figures import switchover_rows
from testbed.units import format_byte_rate, format_duration, format_rate, format_size

if TYPE_CHECKING:
    from testbed.guest.trace import TraceReport
    from testbed.report.result import EngineReport, Iteration, MigrationResult, WireReport

COLUMNS = ("Phase", "Pages", "Size", "Duration", "Throughput", "Dirty pages", "Dirty rate", "t2d")
MOST_POINTS = 240
"""Points of a chart: more than one per three pixels shows noise, not the course."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the summary: what, how much, and how it was measured."""

    name: str
    value: str
    measured: str


def precopy(engine: EngineReport) -> tuple[Iteration, ...]:
    """The rounds copied while the guest ran."""
    return tuple(iteration for iteration in engine.iterations if not iteration.stunned)


def precopy_ns(engine: EngineReport) -> int:
    """From the begin of the first round to the end of the last one while the guest ran."""
    rounds = precopy(engine)
    return rounds[-1].at_ns + rounds[-1].duration_ns - rounds[0].at_ns if rounds else 0


def copying_bps(engine: EngineReport) -> float:
    """Page contents per second while copying, all pre-copy rounds together."""
    rounds = precopy(engine)
    spent_ns = sum(iteration.duration_ns for iteration in rounds)
    return sum(i.memory_bytes for i in rounds) * 8e9 / spent_ns if spent_ns else 0.0


def wire_bps(engine: EngineReport) -> float:
    """All that the sockets carried per second while copying, own headers included."""
    rounds = precopy(engine)
    spent_ns = sum(iteration.duration_ns for iteration in rounds)
    return sum(i.wire_bytes for i in rounds) * 8e9 / spent_ns if spent_ns else 0.0


def throughput_series(engine: EngineReport) -> list[tuple[int, int, float]]:
    """(begin, end, bits per second) between samples, thinned to what a chart can show."""
    samples = engine.samples
    if len(samples) < 2:
        return [(i.at_ns, i.at_ns + i.duration_ns, i.throughput_bps) for i in engine.iterations]
    least_ns = max(1, (samples[-1].at_ns - samples[0].at_ns) // MOST_POINTS)
    series, last = [], samples[0]
    for sample in samples[1:]:
        span_ns = sample.at_ns - last.at_ns
        if span_ns >= least_ns or (sample is samples[-1] and span_ns > 0):
            delivered = sample.acknowledged_bytes - last.acknowledged_bytes
            series.append((last.at_ns, sample.at_ns, max(0, delivered) * 8e9 / span_ns))
            last = sample
    return series


def verdict(result: MigrationResult) -> str:
    """One sentence: what happened."""
    move = f"{result.guest.name} from {result.source} to {result.destination}"
    if result.failure is not None:
        remedy = f"; {result.failure.remedy}" if result.failure.remedy else ""
        return (
            f"Moving {move} failed in phase {result.failure.phase}: {result.failure.cause}{remedy}."
        )
    if result.engine is None:
        return f"Moved {move}; the source ended before it could tell what it had measured."
    compared = ", the comparison included" if result.verification is not None else ""
    told = f"Moved {move} in {format_duration(result.engine.total_ns)}{compared}."
    if result.verification is not None and result.verification.pages_different:
        told += f" But {result.verification.pages_different:,} pages differ: the copy is wrong."
    if result.invalid:
        told += f" The figures are not valid: {result.invalid}."
    return told


def succeeded(result: MigrationResult) -> bool:
    """Whether the guest arrived, with every page that was compared, over the links asked for."""
    differ = result.verification is not None and result.verification.pages_different > 0
    return result.outcome == "completed" and not differ and result.invalid is None


def nominal(result: MigrationResult, value: float, text: str, unit: str) -> str:
    """`text`, and beside it the nominal figure where the lab is scaled down."""
    if result.scale_divisor == 1:
        return text
    show = {"rate": format_rate, "size": format_size, "byte rate": format_byte_rate}[unit]
    return f"{text} (nominal {show(value * result.scale_divisor)})"


def iteration_cells(result: MigrationResult, iteration: Iteration) -> tuple[str, ...]:
    """One row of the table of iterations, as text."""
    size, rate = iteration.memory_bytes, iteration.throughput_bps
    dirty, ratio = iteration.dirty_rate_bytes_per_s, iteration.transmit_to_dirty_percent
    # With --verify the comparison falls into the last one: its time says nothing.
    held = iteration.stunned and result.verification is not None
    return (
        f"{iteration.number}{' stun' if iteration.stunned else ''}",
        f"{iteration.pages:,}",
        nominal(result, size, format_size(size), "size"),
        "-" if held else format_duration(iteration.duration_ns),
        "-" if held else nominal(result, rate, format_rate(rate), "rate"),
        "-" if iteration.stunned else f"{iteration.dirty_pages:,}",
        "-" if iteration.stunned else nominal(result, dirty, format_byte_rate(dirty), "byte rate"),
        "-" if ratio is None else f"{ratio:,.0f} %",
    )


def summary(result: MigrationResult) -> list[Figure]:
    """The figures of a result, most important first."""
    guest, engine = result.guest, result.engine
    memory = nominal(result, guest.memory_bytes, format_size(guest.memory_bytes), "size")
    synthetic = guest.backing == "synthetic"
    how = ", synthetic: no claim is made of what tracking its writes costs" if synthetic else ""
    found = [Figure("Guest memory", memory, f"as configured, after scale{how}")]
    if engine is not None:
        found += _engine_figures(result, engine)
    if (seen := result.verification) is not None:
        found.append(
            Figure(
                "Verification",
                f"{seen.pages_different} of {seen.pages_compared} pages differ",
                f"both memories compared at rest, page by page, by {seen.compared_by}, "
                "by a reader that took no part",
            )
        )
    else:
        found.append(Figure("Verification", "not asked for", "migrate --verify compares"))
    if result.felt is not None and (text := in_short(result.felt)):
        measured = "its own counters, and its clients beside it"
        found.append(Figure("The guest felt", text, measured))
    for host in result.hosts:
        if host.profile != DEFAULT:
            found.append(Figure(f"Host {host.name}", *describe(host, result.scale_divisor)))
    if result.rtt_ns is not None:
        limit = limit_of_rtt(result.hosts)
        supported = f"; supported up to {limit}" if limit is not None else ""
        found.append(
            Figure(
                "Round trip",
                format_duration(result.rtt_ns) + supported,
                "median of echoes over the migration's first path, before it began",
            )
        )
    found += [_wire_figure(wire) for wire in result.wires]
    found += [Figure("Notice", notice, "from the topology") for notice in result.notices]
    return found


def _wire_figure(wire: WireReport) -> Figure:
    """A link with latency: what it was to do, and how well it did."""
    parts = []
    for way, direction in zip(("there", "back"), wire.directions, strict=False):
        jitter = f" ± {format_duration(direction.jitter_ns)}" if direction.jitter_ns else ""
        late = direction.late_p99_ns
        text = f"{format_duration(direction.delay_ns)}{jitter} {way}"
        if late is not None:
            text += f" (99 % at most {format_duration(max(late, 0))} late)"
        parts.append(text)
    dropped = sum(direction.dropped for direction in wire.directions)
    parts.append(f"{dropped:,} dropped")
    if wire.trouble:
        parts.append(f"NOT VALID: {wire.trouble}")
    return Figure(
        f"Link {wire.link}",
        ", ".join(parts),
        f"{wire.mechanism}: how much later than asked frames left it while this was measured",
    )


def _engine_figures(result: MigrationResult, engine: EngineReport) -> list[Figure]:
    held = "not measured: the guest was held for verification"
    if result.failure is not None:
        held = "not measured: the migration failed"
    copied, carried = copying_bps(engine), wire_bps(engine)
    rounds = len(precopy(engine))
    found = [
        Figure(
            "Total time",
            format_duration(engine.total_ns),
            "from the command's acceptance to the last answer of the destination; with --verify "
            "the comparison is in it",
        ),
        Figure(
            "Prepare",
            format_duration(engine.prepare_ns),
            "before the first page: checks, the destination's memory, sockets, page tracking",
        ),
        Figure(
            "Pre-copy",
            f"{format_duration(precopy_ns(engine))}, {rounds} round{'s' * (rounds != 1)}",
            "first page sent to last round acknowledged, guest running",
        ),
        Figure(
            "Stun",
            held if engine.stun_ns is None else format_duration(engine.stun_ns),
            "the guest's port cut at the source until every vCPU runs at the destination; "
            f"switchover goal {format_duration(result.switchover_goal_ns)}",
        ),
        Figure(
            "Gap the guest saw",
            held if engine.guest_gap_ns is None else format_duration(engine.guest_gap_ns),
            "the guest's own heartbeat: last at the source to first at the destination",
        ),
        *starmap(Figure, switchover_rows(engine, result.switchover_goal_ns)),
        *_trace_figures(engine.trace),
        Figure(
            "Throughput while copying",
            nominal(result, copied, format_rate(copied), "rate"),
            "page contents of all pre-copy rounds / their time, acknowledged by the destination",
        ),
    ]
    if result.path_goodput_bps:
        goodput = result.path_goodput_bps
        found.append(
            Figure(
                "Share of the path",
                f"{carried / goodput:.1%} of the {format_rate(goodput)} it can carry",
                "all that the sockets carried, own headers included / link rate less Ethernet, "
                "IP and TCP headers",
            )
        )
    if result.failure is not None:
        return found  # the destination can't be asked any more
    retransmitted = sum(stream.retransmitted_segments for stream in engine.streams)
    found.append(Figure("Retransmitted segments", f"{retransmitted:,}", "TCP_INFO at the end"))
    if engine.encryption is not None:
        found.append(Figure("Encryption", engine.encryption, "of all that the streams carried"))
    cpu_ns = engine.source_cpu_ns + engine.destination_cpu_ns
    found.append(
        Figure(
            "CPU time, both ends",
            f"{format_duration(engine.source_cpu_ns)} + "
            f"{format_duration(engine.destination_cpu_ns)} = {format_duration(cpu_ns)}",
            "user and system time of the engine's processes",
        )
    )
    return found


def _trace_figures(trace: TraceReport | None) -> list[Figure]:
    """What page tracing cost the guest, if that was asked for."""
    if trace is None:
        return []
    install = format_duration(trace.install_ns) + (", modelled" if trace.modelled else "")
    operations = ", ".join(f"{count:,} of {size}" for size, count in trace.operations.items())
    broken = "".join(
        f", broken down to {size}: {count:,} times" for size, count in trace.broken_down.items()
    )
    return [
        Figure(
            "Page tracing",
            f"{describe_mode(trace.mode)} by {trace.mechanism}, installed in {install}; "
            f"{operations or 'no'} operations{broken}; {trace.page_fires:,} page fires",
            f"counted over the page tables of all vCPUs; the install that was done took "
            f"{format_duration(trace.measured_install_ns)}",
        ),
        Figure(
            "Longest stop for tracing",
            format_duration(trace.longest_stop_ns),
            "of any vCPU, from being told to stop until it ran again; each vCPU in all: "
            + (", ".join(format_duration(ns) for ns in trace.stopped_ns)),
        ),
    ]
