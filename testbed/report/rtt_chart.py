"""What limits a transfer, over the round-trip time: the hosts' CPU, the window, the link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.report.svg import Chart, Limit, Line
from testbed.units import format_duration, format_rate

if TYPE_CHECKING:
    from testbed.report.hosts import HostReport
    from testbed.report.result import EngineReport, MigrationResult

LONGEST_RTT_NS = 20_000_000
"""As far as the curves are drawn at least; where a distance was measured, twice as far as it is."""
_STEPS = 200


@dataclass(frozen=True, slots=True)
class Limits:
    """What each cause allows to the streams of a migration, in bits a second; None: all of it.

    `cpu_bps`: the slower host's cores, at so many cycles for a byte and for a TCP segment (facts
    row 14). `window_bytes` are in flight at most, of all streams together, in a round trip.
    """

    cpu_bps: float | None
    window_bytes: int | None
    link_bps: int | None

    def at(self, rtt_ns: float) -> float | None:
        """The least of them at a round-trip time; None if nothing limits."""
        window = self.window_bps(rtt_ns)
        known = [bps for bps in (self.cpu_bps, window, self.link_bps) if bps is not None]
        return min(known, default=None)

    def window_bps(self, rtt_ns: float) -> float | None:
        """What fits the window at a round-trip time: window / RTT."""
        return self.window_bytes * 8e9 / rtt_ns if self.window_bytes and rtt_ns else None


def limits_of(result: MigrationResult) -> Limits | None:
    """What limited this migration in theory; None if neither a CPU nor a window was modelled."""
    engine = result.engine
    if engine is None or not engine.streams:
        return None
    mss_bytes = min(stream.mss_bytes for stream in engine.streams)
    caps = [_cpu_bps(host, len(engine.streams), mss_bytes) for host in result.hosts]
    known = [cap for cap in caps if cap is not None]
    windows = [stream.window_bytes for stream in engine.streams]
    window_bytes = sum(filter(None, windows)) if all(windows) else None
    if not known and window_bytes is None:
        return None
    return Limits(min(known, default=None), window_bytes, result.path_goodput_bps)


def _cpu_bps(host: HostReport, streams: int, mss_bytes: int) -> float | None:
    """What a host's cores can send or receive; a stream helper is one core."""
    per_byte, per_packet = (
        float(host.values[key].value) for key in ("cycles_per_byte", "cycles_per_packet")
    )
    cycles = per_byte + per_packet / mss_bytes
    if host.mhz is None or not cycles:
        return None
    shared = host.values["vmotion_cores"].value
    cores = min(streams, host.cores if shared == "all" else int(shared))
    return host.mhz * 1e6 * cores / cycles * 8


def rtt_chart(limits: Limits, engine: EngineReport, rtt_ns: int) -> Chart:
    """Both curves over the round-trip time, and what was measured at this one."""
    measured_bps = engine.iterations[0].throughput_bps if engine.iterations else 0.0
    end_ns = float(max(LONGEST_RTT_NS, 2 * rtt_ns))
    known = [bps for bps in (limits.cpu_bps, limits.link_bps) if bps is not None]
    highest = 1.2 * max([*known, measured_bps])
    times = [end_ns * step / _STEPS for step in range(1, _STEPS + 1)]
    lines = []
    if limits.cpu_bps is not None:
        cpu = ((0.0, limits.cpu_bps), (end_ns, limits.cpu_bps))
        lines.append(Line("CPU", "second", cpu))
    if limits.window_bytes is not None:
        inside = [(at, bps) for at in times if (bps := limits.window_bps(at) or 0) <= highest]
        lines.append(Line("window / RTT", "first", tuple(inside)))
    lines.append(Line("measured", "second", ((float(rtt_ns), measured_bps),), dots=True))
    return Chart(
        name="rtt",
        title="What limits the transfer, over the round-trip time",
        description="What the hosts' CPU allows as a level, what the window allows as a curve "
        f"over the round-trip time, and what was measured at {format_duration(rtt_ns)} as a dot: "
        f"{format_rate(measured_bps)}.",
        unit="Gbit/s",
        divisor=1e9,
        end_ns=end_ns,
        lines=tuple(lines),
        limit=_link(limits.link_bps),
        axis="Round-trip time",
        readings=tuple((at, _reading(limits, at)) for at in times),
    )


def _link(link_bps: int | None) -> Limit | None:
    if link_bps is None:
        return None
    return Limit(f"the path can carry {format_rate(link_bps)}", float(link_bps))


def _reading(limits: Limits, at_ns: float) -> str:
    allowed = limits.at(at_ns)
    return f"RTT {format_duration(at_ns)}: at most {format_rate(allowed or 0)}"
