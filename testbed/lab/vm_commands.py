"""What `testbed vm` asks of a running VM."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.guest.workload_text import describe_workloads
from testbed.guest.workloads import from_json, to_json
from testbed.lab import moves
from testbed.lab.workload_change import changed_workloads
from testbed.plan.plan import Plan

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from testbed.lab.estate import Estate
    from testbed.lab.lines import Message
    from testbed.lab.running_vm import RunningVM


async def vm_status(estate: Estate, request: Message) -> Message:
    """A VM with all its counters.

    Raises:
        InputError: there is no such VM.
    """
    return await _find(estate, request).status(whole=True)


async def switch(estate: Estate, request: Message) -> Message:
    """Have a running VM do something else, and note it.

    Raises:
        InputError: there is no such VM.
        LabError: the VM has failed, is being recorded or migrated, or can't do that and goes on
            as it was.
    """
    async with _configured(estate, request, "switch its workloads") as vm:
        return await _switch(estate, request, vm)


async def _switch(estate: Estate, request: Message, vm: RunningVM) -> Message:
    name = vm.step.vm
    async with estate.describing:
        wanted = replace(vm.step, workloads=tuple(map(from_json, request["workloads"])))
        await vm.switch(wanted)
        journal = estate.journal
        changes = {**journal.workloads, name: [to_json(one) for one in wanted.workloads]}
        estate.topology = changed_workloads(estate.topology, changes)
        steps = tuple(wanted if one.key == wanted.key else one for one in journal.plan.steps)
        plan = Plan(journal.plan.lab, steps)
        estate.write_journal(replace(journal, plan=plan, workloads=changes))
    await vm.plug_in()
    return {"vm": name, "workload": describe_workloads(wanted.workloads)}


async def throttle(estate: Estate, request: Message) -> Message:
    """Throttle a VM's vCPUs, or let them run freely.

    Raises:
        InputError: there is no such VM.
        LabError: the VM has failed, or is being recorded or migrated.
    """
    async with _configured(estate, request, "throttle it") as vm:
        await vm.throttle(request["sleep_ns_per_ms"])
    return {}


async def record(estate: Estate, request: Message, gone: asyncio.Event) -> Message:
    """Record what a VM writes, as the ranges of a trace, until `gone` is set at most.

    Raises:
        InputError: there is no such VM.
        LabError: the VM has failed, is migrating or being recorded, or can't be tracked.
    """
    vm = _sound(estate, request, "record it")
    moves.require_unmoved(estate, vm.step.vm, "record it")
    vm.require_unrecorded("record it")
    return await vm.record(request["duration_ns"], request["interval_ns"], gone)


def _find(estate: Estate, request: Message) -> RunningVM:
    name = request["vm"]
    if name not in estate.vms:
        there = ", ".join(sorted(estate.vms)) or "none"
        raise InputError(f"there is no VM {name!r}; there are: {there}")
    return estate.vms[name]


def _sound(estate: Estate, request: Message, attempt: str) -> RunningVM:
    """A VM that has not failed."""
    vm = _find(estate, request)
    vm.require_sound(attempt, estate.journal.topology_file)
    return vm


@asynccontextmanager
async def _configured(estate: Estate, request: Message, attempt: str) -> AsyncIterator[RunningVM]:
    """A VM whose configuration may be changed in the block.

    Raises:
        InputError: there is no such VM.
        LabError: it has failed, or is being recorded or migrated.
    """
    vm = _sound(estate, request, attempt)
    moves.require_unmoved(estate, vm.step.vm, attempt)  # rather than wait for it
    async with vm.configuration:
        vm = _sound(estate, request, attempt)
        moves.require_unmoved(estate, vm.step.vm, attempt)
        vm.require_unrecorded(attempt)
        yield vm
