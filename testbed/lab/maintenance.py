"""Maintenance mode: a host is emptied of its VMs, takes none, and may be powered off."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import InputError, LabError
from testbed.kernel.link_state import set_link_state
from testbed.lab.client import error_message
from testbed.lab.evacuation import choose
from testbed.lab.link import link_ports
from testbed.lab.vmotion import migrate_all

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from testbed.lab.estate import Estate
    from testbed.lab.lines import Message


async def evacuate(
    estate: Estate, request: Message, emit: Callable[[Message], None], gone: asyncio.Event
) -> Message:
    """Enter maintenance mode: move every VM of `request["host"]` away; events as `migrate_all`.

    The host takes no VM from now on. If one can't be moved, or it is cancelled, the mode is not
    entered after all. With `request["power_off"]` the host's links are cut in the end.

    Returns:
        `entered`, and the VMs that are `left` there.

    Raises:
        InputError: there is no such host.
        LabError: it is in maintenance mode already.
    """
    async with estate.turns.beside():  # what changes the lab alone writes the journal, too
        name = _known(estate, request["host"])
        if name in estate.journal.maintenance:
            raise LabError(
                f"evacuate {name}: it is in maintenance mode already;"
                f" 'testbed evacuate {name} --exit' ends it"
            )
        _note(estate, {**estate.journal.maintenance, name: False})
    async with AsyncExitStack() as undo:
        undo.push_async_callback(_not_entered, estate, name)
        where = {vm: running.step.host for vm, running in estate.vms.items()}
        where |= {vm: moving.to for vm, moving in estate.journal.moves.items()}
        chosen = choose(estate.topology, where, name, estate.journal.maintenance)
        for vm, cause in chosen.stuck:
            refused = LabError(f"no host takes {vm}: {cause}")
            emit({"event": "ended", "vm": vm, "to": "-", **error_message(refused)})
        await migrate_all(estate, {**request, "moves": chosen.moves}, emit, gone)
        async with estate.turns.beside():
            _known(estate, name)  # it may have been taken out of the lab meanwhile
            left = sorted(vm for vm, one in estate.vms.items() if one.step.host == name)
            if not left:
                if request["power_off"]:
                    power(estate, name, on=False)
                undo.pop_all()
    return {"entered": not left, "left": left}


async def leave(estate: Estate, request: Message) -> Message:
    """End a host's maintenance mode: it takes VMs again, and is powered on if it was not.

    Raises:
        InputError: there is no such host.
        LabError: it is not in maintenance mode.
    """
    name = _known(estate, request["host"])
    if name not in estate.journal.maintenance:
        raise LabError(f"evacuate {name} --exit: it is not in maintenance mode")
    if estate.journal.maintenance[name]:
        power(estate, name, on=True)
    _leave(estate, name)
    return {}


def power(estate: Estate, name: str, *, on: bool) -> None:
    """Cut or restore all links of a host, which is all that the network sees of its power.

    Raises:
        KernelError: the kernel refused.
    """
    for uplink in estate.topology.host(name).uplinks:
        for where, port in link_ports(estate, (f"{name}/{uplink.name}", uplink.switch)):
            set_link_state(where, port, up=on)
    _note(estate, {**estate.journal.maintenance, name: not on})


def _known(estate: Estate, name: str) -> str:
    hosts = [host.name for host in estate.topology.hosts]
    if name not in hosts:
        raise InputError(f"there is no host {name!r}; there are: {', '.join(sorted(hosts))}")
    return name


async def _not_entered(estate: Estate, name: str) -> None:
    async with estate.turns.beside():
        _leave(estate, name)


def _leave(estate: Estate, name: str) -> None:
    closed = estate.journal.maintenance
    _note(estate, {one: off for one, off in closed.items() if one != name})


def _note(estate: Estate, maintenance: dict[str, bool]) -> None:
    estate.write_journal(replace(estate.journal, maintenance=maintenance))
