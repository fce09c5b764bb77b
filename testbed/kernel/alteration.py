"""A step of a running lab changed in place."""

from __future__ import annotations

from contextlib import ExitStack

from testbed.errors import KernelError
from testbed.kernel import messages, netns, readback, routing, sysctl
from testbed.kernel.channels import Channels
from testbed.kernel.fittings import qdiscs
from testbed.kernel.iochain import attaching
from testbed.kernel.offloads import set_offloads
from testbed.kernel.refusals import kernel_error
from testbed.kernel.reshaping import reshape
from testbed.plan.policies import Chain, Netem, Offloads, Shape
from testbed.plan.steps import Address, Bridge, End, KernelStep, Netns, Route, Rule, Veth


def alter(old: KernelStep, new: KernelStep) -> None:
    """Change one step of a running lab in place, and read it back.

    A shape's classes, a chain, a delay, offloads; MTU, alias, bridge and receiving CPU of links;
    a route's gateway and source; a namespace's sysctls. On failure the old values are put back.

    Raises:
        KernelError: the kernel refused, did not keep it, or the two are not the same object.
    """
    if old.key != new.key or type(old) is not type(new):
        raise KernelError(
            "alter", old.key, f"it cannot become {new.key}", "remove the one, build the other"
        )
    netns.in_thread(lambda _: _alter(old, new))


def _alter(old: KernelStep, new: KernelStep) -> None:
    with Channels() as channels, ExitStack() as undoing:
        undoing.callback(_set, channels, new, old)
        _set(channels, old, new)
        readback.compare(channels, (new,))
        undoing.pop_all()


def _set(channels: Channels, old: KernelStep, step: KernelStep) -> None:
    match step:
        case Chain():
            assert isinstance(old, Chain)
            attaching.replace(channels, old, step)
        case Shape():
            reshape(channels.socket(step.netns), step, channels.index(step.netns, step.dev))
        case Offloads():
            set_offloads(channels, step)
        case Netem():
            index = channels.index(step.netns, step.dev)
            _send(channels, step, step.netns, qdiscs(step, index)[0])
        case _:
            _set_link_or_route(channels, step)


def _set_link_or_route(
    channels: Channels, step: Netns | Bridge | Veth | Address | Route | Rule
) -> None:
    sent: list[tuple[str, bytearray]] = []
    match step:
        case Bridge():
            index = channels.index(step.netns, step.name)
            sent = [(step.netns, messages.configure(index, step.mtu, alias=step.alias))]
        case Veth():
            sent = [(end.netns, _configured(channels, end)) for end in (step.a, step.b)]
            sysctl.pin_receiving((step.a, step.b))
        case Route():
            index = channels.index(step.netns, step.dev)
            sent = [(step.netns, routing.route(step, index, replace=True))]
        case Netns():
            channels.step_into(step.name)
            for name, value in sysctl.applicable(step.sysctls):
                sysctl.write(name, value, step.name)
        case Address() | Rule():
            pass  # their keys say all there is
    for where, data in sent:
        _send(channels, step, where, data)


def _send(channels: Channels, step: KernelStep, where: str, data: bytearray) -> None:
    refusal = channels.socket(where).request((data,))
    if refusal is not None:
        raise kernel_error(step, refusal, "alter")


def _configured(channels: Channels, end: End) -> bytearray:
    index = channels.index(end.netns, end.name)
    master = channels.index(end.netns, end.master) if end.master else 0
    return messages.configure(index, end.mtu, master, end.alias)
