"""A netlink socket in each namespace that is worked on, and the ifindexes there."""

from __future__ import annotations

import resource
from contextlib import ExitStack

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.kernel.links import read_links
from testbed.kernel.netlink import RefusedError, Socket

_FIRST_FREE_INDEX = 2  # 1 is lo


class Channels:
    """Sockets by namespace, opened when first needed.

    For one thread of its own (`netns.in_thread`): it walks from namespace to namespace.
    """

    def __init__(self) -> None:
        self._sockets: dict[str, Socket] = {}
        self._indexes: dict[str, dict[str, int]] = {}
        self._next: dict[str, int] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Channels:
        # One descriptor per namespace: the usual soft limit of 1024 ends a lab of 500 nodes.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._closing.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self._closing.enter_context(netns.home())
        return self

    def __exit__(self, *_: object) -> None:
        for socket in self._sockets.values():
            socket.close()
        self._closing.close()

    def adopt(self, name: str) -> None:
        """Open a socket in a namespace that is new, empty, and where the thread is now."""
        self._sockets[name] = Socket()
        self._indexes[name] = {"lo": 1}
        self._next[name] = _FIRST_FREE_INDEX

    def step_into(self, name: str) -> None:
        """Move the thread into a namespace.

        Raises:
            KernelError: there is no such namespace.
        """
        netns.enter(name)

    def socket(self, name: str) -> Socket:
        """The socket in a namespace.

        Raises:
            KernelError: there is no such namespace.
        """
        if name not in self._sockets:
            self.step_into(name)
            self._sockets[name] = Socket()
        return self._sockets[name]

    def forget(self, name: str) -> None:
        """Close what is open in a namespace that is about to go."""
        socket = self._sockets.pop(name, None)
        if socket is not None:
            socket.close()
        self._indexes.pop(name, None)

    def _known(self, name: str) -> dict[str, int]:
        if name not in self._indexes:
            try:
                links = read_links(self.socket(name))
            except (OSError, RefusedError) as error:
                raise KernelError("read the links of", name, str(error)) from error
            self._indexes[name] = {link.name: link.index for link in links.values()}
            self._next[name] = max((link.index for link in links.values()), default=1) + 1
        return self._indexes[name]

    def index(self, name: str, link: str) -> int:
        """A link's ifindex.

        Raises:
            KernelError: there is no such link, or no such namespace.
        """
        found = self._known(name).get(link)
        if found is None:
            raise KernelError(
                "find link",
                f"{link} in {name}",
                "there is none of that name",
                "apply its step first",
            )
        return found

    def choose_index(self, name: str, link: str, unlike: int = 0) -> int:
        """An ifindex for a link about to be made, other than `unlike`.

        Raises:
            KernelError: the name is taken, or there is no such namespace.
        """
        known = self._known(name)
        if link in known:
            raise KernelError(
                "create link", f"{link} in {name}", "File exists (EEXIST)", "it is there already"
            )
        index = self._next[name]
        if index == unlike:
            index += 1
        self._next[name] = index + 1
        known[link] = index
        return index
