"""The two charts of a migration: throughput, and pages, over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.report.figures import MOST_POINTS, throughput_series
from testbed.report.svg import Band, Chart, Limit, Line
from testbed.units import format_duration, format_rate

if TYPE_CHECKING:
    from testbed.report.result import EngineReport, Iteration, Sample

RATE_UNITS = (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3), ("bit/s", 1.0))


def throughput_chart(engine: EngineReport, path_goodput_bps: int | None) -> Chart:
    """Bytes acknowledged by the destination's TCP, per second."""
    series = throughput_series(engine)
    points = tuple((at, rate) for begin, end, rate in series for at in (begin, end))
    highest = max([rate for _, _, rate in series] + [float(path_goodput_bps or 0)])
    unit, divisor = next(((u, d) for u, d in RATE_UNITS if highest >= 0.5 * d), RATE_UNITS[-1])
    limit = None
    if path_goodput_bps:
        limit = Limit(
            f"the path can carry {format_rate(path_goodput_bps)}", float(path_goodput_bps)
        )
    return Chart(
        name="throughput",
        title="Throughput",
        description=f"Throughput in {unit} over the time of the migration, phases shaded; "
        f"at most {format_rate(highest)}.",
        unit=unit,
        divisor=divisor,
        end_ns=end_ns(engine),
        lines=(Line("delivered", "first", points, area=True),),
        bands=bands(engine),
        limit=limit,
        readings=tuple(
            ((begin + end) / 2, f"{format_duration((begin + end) / 2)}: {format_rate(rate)}")
            for begin, end, rate in series
        ),
    )


def pages_chart(engine: EngineReport) -> Chart:
    """Pages still to send, and those found dirty at the end of each round."""
    samples = _thinned(engine.samples)
    left = tuple((float(s.at_ns), float(s.pages_left)) for s in samples)
    rounds = [i for i in engine.iterations if not i.stunned]
    dirty = tuple((float(_end_ns(i)), float(i.dirty_pages)) for i in rounds)
    readings = [
        (float(s.at_ns), f"{format_duration(s.at_ns)}: {s.pages_left:,} pages left")
        for s in samples
    ] + [
        (float(_end_ns(i)), f"end of phase {i.number}: {i.dirty_pages:,} pages found dirty")
        for i in rounds
    ]
    return Chart(
        name="pages",
        title="Pages left to send, and found dirty",
        description="Pages left to send over the time of the migration as a line, and the pages "
        "found dirty at the end of each round as dots.",
        unit="pages",
        divisor=1,
        end_ns=end_ns(engine),
        lines=(Line("left to send", "first", left), Line("dirty", "second", dirty, dots=True)),
        bands=bands(engine),
        readings=tuple(sorted(readings)),
    )


def bands(engine: EngineReport) -> tuple[Band, ...]:
    """The phases: preparation, the rounds from -1 on, and the stun."""
    found = []
    if engine.iterations and engine.iterations[0].at_ns > 0:
        found.append(Band(0, engine.iterations[0].at_ns, "prepare", "prepare"))
    for iteration in engine.iterations:
        begin, end = iteration.at_ns, _end_ns(iteration)
        if not iteration.stunned:
            found.append(
                Band(begin, end, f"phase {iteration.number}".replace("-", "\N{MINUS SIGN}"))
            )
            continue
        stun = engine.stun_ns
        label = "stun, not timed" if stun is None else f"stun {format_duration(stun)}"
        found.append(Band(begin, end, label, "stun"))
    return tuple(found)


def end_ns(engine: EngineReport) -> float:
    """The last instant of the charts: the end of the last round or sample."""
    ends = [_end_ns(iteration) for iteration in engine.iterations]
    return float(max([*ends, *(sample.at_ns for sample in engine.samples[-1:]), 1]))


def _end_ns(iteration: Iteration) -> int:
    return iteration.at_ns + iteration.duration_ns


def _thinned(samples: tuple[Sample, ...]) -> list[Sample]:
    """At most MOST_POINTS, evenly, with both ends."""
    step = max(1, -(-len(samples) // MOST_POINTS))
    thinned = list(samples[::step])
    if samples and thinned[-1] is not samples[-1]:
        thinned.append(samples[-1])
    return thinned
