"""A step in one line for people."""

from __future__ import annotations

from testbed.plan.policies import Chain, DelayLine, Netem, Offloads, Shape
from testbed.plan.steps import (
    Address,
    Bridge,
    DatastoreDirectory,
    Netns,
    PowerOn,
    Route,
    Rule,
    Step,
    Veth,
)
from testbed.units import format_byte_rate, format_duration, format_rate, format_size


def describe_undo(step: Step) -> str:
    """What undoing the step takes away."""
    return f"power off {step.vm} on {step.host}" if isinstance(step, PowerOn) else describe(step)


def describe(step: Step) -> str:  # noqa: PLR0911  (one line for each kind of step)
    """What the step makes: `veth vmnic0 in tb.lab.esx01 <-> esx01-vmnic0 in tb.lab.tor-a`."""
    match step:
        case Netns():
            return f"namespace {step.name} ({step.role})"
        case Bridge():
            return f"bridge {step.name} in {step.netns}, MTU {step.mtu}"
        case Veth(a, b):
            return f"veth {a.name} in {a.netns} <-> {b.name} in {b.netns}, MTU {a.mtu}/{b.mtu}"
        case Address():
            return f"address {step.address} on {step.dev} in {step.netns}"
        case Route():
            via = f" via {step.via}" if step.via else ""
            return (
                f"route {step.destination}{via} dev {step.dev} table {step.table} in {step.netns}"
            )
        case Rule():
            return f"rule from {step.source} table {step.table} in {step.netns}"
        case Shape() | Chain() | Offloads() | Netem() | DelayLine():
            return _policy(step)
        case DatastoreDirectory():
            return f"datastore {step.name} for {', '.join(step.hosts)}"
        case PowerOn():
            rate = format_byte_rate(step.dirty_rate_bytes_per_s)
            return (
                f"power on {step.vm} on {step.host}: {format_size(step.memory_bytes)},"
                f" {step.vcpus} vCPU, {step.workload} {rate}"
            )


def _policy(step: Shape | Chain | Offloads | Netem | DelayLine) -> str:
    match step:
        case Shape():
            return f"HTB {_rates(step)} on {step.dev} in {step.netns}{_classes(step)}"
        case Chain():
            ways = [
                f"{way} {', '.join(stage.kind for stage in stages)}"
                for way, stages in (("in", step.incoming), ("out", step.outgoing))
                if stages
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
    return f"{format_rate(step.rate_bps)} ({told}, burst {step.burst_bytes} B)"


def _classes(step: Shape) -> str:
    if not step.classes:
        return ""
    shares = [
        f"{one.name} {format_rate(one.rate_bytes_per_s * 8)}"
        f" to {format_rate(one.ceil_bytes_per_s * 8)}"
        for one in step.classes
    ]
    return f": {', '.join(shares)}"


def _delay(delay_ns: int, jitter_ns: int) -> str:
    jitter = f" ± {format_duration(jitter_ns)}" if jitter_ns else ""
    return f"{format_duration(delay_ns)}{jitter}"
