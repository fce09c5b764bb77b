"""Steps taken back, last first."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import htb, messages, netns, routing
from testbed.kernel.channels import Channels
from testbed.kernel.iochain import attaching
from testbed.kernel.offloads import set_offloads
from testbed.kernel.refusals import kernel_error
from testbed.plan.policies import Chain, Netem, Offloads, Shape
from testbed.plan.steps import Address, Bridge, KernelStep, Netns, Route, Rule, Veth

if TYPE_CHECKING:
    from collections.abc import Sequence

_GONE = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO}


def remove(steps: Sequence[KernelStep]) -> None:
    """Take steps of a running lab back, last first; what is gone already is no error.

    What is inside a namespace goes with it: the kernel frees it within 0.1 s afterwards.
    All steps are tried, then the first real failure is raised.

    Raises:
        KernelError: the kernel refused.
    """

    def away() -> None:
        with Channels() as channels:
            undo(channels, steps)

    netns.in_thread(lambda _: away())


def undo(channels: Channels, steps: Sequence[KernelStep]) -> None:
    """`remove`, with sockets that are open already, in a thread that may change namespace.

    Raises:
        KernelError: the kernel refused.
    """
    going = {step.name for step in steps if isinstance(step, Netns)}
    there = set(netns.names())
    failure: KernelError | None = None
    for step in reversed(steps):
        where = _place(step, going, there)
        if where is not None:
            failure = _undo_one(channels, step, *where) or failure
    for step in reversed(steps):
        if isinstance(step, Netns):
            channels.forget(step.name)
            try:
                netns.remove(step.name)
            except KernelError as error:
                failure = error
    if failure is not None:
        raise failure


def _place(step: KernelStep, going: set[str], there: set[str]) -> tuple[str, str] | None:
    """The namespace and link by which a step is undone; None if that needs no message."""
    match step:
        case Netns():
            return None
        case Veth():
            places = [(end.netns, end.name) for end in (step.a, step.b)]
        case Bridge():
            places = [(step.netns, step.name)]
        case Rule():
            places = [(step.netns, "")]
        case Address() | Route() | Shape() | Chain() | Offloads() | Netem():
            places = [(step.netns, step.dev)]
    # With one end's namespace the wire goes only later: a kept end is deleted now.
    kept = [place for place in places if place[0] not in going and place[0] in there]
    return kept[0] if kept else None


def _undo_one(channels: Channels, step: KernelStep, where: str, link: str) -> KernelError | None:
    if isinstance(step, Offloads | Chain):
        return _take_off(channels, step)
    try:
        data = _message(channels, step, where, link)
    except KernelError:
        return None  # its link, or its namespace, is gone
    try:
        refusal = channels.socket(where).request([data])
    except OSError as error:
        return KernelError("remove", step.key, str(error.strerror))
    if refusal is None or refusal.number in _GONE:
        return None
    if isinstance(step, Shape | Netem) and refusal.number == errno.EINVAL:
        return None  # how the kernel says that there is no such qdisc
    return kernel_error(step, refusal, "remove")


def _take_off(channels: Channels, step: Offloads | Chain) -> KernelError | None:
    try:
        channels.index(step.netns, step.dev)
    except KernelError:
        return None  # its link is gone
    try:
        if isinstance(step, Chain):
            attaching.detach(channels, step)
        else:
            set_offloads(channels, replace(step, segmentation=True, checksum=True))
    except KernelError as error:
        return error
    return None


def _message(channels: Channels, step: KernelStep, where: str, link: str) -> bytearray:
    match step:
        case Address():
            return routing.address(step, channels.index(where, link), delete=True)
        case Route():
            return routing.route(step, channels.index(where, link), routing.DELROUTE)
        case Rule():
            return routing.rule(step, delete=True)
        case Shape() | Netem():
            return htb.delete_qdisc(channels.index(where, link))
        case _:
            return messages.delete_link(link)
