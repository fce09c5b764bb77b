"""The uplinks that the ports of one namespace are pinned to, ready to be changed at once."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.kernel.iochain.ports import open_cells
from testbed.kernel.links import read_links
from testbed.kernel.netlink import RefusedError, Socket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.kernel.iochain.cells import Cells


class Pins:
    """The pins of ports in a namespace: a map's cell each, held open for a failover.

    Args:
        where: the namespace.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._cells: dict[str, Cells] = {}

    def hold(self, devices: Iterable[str]) -> None:
        """Hold the pins of these ports as they are now, and of no others.

        A port that has been made anew since has another map, so nothing is kept.

        Raises:
            KernelError: one is not there, or has no chain; the old pins stay held.
        """
        held: dict[str, Cells] = {}
        with ExitStack() as undo:
            with netns.inside(self._where):
                socket = undo.enter_context(Socket())
            try:
                links = read_links(socket)
            except (OSError, RefusedError) as error:
                raise KernelError("read the links of", self._where, str(error)) from error
            with ExitStack() as opened:
                for device in devices:
                    target = f"{device} in {self._where}"
                    if device not in links:
                        raise KernelError("find port", target, "there is no such link")
                    held[device] = open_cells(socket, links[device].index, target)
                    opened.callback(held[device].close)
                opened.pop_all()
        self.close()
        self._cells = held

    def set(self, device: str, uplink: int) -> None:
        """Pin a port to an uplink, by its number; 0 for none.

        Raises:
            KernelError: the kernel refuses.
        """
        self._cells[device].pin(uplink)

    def close(self) -> None:
        """Let go of all."""
        for cells in self._cells.values():
            cells.close()
        self._cells.clear()
