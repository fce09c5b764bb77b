"""Bridge ports that are closed from the first instant."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import links, messages
from testbed.kernel.netlink import RefusedError, Socket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.kernel.channels import Channels
    from testbed.plan.steps import End

_PORT_DEADLINE_NS = 5 * 10**9  # a veth is operational within ms of its two ends being up


def close_ports(channels: Channels, where: str, ends: Sequence[End]) -> None:
    """Close bridge ports that are barred by their flags, by state, and lift the flags.

    Raises:
        KernelError: they do not become operational, or are not closed afterwards.
    """
    socket = channels.socket(where)
    _await_running(socket, where, ends)
    indexes = [channels.index(where, end.name) for end in ends]
    batch = [messages.port_state(index, False) for index in indexes]
    batch += [messages.port_flags(index, True) for index in indexes]
    # Lifting the bar has set what is not the port's own.
    batch += [messages.port_policy(i, end) for i, end in zip(indexes, ends, strict=True)]
    refusal = socket.request(batch)
    if refusal is not None:
        name = ends[refusal.position % len(ends)].name
        raise KernelError("close port", f"{name} in {where}", refusal.cause)
    states = links.read_port_states(socket)
    for end, index in zip(ends, indexes, strict=True):
        if states.get(index) != messages.BR_STATE_LISTENING:
            raise KernelError(
                "close port",
                f"{end.name} in {where}",
                f"its state is {states.get(index)}",
                "is another program changing it?",
            )


def _await_running(socket: Socket, where: str, ends: Sequence[End]) -> None:
    deadline = time.monotonic_ns() + _PORT_DEADLINE_NS
    while True:
        try:
            found = links.read_links(socket)
        except RefusedError as refusal:
            raise KernelError("read the links of", where, refusal.cause) from refusal
        waiting = [end.name for end in ends if not found[end.name].running]
        if not waiting:
            return
        if time.monotonic_ns() > deadline:
            raise KernelError(
                "bring up",
                f"{waiting[0]} in {where}",
                "it has no carrier after 5 s",
                "is its other end up?",
            )
        os.sched_yield()  # the kernel's link-watch work runs meanwhile
