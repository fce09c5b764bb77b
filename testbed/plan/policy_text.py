"""Rates, chains, delays and offloads in one line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.plan import stages
from testbed.plan.policies import Chain, DelayLine, Netem, Offloads, Shape
from testbed.topology.traffic import SYSTEM_TRAFFIC
from testbed.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.plan.policies import TrafficClass
    from testbed.plan.stages import Ranges, Stage

_NOTHING = 1 / 1000  # of the link: a class that is guaranteed less is guaranteed nothing

_WORDS = {
    "forged_transmits": "no forged transmits",
    "mac_changes": "no MAC changes",
    "queue": "queue by class",
    "queue_by_cos": "queue by CoS",
    "queue_by_dscp": "queue by DSCP",
}


def describe_policy(step: Shape | Chain | Offloads | Netem | DelayLine) -> str:
    """What the step makes: `netem 2.5 ms on p1 in tb.lab.wire, at most 1000 packets`."""
    match step:
        case Shape():
            return f"HTB {_rates(step)} on {step.dev} in {step.netns}{_classes(step)}"
        case Chain():
            ways = [
                f"{way} {', '.join(map(describe_stage, chain))}"
                for way, chain in (("in", step.incoming), ("out", step.outgoing))
                if chain
            ]
            return f"IOChain on {step.dev} in {step.netns}: {'; '.join(ways) or 'no stages'}"
        case Offloads():
            tso, checksum = ("on" if on else "off" for on in (step.segmentation, step.checksum))
            return f"offloads of {step.dev} in {step.netns}: TSO {tso}, checksum {checksum}"
        case Netem():
            delay = _delay(step.delay_ns, step.jitter_ns)
            limit = f"at most {step.limit_packets} packets"
            return f"netem {delay} on {step.dev} in {step.netns}, {limit}"
        case DelayLine():
            ways = [
                f"{_delay(delay.delay_ns, delay.jitter_ns)} from {port}"
                for port, delay in zip(step.ports, step.delays, strict=True)
            ]
            return f"delay line {step.link} in {step.netns}: {', '.join(ways)}"


def _rates(step: Shape) -> str:
    told = f"told {format_rate(step.htb_rate_bytes_per_s * 8)}"
    peak = step.ceil_bytes_per_s
    if peak is not None and peak != step.htb_rate_bytes_per_s:
        told += f", peak {format_rate(peak * 8)}"
    queue = "" if step.queue_bytes is None else f", queue {format_size(step.queue_bytes)}"
    return f"{format_rate(step.rate_bps)} ({told}, burst {step.burst_bytes} B{queue})"


def _classes(step: Shape) -> str:
    """The classes, those of a second qdisc in brackets behind the one that it divides."""
    if not step.classes:
        return ""
    outer = [one for one in step.classes if one.major == 1]
    inner = [one for one in step.classes if one.major != 1]
    words = []
    for one, text in zip(outer, _shares(outer, step), strict=True):
        inside = f" [{', '.join(_shares(inner, step))}]" if one.minor == step.default else ""
        words.append(text + (inside if inner else ""))
    lending = "" if step.lends_idle else "; idle reservations are lent to nobody"
    return f"; by weight: {', '.join(words)}{lending}"


def _shares(classes: Iterable[TrafficClass], step: Shape) -> list[str]:
    """`vmotion 2 (299 Mbit/s up to 798 Mbit/s)`: the weight, what is guaranteed and allowed."""
    link = step.ceil_bytes_per_s or step.htb_rate_bytes_per_s
    least = min((one.quantum_bytes for one in classes), default=1)
    found = []
    for one in classes:
        rate, most = one.rate_bytes_per_s, one.ceil_bytes_per_s
        words = [format_rate(rate * 8)] if rate > link * _NOTHING else []
        words += [f"up to {format_rate(most * 8)}"] if most < link else []
        limits = f" ({' '.join(words)})" if words else ""
        found.append(f"{one.name} {one.quantum_bytes / least:.3g}{limits}")
    return found


def _delay(delay_ns: int, jitter_ns: int) -> str:
    jitter = f" ± {format_duration(jitter_ns)}" if jitter_ns else ""
    return f"{format_duration(delay_ns)}{jitter}"


def describe_stage(stage: Stage) -> str:
    """A stage of an IOChain: `tag 20`, `carry 10,20-29 and untagged`, `leave by uplink 1`."""
    match stage:
        case stages.Tag(vid, cos):
            return f"tag {vid}{f' CoS {cos}' if cos else ''}" if vid else "untagged only"
        case stages.Untag(vid):
            return f"untag {vid}" if vid else "untagged only"
        case stages.Carry(vids, untagged):
            return f"carry {_numbers(vids)}{' and untagged' if untagged else ''}"
        case stages.Mirror(dev):
            return f"mirror to {dev}"
        case stages.Marking(rules):
            return f"marking by {len(rules)} rule{'s' if len(rules) != 1 else ''}"
        case stages.Classify(traffic, minor):
            name = f"{SYSTEM_TRAFFIC[traffic - 1]} traffic" if traffic else "no traffic type"
            return f"{name} in class {minor:x}" if minor else name
        case _:
            return _describe_rest(stage)


def _describe_rest(stage: Stage) -> str:
    match stage:
        case stages.Arrive(uplink, reflections):
            return f"arrive by uplink {uplink}{', no reflections' if reflections else ''}"
        case stages.Leave(uplink):
            return f"leave by uplink {uplink}"
        case stages.MaxSize(mtu):
            return f"at most {mtu} bytes"
        case stages.Lose(probability):
            return f"lose {100 * probability / stages.LOSS_UNIT:.3g} %"
        case _:
            return _WORDS.get(stage.kind, stage.kind)


def _numbers(ranges: Ranges) -> str:
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges) or "nothing"
