"""Changes a running lab to another plan, or leaves it as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from testbed import topology as topologies
from testbed.errors import LabError
from testbed.kernel import builder, processes, undo
from testbed.kernel.alteration import alter
from testbed.kernel.neighbours import forget
from testbed.lab import accounts
from testbed.lab.planning import plan_here
from testbed.plan.difference import Difference, difference, powered_off
from testbed.plan.plan import Plan, kernel_steps, lab_steps
from testbed.plan.policies import DelayLine
from testbed.plan.steps import Address, LabStep, Netns, PowerOn
from testbed.plan.text import describe, describe_altered, describe_undo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.lab.estate import Estate
    from testbed.lab.journal import Journal
    from testbed.lab.lines import Message
    from testbed.plan.steps import Step
    from testbed.topology.model import Topology


def standing_placement(topology: Topology, running: Mapping[str, str]) -> dict[str, str]:
    """Where the VMs of a new topology stand: where they run now, if that host remains.

    A file's `host` is where a VM is powered on; a running one is moved by a migration only.
    """
    hosts = {host.name for host in topology.hosts}
    return {
        vm.name: running[vm.name]
        for vm in topology.vms
        if running.get(vm.name, vm.host) != vm.host and running[vm.name] in hosts
    }


def preview(running: Plan, placement: Mapping[str, str], topology: Topology) -> Difference:
    """What `apply` would do to a lab that runs, with its VMs placed so."""
    where = {step.vm: step.host for step in running.steps if isinstance(step, PowerOn)}
    kept = standing_placement(topology, where | dict(placement))
    return difference(running, plan_here(topology, kept))


def same_but_for_text(a: Topology, b: Topology) -> bool:
    """Whether two topologies mean the same; what is no kernel object counts as well."""
    return replace(a, text="", file="", traces=()) == replace(b, text="", file="", traces=())


def notes(topology: Topology, placement: Mapping[str, str]) -> list[str]:
    """What the user should know about VMs that are not where the file says."""
    return [
        f"{vm.name} runs on {placement[vm.name]}, the file says {vm.host}:"
        f" 'testbed migrate {vm.name} --to {vm.host}' moves it"
        for vm in topology.vms
        if placement.get(vm.name, vm.host) != vm.host
    ]


async def apply(estate: Estate, request: Message) -> Message:
    """Change the lab to a topology; a failure undoes what had been changed.

    Raises:
        TopologyError: the topology has mistakes; nothing was touched.
        LabError: it is another lab's, or the change failed (the message says what stands).
    """
    async with estate.describing:
        return await _apply(estate, request)


async def _apply(estate: Estate, request: Message) -> Message:
    old = estate.journal
    topology_file, topology_text = request["topology_file"], request["topology_text"]
    topology = topologies.loads(topology_text, topology_file, request["traces"])
    if old.state != "up":
        raise LabError(
            f"apply {topology_file}: lab {old.plan.lab!r} is {old.state};"
            f" 'testbed down {old.plan.lab}' and 'testbed up {topology_file}' mend it"
        )
    if topology.name != old.plan.lab:
        raise LabError(
            f"apply {topology_file}: it describes lab {topology.name!r}, not {old.plan.lab!r};"
            f" 'testbed up {topology_file}' builds it beside this one"
        )
    running = {name: vm.step.host for name, vm in estate.vms.items()}
    placement = standing_placement(topology, running)
    _require_open(topology, placement, running, old.maintenance)
    new = replace(
        old,
        topology_file=topology_file,
        topology_text=topology_text,
        plan=plan_here(topology, placement),
        placement=placement,
        links=(),
        workloads={},
        traces=dict(topology.traces),
        maintenance={
            host.name: old.maintenance[host.name]
            for host in topology.hosts
            if host.name in old.maintenance
        },
    )
    before = estate.topology
    change = await change_to(estate, topology, new)
    estate.written = topology
    return {
        "undone": [describe_undo(step) for step in change.undo],
        "altered": [describe_altered(step) for _, step in change.alter],
        "done": [describe(step) for step in change.do],
        "properties": same_but_for_text(topology, before) is False,
        "notes": [
            *(f"{vm} was powered off: its memory is lost" for vm in powered_off(change)),
            *notes(topology, placement),
        ],
    }


def _require_open(
    topology: Topology,
    placement: Mapping[str, str],
    running: Mapping[str, str],
    closed: Mapping[str, bool],
) -> None:
    """See that no VM would be powered on at a host in maintenance mode.

    Raises:
        LabError: one would.
    """
    for vm in topology.vms:
        host = placement.get(vm.name, vm.host)
        if host in closed and running.get(vm.name) != host:
            raise LabError(
                f"apply {topology.file}: {vm.name} would be powered on at {host}, which is in"
                f" maintenance mode; name another host, or end that:"
                f" 'testbed evacuate {host} --exit'"
            )


async def change_to(estate: Estate, topology: Topology, new: Journal) -> Difference:
    """Change the running lab to what `new` describes; a failure undoes what had been changed.

    Returns:
        What was changed.

    Raises:
        KernelError, LabError: the change failed (the message says what stands).
    """
    old = estate.journal
    change = difference(old.plan, new.plan)
    union = Plan(new.plan.lab, (*old.plan.steps, *change.do))
    estate.write_journal(replace(old, state="changing", plan=union))
    done: list[Step] = []
    # Or a root would be given the rate that it had before, while a VM is powered on.
    estate.reservations.leave((*change.undo, *(before for before, _ in change.alter)))
    try:
        await _carry_out(estate, new.plan, change, done)
    except BaseException as error:
        await _restore(estate, change, done, error)
        estate.write_journal(old)
        estate.follow(old.placement)  # what was made again is another port
        raise
    estate.topology = topology
    estate.write_journal(new)
    estate.follow(new.placement)
    for vm in estate.vms.values():
        await vm.charge(accounts.terms(estate.directory, topology, vm.step.host))
    return change


async def _carry_out(estate: Estate, plan: Plan, change: Difference, done: list[Step]) -> None:
    """Make the change; `done` gets the steps that have been made, for whoever must go back.

    An address may have another MAC now: whoever remembers the old one is made to ask again.
    """
    await _undo(estate, change.undo)
    await alter_steps(estate, change.alter)
    await _do(estate, change.do, done)
    addresses = [step for step in (*change.undo, *change.do) if isinstance(step, Address)]
    forget(
        [step.name for step in plan.steps if isinstance(step, Netns)],
        [step.address.partition("/")[0] for step in addresses],
    )


async def _restore(
    estate: Estate, change: Difference, done: list[Step], error: BaseException
) -> None:
    """Go back from wherever the change stopped.

    Only what this change made is undone: a step that failed may have met another's object.

    Raises:
        LabError: the lab could not be restored; it is marked broken.
    """
    try:
        await _undo(estate, tuple(reversed(done)))
        undo.remove(list(reversed(kernel_steps(change.undo))))  # what had not gone yet
        await alter_steps(estate, tuple((after, before) for before, after in change.alter))
        await _do(estate, tuple(reversed(change.undo)), [])
    except Exception as worse:
        estate.write_journal(estate.journal.in_state("broken"))
        raise LabError(
            f"apply failed ({error}) and could not be undone ({worse});"
            f" 'testbed down {estate.directory.name}' removes the lab"
        ) from error


async def alter_steps(estate: Estate, pairs: tuple[tuple[Step, Step], ...]) -> None:
    """In place; a datastore's hosts are in the topology alone.

    Raises:
        KernelError, LabError: one could not be altered; those before it are.
    """
    for before, after in pairs:
        if isinstance(after, DelayLine):
            await estate.wires.alter(after)
        elif isinstance(after, PowerOn):
            await estate.switch(after)
        elif not isinstance(before, LabStep) and not isinstance(after, LabStep):
            alter(before, after)


async def _undo(estate: Estate, steps: tuple[Step, ...]) -> None:
    """Undo in the order given: what isn't in the kernel first, as it stands on the rest."""
    for step in lab_steps(steps):
        await estate.undo(step)
    # What runs in a namespace that goes would keep it alive, out of anybody's reach.
    processes.end_in([step.name for step in steps if isinstance(step, Netns)])
    undo.remove(list(reversed(kernel_steps(steps))))


async def _do(estate: Estate, steps: tuple[Step, ...], done: list[Step]) -> None:
    builder.build(kernel_steps(steps))  # all or nothing
    done += kernel_steps(steps)
    await estate.do_all(lab_steps(steps), done)
