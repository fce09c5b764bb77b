"""What is felt of a VM: its probe and its clients, as children of the supervisor."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from testbed.errors import InputError, LabError
from testbed.guest.workloads import Echo, Media, Ping, Web
from testbed.lab import felt_clients, probe
from testbed.lab.adapters import adapters
from testbed.lab.child import Child, checked
from testbed.lab.tool_ends import ends
from testbed.lab.watch import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from socket import socket

    from testbed.lab.estate import Estate
    from testbed.lab.lines import Message
    from testbed.lab.running_vm import RunningVM
    from testbed.measure.endpoint import Endpoint
    from testbed.plan.steps import PowerOn

START_DEADLINE_S = 30.0


@asynccontextmanager
async def watching(
    estate: Estate, running: RunningVM, asked: Message | None
) -> AsyncIterator[Watch]:
    """Watch a VM: what `asked` says, as `felt_request` makes it; None: nothing.

    Migrations of the VM tell all that watch it (`Estate.watches`).

    Raises:
        InputError: what it is to be felt from, or the VM, has no address.
        MeasurementError: no route leads to the VM.
    """
    watch = Watch(running.step.vm, running.step.workloads)
    async with AsyncExitStack() as stack:
        if asked is not None:
            if asked["from"] is not None:
                await _start_clients(estate, watch, asked, running.step, stack)
            sampling = partial(
                probe.run,
                memory=(running.channel.pid, running.memory_fd),
                vcpus=running.step.vcpus,
                workloads=running.step.workloads,
                interval_ns=asked["interval_ns"],
            )
            watch.probe = await _spawn(sampling, stack)
            try:
                checked(await watch.probe.receive(START_DEADLINE_S))
            except LabError as error:
                watch.troubles.append(str(error))
                watch.probe = None
        estate.watches.append(watch)
        stack.callback(estate.watches.remove, watch)
        yield watch


async def _spawn(main: Callable[[socket], None], stack: AsyncExitStack) -> Child:
    child = await Child.spawn(main)
    stack.push_async_callback(child.end)
    return child


async def _start_clients(
    estate: Estate, watch: Watch, asked: Message, step: PowerOn, stack: AsyncExitStack
) -> None:
    """A ping, and a client for each service that the VM has."""
    watch.client = asked["from"]
    ours, theirs = _ends(estate, watch.vm, asked["from"])
    interval_ns, workloads = asked["interval_ns"], step.workloads
    by_guest = any(isinstance(one, Ping) for one in workloads)
    late_ns = asked["late_after_ns"]
    clients = [felt_clients.ping_client(ours, theirs, interval_ns, late_ns, by_guest=by_guest)]
    clients += [
        felt_clients.session_client(ours, theirs, one, step.seed, interval_ns)
        for one in workloads
        if isinstance(one, Web | Media | Echo)
    ]
    for client in clients:
        watch.clients.append(await _spawn(partial(felt_clients.run, client=client), stack))


def _ends(estate: Estate, vm: str, client: str) -> tuple[Endpoint, Endpoint]:
    """From where to where clients speak: CLIENT[:VMK], and the VM's first adapter."""
    node, _, vmk = client.partition(":")
    named = [name for name in adapters(estate.journal.plan) if name.partition("/")[0] == vm]
    if node == vm or not named:
        cause = "it is the VM itself" if node == vm else f"{vm} has no address"
        raise InputError(f"feel for {vm} from {client}: {cause}; name another VM, or a host's vmk")
    return ends(estate.journal, node, vmk or None, named[0])


def follow(estate: Estate, vm: str, *memories: tuple[int, int]) -> None:
    """Tell all that watch a VM in which memories it may be, (pid, descriptor)."""
    for watch in estate.watches:
        if watch.vm == vm:
            watch.follow(*memories)


async def report(estate: Estate, watch: Watch, from_ns: int) -> Message:
    """What was felt since an instant (CLOCK_MONOTONIC): a `report.felt.Felt` as JSON."""
    until_ns = time.monotonic_ns()
    running = estate.vms.get(watch.vm)
    return await watch.report(from_ns, until_ns, running.step.workloads if running else ())


async def wait_unless(gone: asyncio.Event, for_ns: int) -> None:
    """Let time pass, but none when whoever asked has gone away."""
    with suppress(TimeoutError):
        await asyncio.wait_for(gone.wait(), for_ns / 1e9)


async def feel(estate: Estate, request: Message, gone: asyncio.Event) -> Message:
    """Watch a VM for a time: a `report.felt.Felt` as JSON.

    Raises:
        InputError: there is no such VM, or no way to it.
        LabError: it has failed.
    """
    name = request["vm"]
    if name not in estate.vms:
        raise InputError(f"there is no VM {name!r}; there are: {', '.join(sorted(estate.vms))}")
    running = estate.vms[name]
    running.require_sound("feel for it", estate.journal.topology_file)
    async with watching(estate, running, request["probe"]) as watch:
        begin_ns = time.monotonic_ns()
        await wait_unless(gone, request["for_ns"])
        return await report(estate, watch, begin_ns)
