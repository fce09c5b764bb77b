"""What a port of a running lab does with frames: its IOChain, its rates and its offloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.kernel.iochain.ports import counters
from testbed.kernel.iochain.text import describe_chain
from testbed.kernel.offloads import read_offloads
from testbed.lab.capture_point import capture_point
from testbed.lab.switch_ports import switch_ports
from testbed.plan.policies import Chain, Shape
from testbed.plan.steps import Netns, Veth
from testbed.plan.text import describe

if TYPE_CHECKING:
    from testbed.kernel.iochain.text import WayRow
    from testbed.lab.journal import Journal


@dataclass(frozen=True, slots=True)
class NicState:
    """A vmnic's offloads, and the bytes that may wait at it: to be sent, and to be received.

    Those are of each class's queue; None where no rate makes anything wait.
    """

    tso: bool
    lro: bool
    checksum: bool
    tx_queue_bytes: int | None
    rx_queue_bytes: int | None


@dataclass(frozen=True, slots=True)
class PortChain:
    """A port: both directions of its chain, and in words what stands around it.

    `uplink` is the vmnic that it is pinned to now, None if it has no choice or none is alive.
    `rates` are those of what is plugged in and of the port. `nic`, the last stage, has a vmnic.
    """

    netns: str
    dev: str
    chain: Chain
    ways: tuple[WayRow, WayRow]
    uplink: str | None
    rates: tuple[str, ...]
    nic: NicState | None


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
        uplink=uplinks[counted.uplink - 1] if 0 < counted.uplink <= len(uplinks) else None,
        rates=tuple(
            describe(step)
            for step in journal.plan.steps
            if isinstance(step, Shape) and (step.netns, step.dev) in devices
        ),
        nic=_nic(journal, place) if switch_port is not None and not switch_port.adapter else None,
    )


def _nic(journal: Journal, vmnic: tuple[str, str]) -> NicState:
    """A vmnic as it is: the cable's other end cuts trains and queues for its receiving side."""
    wire = next(
        step
        for step in journal.plan.steps
        if isinstance(step, Veth) and (step.a.netns, step.a.name) == vmnic
    )
    tso, checksum = read_offloads(*vmnic)
    lro, _ = read_offloads(wire.b.netns, wire.b.name)
    queues = {
        (step.netns, step.dev): step.queue_bytes
        for step in journal.plan.steps
        if isinstance(step, Shape)
    }
    tx, rx = (queues.get((end.netns, end.name)) for end in (wire.a, wire.b))
    return NicState(tso, lro, checksum, tx, rx)
