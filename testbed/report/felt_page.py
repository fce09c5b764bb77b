"""What was felt, on the page: a chart of the first workload at work, and the figures."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from testbed.report import svg
from testbed.report.charts import bands, end_ns
from testbed.report.figures import MOST_POINTS, Figure
from testbed.report.svg import Chart, Limit, Line
from testbed.units import format_byte_rate, format_duration, format_size

if TYPE_CHECKING:
    from testbed.measure.guest_felt import GuestFelt, WorkloadFelt
    from testbed.measure.series import Series
    from testbed.report.felt import Felt, PingFelt, SessionFelt
    from testbed.report.result import EngineReport

SCALES = (("million ", 1e6), ("thousand ", 1e3), ("", 1.0))


def felt_chart(felt: Felt, engine: EngineReport | None) -> Chart | None:
    """Operations per second of the first workload that did any, the migration's phases shaded."""
    found = _operations(felt)
    if found is None:
        return None
    workload, series = found
    steps = _steps(series)
    if not steps:
        return None
    usual = workload.usual_per_s
    highest = max(rate for _, _, rate in steps)
    prefix, divisor = next((u, d) for u, d in (*SCALES, ("", 1.0)) if highest >= d or d == 1.0)
    limit = Limit(f"usually {_per_s(usual)}", usual) if usual else None
    last_ns = max(steps[-1][1], end_ns(engine) if engine is not None else 0)
    return Chart(
        name="felt",
        title=f"{workload.operation.capitalize()} of {workload.name}",
        description=f"{workload.operation.capitalize()} per second, counted by the guest itself, "
        "over the time of the migration, phases shaded.",
        unit=f"{prefix}{workload.operation}/s",
        divisor=divisor,
        end_ns=last_ns,
        lines=(
            Line(
                workload.operation,
                "first",
                tuple((at, rate) for begin, end, rate in steps for at in (begin, end)),
                area=True,
            ),
        ),
        bands=bands(engine) if engine is not None else (),
        limit=limit,
        readings=tuple(
            ((begin + end) / 2, f"{format_duration((begin + end) / 2)}: {_per_s(rate)}")
            for begin, end, rate in steps
        ),
    )


def _operations(felt: Felt) -> tuple[WorkloadFelt, Series] | None:
    """The first workload with a course to show."""
    lines = {line.name: line for line in felt.series}
    for one in felt.guest.workloads if felt.guest is not None else ():
        if (line := lines.get(f"{one.name} {one.operation}")) is not None:
            return one, line
    return None


def _steps(series: Series) -> list[tuple[float, float, float]]:
    """(begin, end, mean rate) from the migration's begin on, no more than a chart can show."""
    first = next((i for i, at in enumerate(series.at_ns) if at >= 0), len(series))
    at, values = series.at_ns[first:], series.values[first:]
    if len(at) < 2:
        return []
    # A little less than even: samples are never quite in time.
    wide_ns = 0.9 * (at[-1] - at[0]) / min(MOST_POINTS, len(at) - 1)
    steps, begin, area = [], at[0], 0.0
    for number, end in enumerate(at[1:]):
        area += values[number] * (end - at[number])
        if end - begin >= wide_ns:
            steps.append((float(begin), float(end), area / (end - begin)))
            begin, area = end, 0.0
    return steps


def felt_figures(felt: Felt) -> list[Figure]:
    """All that is to be told in figures."""
    found = _guest_figures(felt.guest) if felt.guest is not None else []
    if felt.ping is not None:
        found.append(_ping_figure(felt.ping, felt.client))
    found += [_session_figure(one, felt.client) for one in felt.sessions]
    return found + [Figure("Not measured", trouble, "") for trouble in felt.troubles]


def _guest_figures(guest: GuestFelt) -> list[Figure]:
    found = [figure for one in guest.workloads for figure in _workload_figures(one, guest)]
    worst = max(guest.vcpus, key=lambda vcpu: vcpu.longest_gap_ns)
    window_ns = (guest.until_ns - guest.from_ns) * len(guest.vcpus)
    shares = ", ".join(
        f"{sum(getattr(vcpu, f'{name}_ns') for vcpu in guest.vcpus) / window_ns:.1%} {told}"
        for name, told in (
            ("run", "running"),
            ("idle", "idle"),
            ("throttled", "throttled"),
            ("stopped", "stopped"),
        )
    )
    return [
        *found,
        Figure(
            "Longest time without a heartbeat",
            f"{format_duration(worst.longest_gap_ns)} on vCPU {worst.vcpu}",
            "a vCPU's own record of its steps",
        ),
        Figure(
            "vCPU time",
            shares,
            f"of {format_duration(guest.until_ns - guest.from_ns)} on {len(guest.vcpus)} vCPUs, "
            f"as they count it; read every {format_duration(guest.interval_ns)}, at worst "
            f"{format_duration(guest.longest_interval_ns)} apart",
        ),
    ]


