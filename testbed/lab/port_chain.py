"""What a port of a running lab does with frames: its IOChain, its rates and its offloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.kernel.chain_ports import counters
from testbed.kernel.chain_text import describe_chain
from testbed.lab.capture_point import capture_point
from testbed.lab.switch_ports import switch_ports
from testbed.plan.policies import Chain, Offloads, Shape
from testbed.plan.steps import Netns
from testbed.plan.text import describe

if TYPE_CHECKING:
    from testbed.kernel.chain_text import WayRow
    from testbed.lab.journal import Journal


@dataclass(frozen=True, slots=True)
class PortChain:
    """A port: both directions of its chain, and in words what stands around it.

    `uplink` is the vmnic that it is pinned to now, None if it has no choice or none is alive.
    `rates` are those of what is plugged in and of the port, `offloads` the last stage.
    """

    netns: str
    dev: str
    chain: Chain
    ways: tuple[WayRow, WayRow]
    uplink: str | None
    rates: tuple[str, ...]
    offloads: tuple[str, ...]


def port_chain(journal: Journal, wanted: str) -> PortChain:
    """The chain of a port, named NODE/PORT, or by the adapter in it: esx01/vmk1, db01/eth0.

    Raises:
        InputError: there is no such port, or it has no chain; the message lists those that do.
        KernelError: the kernel does not answer.
    """
    place = capture_point(journal.plan, wanted).port
    chains = {(s.netns, s.dev): s for s in journal.plan.steps if isinstance(s, Chain)}
    if place is None or place not in chains:
        nodes = {step.name: step.node for step in journal.plan.steps if isinstance(step, Netns)}
        there = ", ".join(sorted(f"{nodes[where]}/{dev}" for where, dev in chains))
        raise InputError(f"{wanted} is no port with an IOChain; there are: {there or 'none'}")
    chain = chains[place]
    switch_port = next((p for p in switch_ports(journal) if (p.netns, p.dev) == place), None)
    counted = counters(*place)
    uplinks = switch_port.uplinks if switch_port is not None and switch_port.adapter else ()
    devices = {place, *([switch_port.adapter] if switch_port and switch_port.adapter else [])}
    return PortChain(
        netns=place[0],
        dev=place[1],
        chain=chain,
        ways=describe_chain(chain, counted),
        uplink=uplinks[counted.uplink - 1] if uplinks and counted.uplink else None,
        rates=_words(journal, devices, Shape),
        offloads=_words(journal, devices, Offloads),
    )


def _words(
    journal: Journal, devices: set[tuple[str, str]], kind: type[Shape | Offloads]
) -> tuple[str, ...]:
    return tuple(
        describe(step)
        for step in journal.plan.steps
        if isinstance(step, Shape | Offloads)
        and isinstance(step, kind)
        and (step.netns, step.dev) in devices
    )
