"""The NIC process of a VM, as the supervisor sees it: it outlives migrations of the VM."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from testbed.guest.workloads import of_network, to_json
from testbed.kernel import netns, sysctl
from testbed.lab.child import Child

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Sequence

    from testbed.guest.workloads import Workload
    from testbed.plan.steps import PowerOn

ANSWER_DEADLINE_S = 5.0
_KERNEL_ANSWERS = ("net/ipv4/icmp_echo_ignore_all", "net/ipv6/icmp/echo_ignore_all")


class Nic:
    """The process that holds a VM's sockets; `child` is there until `end`."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, step: PowerOn) -> Nic:
        """A NIC process in the VM's namespace, serving nothing yet."""
        return cls(await Child.spawn(partial(_run, vm=step.vm, vm_netns=step.netns)))

    @property
    def trouble(self) -> str | None:
        """Why nobody answers for the VM, if so."""
        if self.child.trouble is None:
            return None
        return (
            f"nobody answers at its addresses, as for its NIC {self.child.trouble};"
            " 'testbed up' with the lab's file starts it again"
        )

    async def serve(self, workloads: Sequence[Workload]) -> None:
        """Listen for these workloads, and no others.

        Raises:
            LabError: a port is taken, or it doesn't answer.
        """
        served = [to_json(one) for one in of_network(tuple(workloads))]
        await self.child.call({"command": "services", "workloads": served}, ANSWER_DEADLINE_S)

    async def attach(self, vmx_pid: int, line: dict[str, Any], vcpus: int) -> None:
        """Serve the guest of this VMX while it runs.

        Raises:
            LabError: it can't reach the guest.
        """
        await self.child.call(
            {"command": "attach", "pid": vmx_pid, "line": line, "vcpus": vcpus},
            ANSWER_DEADLINE_S,
        )

    async def attach_anew(self, vmx_pid: int, line: dict[str, Any], vcpus: int) -> None:
        """Serve the guest of this VMX by another line, or at another account; connections stay.

        Raises:
            LabError: it can't reach the guest.
        """
        await self.child.call({"command": "detach", "pid": vmx_pid}, ANSWER_DEADLINE_S)
        await self.attach(vmx_pid, line, vcpus)

    def watch(self, ended: Callable[[], Awaitable[None]]) -> None:
        """Should it end by itself, call this."""

        async def wait() -> None:
            await self.child.ended.wait()
            await ended()

        self._watching = asyncio.create_task(wait())

    async def end(self) -> None:
        """End it and see it gone."""
        if self._watching is not None:
            self._watching.cancel()
        await self.child.end()


def _run(control: socket.socket, *, vm: str, vm_netns: str) -> None:
    """Be the NIC process of `vm` until the supervisor ends it."""
    from testbed.guest.nic import process  # noqa: PLC0415  (numpy: only where it is needed)

    netns.enter(vm_netns)
    for name in _KERNEL_ANSWERS:  # one that was killed may have left it otherwise
        sysctl.write(name, "0", vm)
    process.run(control, vm=vm, read_sysctl=sysctl.read, write_sysctl=sysctl.write)
