"""A result as one self-contained HTML page: charts, tables and the whole input."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.report import svg
from testbed.report.charts import pages_chart, throughput_chart
from testbed.report.document import document, table
from testbed.report.felt_page import chart_part, felt_figures
from testbed.report.figures import COLUMNS, iteration_cells, succeeded, summary, verdict
from testbed.report.files import write_whole
from testbed.report.rtt_chart import limits_of, rtt_chart
from testbed.units import format_duration, format_size

if TYPE_CHECKING:
    from testbed.report.result import EngineReport, MigrationResult, StreamReport

TILES = ("Total time", "Throughput while copying", "Stun", "Verification")


def write_page(result: MigrationResult, path: Path | str) -> None:
    """Writes the page, whole or not at all, over an older one of that name.

    Raises:
        InputError: the place can't be written.
    """
    write_whole(Path(path), render(result))


def render(result: MigrationResult) -> str:
    """The page: needs no network, and works without its script. All text is escaped."""
    title = f"{result.guest.name}: {result.source} to {result.destination}"
    return document(
        title, (*_head(result, title), *_charts(result), *_tables(result), *_input(result))
    )


def _head(result: MigrationResult, title: str) -> list[str]:
    scale = "" if result.scale_divisor == 1 else f", scale 1/{result.scale_divisor}"
    figures = {figure.name: figure.value for figure in summary(result)}
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{_tile(figures[name])}</dd></div>"
        for name in TILES
        if name in figures
    )
    style = "verdict" if succeeded(result) else "verdict bad"
    return [
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="{style}">{escape(verdict(result))}</p>',
        (
            f'<p class="soft">Lab {escape(result.lab)}{scale}, {escape(result.created)}, testbed '
            f"{escape(result.testbed_version)}</p></header>"
        ),
        f'<dl class="tiles">{tiles}</dl>',
    ]


def _tile(value: str) -> str:
    """The value without its reason, the nominal figure small below it."""
    head, _, aside = value.split(":", 1)[0].partition(" (")
    return escape(head) + (f"<small>({escape(aside)}</small>" if aside else "")


def _charts(result: MigrationResult) -> list[str]:
    engine = result.engine
    if engine is None or not (engine.iterations or engine.samples):
        moved = result.outcome == "completed"
        why = "What was measured is lost." if moved else "It ended before it copied anything."
        return [f'<p class="soft">{why}</p>']
    return [
        "<h2>Throughput</h2>",
        (
            '<figure><figcaption><span class="key first"></span>bytes that the destination\'s TCP '
            'acknowledged (TCP_INFO), per second &nbsp; <span class="key stun"></span>guest '
            "stunned</figcaption>"
        ),
        svg.render(throughput_chart(engine, result.path_goodput_bps)),
        "<output></output></figure>",
        "<h2>Pages</h2>",
        (
            '<figure><figcaption><span class="key first"></span>pages left to send &nbsp; '
            '<span class="key second"></span>pages found dirty at the end of a round &nbsp; '
            '<span class="key stun"></span>guest stunned</figcaption>'
        ),
        svg.render(pages_chart(engine)),
        "<output></output></figure>",
        *_limits_chart(result, engine),
        *(chart_part(result.felt, engine) if result.felt is not None else ()),
    ]


def _limits_chart(result: MigrationResult, engine: EngineReport) -> list[str]:
    """Where the hosts were modelled: what their CPU and the window allow at other distances."""
    limits = limits_of(result)
    if limits is None or result.rtt_ns is None:
        return []
    return [
        "<h2>What limits it, over the round-trip time</h2>",
        (
            '<figure><figcaption><span class="key second"></span>what the CPU allows, and as a dot '
            'the first round of this run &nbsp; <span class="key first"></span>window / RTT: what '
            "the payload in flight allows</figcaption>"
        ),
        svg.render(rtt_chart(limits, engine, result.rtt_ns)),
        "<output></output></figure>",
    ]


def _tables(result: MigrationResult) -> list[str]:
    engine, parts = result.engine, []
    if engine is not None and engine.iterations:
        rows = [iteration_cells(result, iteration) for iteration in engine.iterations]
        marked = {n for n, iteration in enumerate(engine.iterations) if iteration.stunned}
        parts += ["<h2>Iterations</h2>", table(COLUMNS, rows, "numbers", stunned=marked)]
    figures = [(figure.name, figure.value, figure.measured) for figure in summary(result)]
    parts += [
        "<h2>What was achieved, and how it was measured</h2>",
        table(("Figure", "Value", "Measured as"), figures),
    ]
    if result.felt is not None:
        told = [
            (figure.name, figure.value, figure.measured) for figure in felt_figures(result.felt)
        ]
        parts += ["<h2>Felt in figures</h2>", table(("Figure", "Value", "Measured as"), told)]
    if engine is not None and engine.streams:
        parts += ["<h2>Streams</h2>", _streams(engine)]
    return parts


def _streams(engine: EngineReport) -> str:
    heads = (
        *("From", "To", "Congestion control", "MSS", "Sent", "Most in flight", "Retransmitted"),
        *("RTT", "Buffers"),
    )
    rows = [
        (
            stream.source_address,
            stream.destination_address,
            stream.congestion_control,
            f"{stream.mss_bytes} B",
            format_size(stream.bytes) if stream.bytes else "-",
            _in_flight(stream),
            f"{stream.retransmitted_segments:,}",
            format_duration(stream.rtt_ns),
            f"{format_size(stream.send_buffer_bytes)}, {format_size(stream.receive_buffer_bytes)}",
        )
        for stream in engine.streams
    ]
    return table(heads, rows)


def _in_flight(stream: StreamReport) -> str:
    if not stream.bytes:
        return "-"
    window = "" if stream.window_bytes is None else f" of {stream.window_bytes:,}"
    return f"{stream.most_in_flight_bytes:,}{window} B"


def _input(result: MigrationResult) -> list[str]:
    guest = result.guest
    rows = [
        ("Command", result.command),
        ("Guest", f"{guest.name}: {format_size(guest.memory_bytes)}, {guest.vcpus} vCPU"),
        ("Memory", f"{guest.backing}, pages of {format_size(guest.page_bytes)}"),
        ("Workload", guest.workload),
        ("Switchover goal", format_duration(result.switchover_goal_ns)),
        ("Kernel", result.kernel),
    ]
    if result.scale_divisor != 1:
        k = result.scale_divisor
        rows.append(("Scale", f"1/{k}: nominal sizes and rates of the guest are {k} times these"))
    rows += sorted(result.mechanisms.items())
    return [
        "<h2>Input and mechanisms</h2>",
        table(("", ""), rows, head=False),
        f"<h2>Topology <code>{escape(result.topology_file)}</code></h2>",
        f"<pre>{escape(result.topology_text)}</pre>",
    ]
