"""What the kernel counts at the ports of virtual switches, read at one time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.kernel.channels import Channels
from testbed.kernel.iochain.ports import open_cells
from testbed.kernel.observation import observe
from testbed.plan.plan import kernel_steps
from testbed.plan.policies import Shape
from testbed.plan.steps import Veth
from testbed.report.port_rates import ClassReading, Direction, PortReading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.kernel.iochain.cells import Cells, ChainCounters
    from testbed.kernel.iochain.cells import Direction as ChainDirection
    from testbed.kernel.observation import Observation
    from testbed.lab.switch_ports import SwitchPort
    from testbed.plan.plan import Plan

_FILTERS = frozenset({"leave", "team", "untag", "carry"})
"""Stages that drop a bridge's superfluous copies: nothing is lost by them."""


class PortReader:
    """Reads the counters of ports, whose IOChains' cells it holds open until `close`.

    Raises:
        KernelError: the kernel does not answer.
    """

    def __init__(self, plan: Plan, ports: Sequence[SwitchPort]) -> None:
        where = {port.netns for port in ports}
        self._ports = ports
        self._steps = [
            step
            for step in kernel_steps(plan.steps)
            if isinstance(step, Shape)
            or (isinstance(step, Veth) and {step.a.netns, step.b.netns} & where)
        ]
        self._class_names = {
            (step.netns, step.dev): {one.minor: one.name for one in step.classes}
            for step in self._steps
            if isinstance(step, Shape)
        }
        self._closing = ExitStack()
        self._cells: dict[SwitchPort, Cells] = netns.in_thread(lambda _: self._open_cells())

    def _open_cells(self) -> dict[SwitchPort, Cells]:
        found = {}
        with Channels() as channels:
            for port in self._ports:
                if port.chained:
                    try:
                        index = channels.index(port.netns, port.dev)
                        target = f"{port.dev} in {port.netns}"
                        cells = open_cells(channels.socket(port.netns), index, target)
                    except KernelError:  # a migration is making it, or taking it away
                        continue
                    self._closing.callback(cells.close)
                    found[port] = cells
        return found

    def read(self) -> dict[SwitchPort, PortReading]:
        """The counters now; ports that don't stand (a migration is moving them) are left out.

        Raises:
            KernelError: the kernel does not answer.
        """
        seen = observe(self._steps)
        at_ns = time.monotonic_ns()
        chains = {port: cells.counters() for port, cells in self._cells.items()}
        found = {}
        for port in self._ports:
            here = seen.get(f"link {port.netns}/{port.dev}")
            if here is not None and here.link.counters is not None:
                names = self._class_names.get((port.netns, port.dev), {})
                found[port] = _reading(port, here, chains.get(port), names, at_ns)
        return found

    def uplinks(self) -> dict[SwitchPort, str]:
        """The uplink that each local port sends by now: the one in its IOChain, or the only one."""
        found = {}
        for port in self._ports:
            if port.adapter is None or not port.uplinks:
                continue
            if len(port.uplinks) == 1:
                found[port] = port.uplinks[0]
            elif port in self._cells:
                number = self._cells[port].counters().uplink
                found[port] = port.uplinks[number - 1] if number else "none"
        return found

    def close(self) -> None:
        """Let go of the cells."""
        self._closing.close()


def _reading(
    port: SwitchPort,
    seen: Observation,
    chain: ChainCounters | None,
    class_names: dict[int, str],
    at_ns: int,
) -> PortReading:
    counters = seen.link.counters
    assert counters is not None
    queue = seen.qdisc.dropped if seen.qdisc is not None else 0
    incoming = Direction(
        counters.rx_packets, counters.rx_bytes, counters.rx_dropped, counters.rx_errors
    )
    outgoing = Direction(
        counters.tx_packets, counters.tx_bytes, counters.tx_dropped + queue, counters.tx_errors
    )
    if chain is not None:  # it counts a train of TCP segments as the packets of a wire
        incoming, outgoing = _chained(incoming, chain.incoming), _chained(outgoing, chain.outgoing)
    if seen.shape is not None:  # what has left the queue
        outgoing = replace(outgoing, packets=seen.shape.sent_packets, bytes=seen.shape.sent_bytes)
    # What the switch's port receives is what the adapter plugged into it sends.
    tx, rx = (outgoing, incoming) if port.adapter is None else (incoming, outgoing)
    classes = {
        name: ClassReading(fact.sent_packets, fact.sent_bytes, fact.dropped, fact.queued_bytes)
        for minor, name in class_names.items()
        if (fact := seen.classes.get(minor)) is not None
    }
    return PortReading(at_ns, tx, rx, seen.link.mtu, seen.link.running, classes)


def _chained(direction: Direction, counted: ChainDirection) -> Direction:
    refused = sum(count for kind, count in counted.drops.items() if kind not in _FILTERS)
    return replace(
        direction,
        packets=counted.packets,
        bytes=counted.bytes,
        dropped=direction.dropped + refused,
    )
