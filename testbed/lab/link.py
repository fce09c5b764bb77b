"""`testbed link`: a link of a running lab is cut, restored, or given other properties."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from testbed.errors import LabError, TestbedError
from testbed.kernel.link_state import is_set_up, set_link_state
from testbed.lab.change import alter_steps, change_to
from testbed.lab.link_change import LinkChange, changed, find, without
from testbed.lab.planning import plan_here
from testbed.plan.difference import difference
from testbed.plan.names import netns_name
from testbed.plan.physical import wire_node
from testbed.plan.plan import Plan
from testbed.plan.steps import Veth
from testbed.plan.text import describe, describe_undo

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.lab.estate import Estate
    from testbed.lab.lines import Message
    from testbed.plan.steps import Step

Links: TypeAlias = "tuple[dict[str, Any], ...]"


def in_place(estate: Estate, change: LinkChange) -> bool:
    """Whether a change can be made beside a migration: nothing has to be built for it.

    Raises:
        InputError: there is no such link, or it can't have such a value.
    """
    find(estate.topology, change.ends)
    lasting = change.lasting
    if lasting is None:
        return True
    old = estate.journal
    # Not with the plan of the journal, which has the wires of a migration under way as well.
    planned = difference(
        plan_here(estate.topology, old.placement),
        plan_here(changed(estate.topology, lasting), old.placement),
    )
    return not planned.do and not planned.undo


async def change_link(
    estate: Estate, change: LinkChange, for_ns: int | None, *, alone: bool
) -> Message:
    """Make a change, and take it back after a time if one is given.

    Args:
        estate: the lab.
        change: what to change.
        for_ns: how long it is to last; None for good.
        alone: whether nothing else changes the lab meanwhile, so that something may be built.

    Returns:
        `changed`: what was altered, built and removed, in words; `held_ns`: how long a timed
        change really lasted.

    Raises:
        InputError: there is no such link, or it can't have such a value.
        KernelError, LabError: it could not be made; all is as before.
    """
    lasting = change.lasting
    note = None if lasting is None else lasting.to_json()
    words: list[str] = []
    if note is not None:
        words += await _described(estate, change, lambda links: (*links, note), alone=alone)
    ports = link_ports(estate, change.ends)
    if change.up is not None:
        for where, port in ports:
            set_link_state(where, port, up=change.up)
        words.append(f"{' - '.join(change.ends)} {'up' if change.up else 'down'}")
    estate.link_events.append((time.monotonic_ns(), f"{change}"))
    if for_ns is None:
        return {"changed": words, "held_ns": None}
    started_ns = time.monotonic_ns()
    try:
        await asyncio.sleep(for_ns / 1e9)
    finally:
        held_ns = time.monotonic_ns() - started_ns
        if change.up is not None:
            for where, port in ports:
                set_link_state(where, port, up=not change.up)
        if note is not None:
            await _described(estate, change, lambda links: without(links, note), alone=alone)
        estate.link_events.append((time.monotonic_ns(), f"{change}, taken back"))
    return {"changed": words, "held_ns": held_ns}


def link_ports(estate: Estate, ends: tuple[str, str]) -> list[tuple[str, str]]:
    """The kernel's ends that are taken down to cut a link, so that both its sides see it.

    A cable has one; a wire with latency is a bridge of its own, whose two ports are its ends.
    """
    found = find(estate.topology, ends)
    wanted: set[str]
    if isinstance(found, tuple):
        host, uplink = found
        wanted = {f"{netns_name(estate.topology.name, host.name)}/{uplink.name}"}
        return [
            (step.b.netns, step.b.name)
            for step in estate.journal.plan.steps
            if isinstance(step, Veth) and f"{step.a.netns}/{step.a.name}" in wanted
        ]
    lab = estate.topology.name
    places = {netns_name(lab, end) for end in found.ends}
    wire = netns_name(lab, wire_node(*found.ends))
    return [
        (step.a.netns, step.a.name)
        for step in estate.journal.plan.steps
        if isinstance(step, Veth)
        and (step.a.netns == wire or {step.a.netns, step.b.netns} == places)
    ]


async def _alter_back(
    estate: Estate, back: tuple[tuple[Step, Step], ...], error: BaseException
) -> None:
    """Undo what has been altered of a change that failed.

    Raises:
        LabError: it could not be undone; what stands is said.
    """
    try:
        await alter_steps(estate, back)
    except TestbedError as worse:
        lab = estate.directory.name
        raise LabError(
            f"the change failed ({error}) and could not be undone ({worse}): the link is partly"
            f" changed; 'testbed apply {estate.journal.topology_file}' or 'testbed down {lab}'"
        ) from error


async def _described(
    estate: Estate, change: LinkChange, noted: Callable[[Links], Links], *, alone: bool
) -> list[str]:
    """`_describe_anew`; a link that is cut stays so, even if it is made anew."""
    cut = not all(is_set_up(*port) for port in link_ports(estate, change.ends))
    words = await _describe_anew(estate, noted, alone=alone)
    if cut:
        for where, port in link_ports(estate, change.ends):
            set_link_state(where, port, up=False)
    return words


async def _describe_anew(
    estate: Estate, noted: Callable[[Links], Links], *, alone: bool
) -> list[str]:
    """Change the running lab to what its file and the changes of its links now say.

    Raises:
        LabError: something would have to be built, and others may be changing the lab.
    """
    async with estate.describing:
        old = estate.journal
        links = noted(old.links)
        topology = estate.described(links)
        new = replace(old, plan=plan_here(topology, old.placement), links=links)
        # Not with the plan of the journal, which has the wires of a migration under way as well.
        planned = difference(plan_here(estate.topology, old.placement), new.plan)
        if (planned.do or planned.undo) and not alone:
            raise LabError("the lab was changed meanwhile: ask again")
        if planned.do or planned.undo:
            planned = await change_to(estate, topology, new)
        else:
            back = tuple((after, before) for before, after in planned.alter)
            estate.reservations.leave(before for before, _ in planned.alter)
            try:
                await alter_steps(estate, planned.alter)
            except BaseException as error:
                await _alter_back(estate, back, error)
                estate.reservations.follow(estate.journal.plan)
                raise
            # A migration may be under way, and have gone on while a delay line answered: only
            # what was altered changes in what may stand.
            now = estate.journal
            altered = {after.key: after for _, after in planned.alter}
            steps = tuple(altered.get(step.key, step) for step in now.plan.steps)
            estate.topology = topology
            estate.write_journal(replace(now, plan=Plan(now.plan.lab, steps), links=links))
            estate.reservations.follow(estate.journal.plan)
    return [
        *(describe_undo(step) for step in planned.undo),
        *(describe(step) for _, step in planned.alter),
        *(describe(step) for step in planned.do),
    ]
