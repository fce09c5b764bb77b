"""A link taken down and up as by an administrator."""

from __future__ import annotations

from testbed.errors import KernelError
from testbed.kernel import messages, netns
from testbed.kernel.links import read_links
from testbed.kernel.netlink import RefusedError, Socket


def set_link_state(where: str, name: str, *, up: bool) -> None:
    """Set a link up or down, and see that it is; its peer gets or loses its carrier with it.

    Args:
        where: the namespace.
        name: the link.
        up: what it is to be.

    Raises:
        KernelError: there is no such link, or the kernel did not take it.
    """
    verb, target = ("set up" if up else "set down"), f"{name} in {where}"
    with netns.inside(where):
        socket = Socket()
    with socket:
        try:
            link = read_links(socket).get(name)
            if link is None:
                raise KernelError(verb, target, "there is no such link", "see `testbed status`")
            refusal = socket.request((messages.set_up(link.index, up),))
            if refusal is not None:
                raise KernelError(verb, target, refusal.cause)
            found = read_links(socket)[name].up
        except (OSError, RefusedError) as error:
            raise KernelError(verb, target, str(error)) from error
    if found != up:
        raise KernelError(verb, target, f"the kernel has it {'up' if found else 'down'}")


def is_set_up(where: str, name: str) -> bool:
    """Whether an administrator has a link up, with or without a carrier.

    Raises:
        KernelError: there is no such link, or the kernel does not answer.
    """
    target = f"{name} in {where}"
    with netns.inside(where):
        socket = Socket()
    with socket:
        try:
            link = read_links(socket).get(name)
        except (OSError, RefusedError) as error:
            raise KernelError("read", target, str(error)) from error
    if link is None:
        raise KernelError("read", target, "there is no such link", "see `testbed status`")
    return link.up