def _per_s(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


def _workload_figures(one: WorkloadFelt, guest: GuestFelt) -> list[Figure]:
    window_s = (guest.until_ns - guest.from_ns) / 1e9
    rate = _per_s(one.operations / window_s)
    if one.usual_per_s is not None and one.before:
        rate += f"; before {_per_s(one.usual_per_s)}"
    if one.bytes:
        rate += f"; {format_byte_rate(one.bytes / window_s)}"
    name = f"{one.operation} of {one.name}"
    found = [Figure(name[0].upper() + name[1:], rate, "the guest's own counters")]
    if one.dip is not None and one.lowest_per_s is not None and one.lowest_over_ns is not None:
        against = "the median before" if one.before else "the median of the whole time"
        at = format_duration(one.lowest_at_ns or 0)
        found.append(
            Figure(
                f"Deepest dip of {one.name}",
                f"{one.dip:.1%} down, to {_per_s(one.lowest_per_s)}, at {at}",
                f"lowest rate in any {format_duration(one.lowest_over_ns)} / {against}",
            )
        )
    if one.halt_ns is not None:
        usual = one.usual_halt_ns
        before = f"; before {format_duration(usual)}" if usual is not None else ""
        found.append(
            Figure(
                f"Longest halt of {one.name}",
                f"{format_duration(one.halt_ns)} at {format_duration(one.halt_at_ns or 0)}{before}",
                f"time without any of its {one.operation}",
            )
        )
    if one.latency_p99_ns is not None and one.latency_mean_ns is not None:
        usual_ns = one.usual_latency_p99_ns
        before = f"; before {format_duration(usual_ns)}" if usual_ns is not None else ""
        found.append(
            Figure(
                f"Latency of {one.name}",
                f"99 % within {format_duration(one.latency_p99_ns)}{before}; "
                f"mean {format_duration(one.latency_mean_ns)}",
                "the guest's own histogram, in powers of two",
            )
        )
    return found


def _ping_figure(ping: PingFelt, client: str) -> Figure:
    text = (
        f"{ping.lost:,} of {ping.sent:,} lost, {ping.late:,} later than "
        f"{format_duration(ping.late_after_ns)}; longest outage {format_duration(ping.outage_ns)}"
    )
    if ping.median_ns is not None and ping.maximum_ns is not None:
        text += (
            f"; round trip {format_duration(ping.median_ns)} median, "
            f"{format_duration(ping.maximum_ns)} most"
        )
    who = "the guest's vCPUs" if ping.by_guest else "its kernel: the network was away, no more"
    measured = f"one every {format_duration(ping.interval_ns)}, answered by {who}"
    return Figure(f"Pings from {client}", text, measured)


def _session_figure(one: SessionFelt, client: str) -> Figure:
    counts = ", ".join(f"{count:,} {name}" for name, count in one.counts.items())
    text = (
        f"{counts}, {format_size(one.received_bytes)}; longest gap "
        f"{format_duration(one.longest_gap_ns)} at {format_duration(one.longest_gap_at_ns)}"
    )
    if one.trouble:
        text += f"; {one.trouble}"
    return Figure(
        f"{one.service.capitalize()} session from {client}",
        text,
        "one TCP connection, open all the time; every byte checked",
    )


def chart_part(felt: Felt, engine: EngineReport | None) -> list[str]:
    """The page's chart, with its heading; nothing where there is nothing to draw."""
    chart = felt_chart(felt, engine)
    if chart is None:
        return []
    return [
        "<h2>What the guest felt</h2>",
        (
            f'<figure><figcaption><span class="key first"></span>{escape(chart.title.lower())}, '
            'per second, counted by the guest itself &nbsp; <span class="key stun"></span>guest '
            "stunned</figcaption>"
        ),
        svg.render(chart),
        "<output></output></figure>",
    ]
