"""The plug of a VM's NICs at one host: cut, open, and tell the network where the VM is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from testbed.kernel.port import Announcer, PortSwitch

if TYPE_CHECKING:
    from collections.abc import Sequence


class Plug:
    """Ports and announcers of a VM's NICs, opened beforehand: in the stun only messages are sent.

    The ports are the host's ends of the VM's wires, so the NIC keeps its carrier.

    Args:
        host_netns: the host's namespace.
        ports: the wires' ends in it, in the order of the NICs.
        vm_netns: the VM's namespace.
        nics: (name, MAC) of each NIC; the switch knows the MAC as its own while it is open here.
    """

    def __init__(
        self,
        host_netns: str,
        ports: Sequence[str],
        vm_netns: str,
        nics: Sequence[tuple[str, str]],
    ) -> None:
        with ExitStack() as undo:
            self._ports = [
                undo.enter_context(PortSwitch(host_netns, port, mac))
                for port, (_, mac) in zip(ports, nics, strict=True)
            ]
            self._announcers = [undo.enter_context(Announcer(vm_netns, *nic)) for nic in nics]
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Cut: nothing passes, either way."""
        for port in self._ports:
            port.close()

    def open(self) -> None:
        """Let traffic pass."""
        for port in self._ports:
            port.open()

    def open_and_announce(self) -> None:
        """Let traffic pass and say, once, that the VM is here now."""
        self.open()
        for announcer in self._announcers:
            announcer.send()

    def announce_again(self) -> None:
        """Say it again within 100 ms: the first may have been lost."""
        for announcer in self._announcers:
            announcer.repeat()

    def __enter__(self) -> Plug:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
