"""Where in a lab to capture: an adapter, or a stage of the port that it is plugged into."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from testbed.errors import InputError
from testbed.kernel import netns
from testbed.kernel.iochain.cells import INCOMING, OUTGOING
from testbed.kernel.iochain.mirror import AFTER, BEFORE, mirror
from testbed.measure.capture import Tap
from testbed.plan.policies import Chain
from testbed.plan.steps import Bridge, Netns, Veth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.measure.pcapng import Direction
    from testbed.plan.plan import Plan
    from testbed.plan.steps import End

Stage = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class CapturePoint:
    """A link, and the switch port it is plugged into or is itself, as (namespace, device)."""

    name: str
    link: tuple[str, str]
    port: tuple[str, str] | None
    chained: bool


def capture_point(plan: Plan, name: str) -> CapturePoint:
    """The place called NODE/ADAPTER: any link of a node (vmnic0, vmk1, eth0, a switch's port).

    Raises:
        InputError: there is none; the message lists the node's links, or the nodes.
    """
    node, _, wanted = name.partition("/")
    where = next((s.name for s in plan.steps if isinstance(s, Netns) and s.node == node), None)
    if where is None:
        nodes = ", ".join(s.node for s in plan.steps if isinstance(s, Netns))
        raise InputError(f"{name}: lab {plan.lab!r} has no node {node!r}; it has: {nodes}")
    wires = [step for step in plan.steps if isinstance(step, Veth)]
    ends = {(end.netns, end.name): end for wire in wires for end in (wire.a, wire.b)}
    bridges = {(s.netns, s.name): s.mac for s in plan.steps if isinstance(s, Bridge)}
    link = (where, wanted)
    if link not in ends and link not in bridges:
        there = ", ".join(sorted(dev for netns_, dev in {*ends, *bridges} if netns_ == where))
        raise InputError(f"{name}: {node} has no adapter {wanted!r}; it has: {there}")
    is_nic = bridges.get(link) is not None  # a VM's adapter is a bridge with an address
    port = _port(link, ends.get(link), wires, is_nic)
    chains = {(s.netns, s.dev) for s in plan.steps if isinstance(s, Chain)}
    return CapturePoint(name, link, port, port in chains)


def _port(
    link: tuple[str, str], own: End | None, wires: list[Veth], is_nic: bool
) -> tuple[str, str] | None:
    """A port itself, or the one at the other end of an adapter's wire, the open one first."""
    if own is not None and own.master is not None:
        return link
    far = []
    for wire in wires:
        for near, other in ((wire.a, wire.b), (wire.b, wire.a)):
            name = near.master if is_nic else near.name
            if (near.netns, name) == link and other.master is not None:
                far.append(other)
    far.sort(key=lambda end: not end.forwarding)
    return (far[0].netns, far[0].name) if far else None


@contextmanager
def taps(
    point: CapturePoint, stage: Stage | None, direction: Direction | None
) -> Iterator[list[Tap]]:
    """What to listen to, within the block.

    Without a stage that is the link itself. With one it is the port, directions are the port's
    own: `in` comes from what is plugged in. A packet socket hears what comes in before the chain
    and what goes out after it (and after the queue); for the other two there is a mirror.

    Raises:
        InputError: a stage is wanted of a link that is no port nor plugged into one.
        KernelError: the kernel refused.
    """
    if stage is None:
        yield [Tap(netns.path_of(point.link[0]), point.link[1], direction)]
        return
    if point.port is None:
        raise InputError(f"{point.name} is in no switch: it has no stages; leave out --stage")
    where, dev = point.port
    path = netns.path_of(where)
    with ExitStack() as stack:
        found = []
        if direction != "out" and stage == "before":
            found.append(Tap(path, dev, "in"))
        elif direction != "out":
            copies = stack.enter_context(mirror(where, dev, INCOMING, AFTER))
            found.append(Tap(path, copies, "out", "in"))
        if direction != "in" and stage == "after":
            found.append(Tap(path, dev, "out"))
        elif direction != "in":
            copies = stack.enter_context(mirror(where, dev, OUTGOING, BEFORE))
            found.append(Tap(path, copies, "out", "out"))
        yield found
