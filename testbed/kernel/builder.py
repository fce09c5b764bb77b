"""Plan steps carried out in the kernel, all or nothing."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.kernel import messages, netns, readback, routing, sysctl
from testbed.kernel.channels import Channels
from testbed.kernel.fittings import Fittings, qdiscs
from testbed.kernel.iochain.attaching import attach_all
from testbed.kernel.offloads import set_offloads
from testbed.kernel.port_closing import close_ports
from testbed.kernel.refusals import kernel_error
from testbed.kernel.undo import remove, undo
from testbed.plan.policies import Chain, Offloads
from testbed.plan.steps import Address, Bridge, End, KernelStep, Netns, Route, Rule, Veth

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from testbed.kernel.fittings import Fitting
    from testbed.plan.policies import Netem, Shape


_PORT_DEFAULTS = (False, True, True)  # isolated, learning, flooding: the kernel's own


@dataclass(frozen=True, slots=True)
class Built:
    """What a build made: its steps in order, and the inode of each namespace by name."""

    steps: tuple[KernelStep, ...]
    namespaces: dict[str, int]


class Interrupted(KeyboardInterrupt):
    """The build was told to stop; what it had made is gone."""


@dataclass(frozen=True, slots=True)
class _Message:
    data: bytearray
    step: KernelStep
    makes: bool = False  # once it is acknowledged there is something to undo


def build(
    steps: Sequence[KernelStep],
    *,
    batch: int = 100,
    before: Callable[[KernelStep], None] | None = None,
) -> Built:
    """Carry out steps, read everything back, and on any failure or interrupt undo them all.

    Steps may stand on namespaces and links of earlier builds. Shapes, delays and chains are
    put on while their wire is still down, which spares the kernel a grace period for each.

    Args:
        steps: in an order in which each follows what it needs.
        batch: how many steps are sent together; 1 to have each in the kernel before the next.
        before: called before each step is sent, in the thread that builds: for progress.
            What it raises undoes the build.

    Raises:
        KernelError: the kernel refused a step, or did not keep it.
    """
    finished: list[Built] = []

    def away(stop: threading.Event) -> Built:
        finished.append(_build(tuple(steps), batch, before, stop))
        return finished[0]

    try:
        return netns.in_thread(away)
    except BaseException:
        if finished:  # the interrupt came when all was done: the caller will not know of it
            remove(finished[0].steps)
        raise


def _build(
    steps: tuple[KernelStep, ...],
    batch: int,
    before: Callable[[KernelStep], None] | None,
    stop: threading.Event,
) -> Built:
    with Channels() as channels, ExitStack() as undoing:
        work = _Work(channels, Fittings(steps))
        undoing.callback(lambda: undo(channels, work.made))
        for start in range(0, len(steps), batch):
            chunk = steps[start : start + batch]
            for step in chunk:
                if stop.is_set():
                    raise Interrupted
                if before is not None:
                    before(step)
            work.carry_out(chunk)
        work.finish()
        readback.compare(channels, steps)
        undoing.pop_all()
    names = [step.name for step in steps if isinstance(step, Netns)]
    return Built(steps, {name: netns.identity(name) for name in names})


class _Work:
    def __init__(self, channels: Channels, fittings: Fittings) -> None:
        self._channels = channels
        self._fittings = fittings
        self._ends: list[End] = []
        self._prepared = False
        self.made: list[KernelStep] = []

    def carry_out(self, chunk: Sequence[KernelStep]) -> None:
        """Send some steps: kind by kind, for the messages to one namespace to go together."""
        self._make_namespaces([step for step in chunk if isinstance(step, Netns)])
        bridges = [step for step in chunk if isinstance(step, Bridge)]
        self._send(self._bridges(bridges))
        for nic in (step for step in bridges if step.mac is not None):
            self._channels.step_into(nic.netns)
            sysctl.keep_neighbours(nic.name, nic.netns)
        veths = [step for step in chunk if isinstance(step, Veth)]
        self._send_veths(veths)
        self._fit(self._fittings.due(chunk))
        self._send(self._ends_of(veths))
        for step in chunk:
            if isinstance(step, Offloads):
                self.made.append(step)  # at once: halfway set, it is to be undone, too
                set_offloads(self._channels, step)
        addresses = [step for step in chunk if isinstance(step, Address)]
        self._enable_ipv6(addresses)
        self._send(self._addresses(addresses))
        self._send(self._routing(chunk))

    def _make_namespaces(self, steps: Sequence[Netns]) -> None:
        if steps and not self._prepared:
            netns.prepare()
            self._prepared = True
        for step in steps:
            netns.create(step.name)
            self.made.append(step)
            self._channels.adopt(step.name)
            for name, value in sysctl.applicable(step.sysctls):
                sysctl.write(name, value, step.name)
            self._send(iter([(step.name, _Message(messages.set_up(1), step))]))

    def _bridges(self, steps: Sequence[Bridge]) -> Iterator[tuple[str, _Message]]:
        for step in steps:
            index = self._channels.choose_index(step.netns, step.name)
            made = messages.create_bridge(
                index, step.name, step.mtu, step.mac, remembers=step.remembers
            )
            yield step.netns, _Message(made, step, makes=True)
            data = messages.configure(index, step.mtu, alias=step.alias)
            yield step.netns, _Message(data, step)

    def _send_veths(self, steps: Sequence[Veth]) -> None:
        with ExitStack() as closing:
            fds: dict[str, int] = {}
            for step in steps:
                if step.b.netns not in fds:
                    fds[step.b.netns] = netns.open_fd(step.b.netns)
                    closing.callback(os.close, fds[step.b.netns])
            self._send(self._veths(steps, fds))

    def _veths(self, steps: Sequence[Veth], fds: dict[str, int]) -> Iterator[tuple[str, _Message]]:
        for step in steps:
            a, b = step.a, step.b
            index = self._channels.choose_index(a.netns, a.name)
            # Two ends of one number look like one device, whose carrier waits up to 1 s.
            peer = self._channels.choose_index(b.netns, b.name, unlike=index)
            made = messages.create_veth(step, index, peer, fds[b.netns])
            yield a.netns, _Message(made, step, makes=True)
            self._ends += (a, b)

    def _fit(self, steps: Sequence[Fitting]) -> None:
        self._send(self._qdiscs([step for step in steps if not isinstance(step, Chain)]))
        chains = [step for step in steps if isinstance(step, Chain)]
        if chains:
            attach_all(self._channels, chains)
            self.made += chains

    def _qdiscs(self, steps: Sequence[Shape | Netem]) -> Iterator[tuple[str, _Message]]:
        for step in steps:
            index = self._channels.index(step.netns, step.dev)
            for n, data in enumerate(qdiscs(step, index)):
                yield step.netns, _Message(data, step, makes=n == 0)

    def _ends_of(self, steps: Sequence[Veth]) -> Iterator[tuple[str, _Message]]:
        for step in steps:
            for end in (step.a, step.b):
                index = self._channels.index(end.netns, end.name)
                master = self._channels.index(end.netns, end.master) if end.master else 0
                has_policy = (end.isolated, end.learning, end.flooding) != _PORT_DEFAULTS
                up = end.forwarding and not has_policy
                data = messages.configure(index, end.mtu, master, end.alias, up)
                yield end.netns, _Message(data, step)
                if has_policy:
                    yield end.netns, _Message(messages.port_policy(index, end), step)
                if not end.forwarding:
                    yield end.netns, _Message(messages.port_flags(index, False), step)
                if not up:  # only now, or it might close a loop
                    yield end.netns, _Message(messages.set_up(index), step)

    def _enable_ipv6(self, steps: Sequence[Address]) -> None:
        for where, dev in dict.fromkeys((s.netns, s.dev) for s in steps if ":" in s.address):
            self._channels.step_into(where)
            sysctl.enable_ipv6(dev, where)

    def _addresses(self, steps: Sequence[Address]) -> Iterator[tuple[str, _Message]]:
        for step in steps:
            index = self._channels.index(step.netns, step.dev)
            yield step.netns, _Message(routing.address(step, index), step, makes=True)

    def _routing(self, chunk: Sequence[KernelStep]) -> Iterator[tuple[str, _Message]]:
        for step in chunk:
            if isinstance(step, Route):
                index = self._channels.index(step.netns, step.dev)
                yield step.netns, _Message(routing.route(step, index), step, makes=True)
            elif isinstance(step, Rule):
                yield step.netns, _Message(routing.rule(step), step, makes=True)

    def _send(self, queue: Iterator[tuple[str, _Message]]) -> None:
        by_netns: dict[str, list[_Message]] = {}
        for where, message in queue:
            by_netns.setdefault(where, []).append(message)
        for where, batch in by_netns.items():
            socket = self._channels.socket(where)
            outcomes = socket.outcomes([message.data for message in batch])
            self.made += [
                message.step
                for message, refusal in zip(batch, outcomes, strict=True)
                if refusal is None and message.makes
            ]
            for message, refusal in zip(batch, outcomes, strict=True):
                if refusal is not None:
                    raise kernel_error(message.step, refusal)

    def finish(self) -> None:
        """Once for all wires: pin their receiving, close the ports that start closed."""
        sysctl.pin_receiving(self._ends)
        by_netns: dict[str, list[End]] = {}
        for end in self._ends:
            by_netns.setdefault(end.netns, []).append(end)
        for where, ends in by_netns.items():
            closed = [end for end in ends if not end.forwarding]
            if closed:
                close_ports(self._channels, where, closed)
