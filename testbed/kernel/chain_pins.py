"""The uplinks that the ports of one namespace are pinned to, ready to be changed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.kernel.chain_ports import open_cells
from testbed.kernel.links import read_links
from testbed.kernel.netlink import RefusedError, Socket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.kernel.chain_cells import Cells


class Pins:
    """The pins of ports in a namespace: a map's cell each, held open for a failover.

    Args:
        where: the namespace.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._cells: dict[str, Cells] = {}

    def hold(self, devices: Iterable[str]) -> None:
        """Hold the pins of these ports, and of no others.

        Raises:
            KernelError: one is not there, or has no chain.
        """
        wanted = set(devices)
        for device in self._cells.keys() - wanted:
            self._cells.pop(device).close()
        missing = wanted - self._cells.keys()
        if not missing:
            return
        with netns.inside(self._where):
            socket = Socket()
        with socket:
            try:
                links = read_links(socket)
            except (OSError, RefusedError) as error:
                raise KernelError("read the links of", self._where, str(error)) from error
            for device in missing:
                target = f"{device} in {self._where}"
                if device not in links:
                    raise KernelError("find port", target, "there is no such link")
                self._cells[device] = open_cells(socket, links[device].index, target)

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
