"""A step in one line for people."""

from __future__ import annotations

from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.workload_text import describe_workloads
from testbed.plan.policies import Chain, DelayLine, Netem, Offloads, Shape
from testbed.plan.policy_text import describe_policy
from testbed.plan.steps import (
    Address,
    Bridge,
    DatastoreDirectory,
    End,
    Netns,
    PowerOn,
    Route,
    Rule,
    Step,
    Veth,
)
from testbed.units import format_size


def describe_undo(step: Step) -> str:
    """What undoing the step takes away."""
    return f"power off {step.vm} on {step.host}" if isinstance(step, PowerOn) else describe(step)


def describe_altered(step: Step) -> str:
    """What a step that is altered in place is then; a VM that runs on only does something else."""
    if isinstance(step, PowerOn):
        return f"{step.vm} on {step.host} does {describe_workloads(step.workloads)}"
    return describe(step)


def describe(step: Step) -> str:  # noqa: PLR0911  (one line for each kind of step)
    """What the step makes: `veth vmnic0 in tb.lab.esx01 <-> esx01-vmnic0 in tb.lab.tor-a`."""
    match step:
        case Netns():
            return f"namespace {step.name} ({step.role})"
        case Bridge():
            return f"bridge {step.name} in {step.netns}, MTU {step.mtu}"
        case Veth(a, b):
            ends = f"{a.name} in {a.netns} <-> {b.name} in {b.netns}"
            return f"veth {ends}, MTU {a.mtu}/{b.mtu}{_settings(a)}{_settings(b)}"
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
            return describe_policy(step)
        case DatastoreDirectory():
            return f"datastore {step.name} for {', '.join(step.hosts)}"
        case PowerOn():
            return (
                f"power on {step.vm} on {step.host}: {format_size(step.memory_bytes)}"
                f"{_memory(step)}, {step.vcpus} vCPU, {describe_workloads(step.workloads)}"
            )


def _memory(step: PowerOn) -> str:
    """What of a VM's memory isn't the ordinary."""
    words = []
    if step.backing == "synthetic":
        words.append("synthetic")
    if step.page_bytes != SMALL_PAGE_BYTES:
        words.append(f"in pages of {format_size(step.page_bytes)}")
    if step.resident_bytes is not None:
        words.append(f"{format_size(step.memory_bytes - step.resident_bytes)} of it swapped")
    return f" ({', '.join(words)})" if words else ""


def _settings(end: End) -> str:
    """What of an end isn't the kernel's own."""
    words = [
        word
        for word, applies in (
            ("isolated", end.isolated),
            ("without learning", not end.learning),
            ("without flooding", not end.flooding),
        )
        if applies
    ]
    return f"; {end.name} {', '.join(words)}" if words else ""
