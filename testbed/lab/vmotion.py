"""Migrations as the supervisor conducts them: asked for, admitted, carried out, told."""

from __future__ import annotations

import asyncio
import time
import traceback
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from testbed.errors import InputError, LabError, MigrationError, TestbedError
from testbed.lab import moves
from testbed.lab.adapter_paths import adapter_paths
from testbed.lab.admission import reasons_against
from testbed.lab.agreement import Options, as_asked
from testbed.lab.client import error_message
from testbed.lab.engine_spec import path_rates
from testbed.lab.felt import report, wait_unless, watching
from testbed.lab.migration_queue import host_limits
from testbed.lab.move import Move
from testbed.lab.outcome import Outcome, migration_result
from testbed.lab.specification_traffic import delivered
from testbed.lab.terms import terms
from testbed.lab.wires import reports
from testbed.migration import concurrency
from testbed.profiles import DEFAULT
from testbed.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.lab.estate import Estate
    from testbed.lab.lines import Message
    from testbed.lab.running_vm import RunningVM
    from testbed.topology.model import VM, Host


async def migrate(
    estate: Estate, request: Message, emit: Callable[[Message], None], gone: asyncio.Event
) -> Message:
    """Move a VM and return the result as JSON; a migration that failed has a result too.

    `request["probe"]`, if there, says how it is to be felt (testbed/lab/felt.py).
    When `gone` is set (whoever asked has gone away) it is cancelled, if it still can be.

    Raises:
        InputError: there is no such VM, host or profile.
        LabError: the VM may not move there, or its turn had not come when it was cancelled;
            nothing was touched.
    """
    name, to = request["vm"], request["to"]
    _known(estate, name, to)
    if name not in estate.journal.moves:  # or who knows where it will be
        _checked_request(estate, request)
    step, moving = estate.vms[name].step, estate.journal.moves.get(name)
    source = moving.to if moving else step.host

    def wait(cause: str) -> None:
        emit({"event": "queued", "cause": cause})

    topology = estate.topology
    options = Options(**request.get("options") or {})
    ends = [as_asked(topology.host(one), options, topology.scale) for one in (source, to)]
    own = host_limits(ends, topology.scale.denominator) if options.profile else None
    network, limit = _network(estate, *ends)
    move = concurrency.Move(name, source, to, network, (step.datastore,))
    async with estate.queue.admitted(move, limit, wait, gone, own) as admitted:
        if not admitted:
            raise LabError(f"migrate {name} to {to}: cancelled while it waited")
        if estate.turns.must_wait(alone=False):
            emit({"event": "waiting"})
        async with estate.turns.beside():
            running, _, _ = _checked_request(estate, request)
            async with running.configuration:  # facts row 42: locked until the VM has moved
                return await _migrate(estate, request, emit, gone)


async def _migrate(
    estate: Estate, request: Message, emit: Callable[[Message], None], gone: asyncio.Event
) -> Message:
    running, vm, host = _checked_request(estate, request)
    settled = await terms(estate, running, host, request)
    probe = request.get("probe")
    around_ns = probe["around_ns"] if probe else 0
    async with AsyncExitStack() as stack:
        stack.callback(settled.close, estate)
        watch = await stack.enter_async_context(watching(estate, running, probe))
        await wait_unless(gone, around_ns)
        started_ns = time.monotonic_ns()
        move = Move(estate, running, vm, settled, request, emit, gone, started_ns)
        standing, before = running.step, await estate.wire_reading()
        outcome, notices = await _carry_out(estate, move)
        wires = reports(before, await estate.wire_reading())
        await wait_unless(gone, around_ns)
        felt = await report(estate, watch, started_ns) if probe else None
    result = migration_result(
        estate,
        request,
        step=standing,
        terms=settled,
        outcome=outcome,
        wires=wires,
        since_ns=started_ns,
        felt=felt,
        notices=notices,
    )
    if move.log is not None:
        move.log.end(result)
    return result


async def _carry_out(estate: Estate, move: Move) -> tuple[Outcome, list[str]]:
    """Send the specification, then move the VM while heartbeats go on; what came of both."""
    settled = move.terms
    sending = delivered(
        estate.agents,
        settled.management,
        settled.spec.migration_id,
        settled.told(),
        settled.profile,
    )
    try:
        async with AsyncExitStack() as stack:
            entering = asyncio.create_task(stack.enter_async_context(sending))
            leaving = asyncio.create_task(move.gone.wait())
            try:
                await asyncio.wait(
                    (entering, leaving),
                    timeout=_left_s(move),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not entering.done():
                    cause = "cancelled"
                    if not leaving.done():
                        limit = format_duration(settled.spec.deadline_ns or 0)
                        cause = f"it has taken longer than its deadline of {limit}"
                    return Outcome.failed({"phase": "specification", "cause": cause}), []
                management = entering.result()
            finally:
                entering.cancel()
                leaving.cancel()
                await asyncio.gather(entering, leaving, return_exceptions=True)
            _checked_request(estate, move.request)  # others may have taken the room meanwhile
            outcome = await move.carry_out()
        return outcome, [*management.notices, *move.notices]
    except MigrationError as error:
        return Outcome.failed({"phase": "specification", "cause": str(error)}), []


def _left_s(move: Move) -> float | None:
    """What is left of the time that a migration may take; None: it may take any."""
    limit_ns = move.terms.spec.deadline_ns
    if limit_ns is None:
        return None
    return max(0, move.started_ns + limit_ns - time.monotonic_ns()) / 1e9


async def migrate_all(
    estate: Estate, request: Message, emit: Callable[[Message], None], gone: asyncio.Event
) -> Message:
    """Move several VMs, `request["moves"]`: [VM, host] each; the rest as `migrate`.

    Every event names its `vm` and where `to`. The last one of each has its `result`, or the
    `error` for which it was not begun: it does not disturb the others.

    Raises:
        InputError: there is no such VM or host; nothing was touched.
    """
    for vm, to in request["moves"]:
        _known(estate, vm, to)

    async def one(vm: str, to: str) -> None:
        def tell(message: Message) -> None:
            emit({**message, "vm": vm, "to": to})

        asked = {**request, "vm": vm, "to": to}
        try:
            tell({"event": "ended", "result": await migrate(estate, asked, tell, gone)})
        except TestbedError as error:
            tell({"event": "ended", **error_message(error)})
        except Exception as error:  # a fault in one must not end the others
            traceback.print_exc()
            tell(
                {"event": "ended", **error_message(LabError(f"fault in the supervisor: {error!r}"))}
            )

    async with asyncio.TaskGroup() as group:
        for vm, to in request["moves"]:
            group.create_task(one(vm, to))
    return {}


def _known(estate: Estate, name: str, to: str) -> Host:
    """The host, if there are such a VM and such a host.

    Raises:
        InputError: there are not.
    """
    if name not in estate.vms:
        raise InputError(f"there is no VM {name!r}; there are: {', '.join(sorted(estate.vms))}")
    hosts = {host.name: host for host in estate.topology.hosts}
    if to not in hosts:
        raise InputError(f"there is no host {to!r}; there are: {', '.join(sorted(hosts))}")
    return hosts[to]


def _network(estate: Estate, source: Host, to: Host) -> tuple[str, int | None]:
    """The vMotion network between two hosts, and how many migrations it takes; None: any number.

    250 Mb/s are asked for each, where the source's profile models anything.
    """
    topology = estate.topology
    paths = adapter_paths(source, to, "vmotion")
    if not paths or source.profile.name == DEFAULT:
        return "", None
    (rate_bps,) = path_rates(topology, source.name, to.name, paths[:1], estate.pinned())
    nominal_bps = rate_bps and rate_bps * topology.scale.denominator
    limit = None if nominal_bps is None else concurrency.network_limit(nominal_bps)
    return str(paths[0].source_network.cidr), limit


def _checked_request(estate: Estate, request: Message) -> tuple[RunningVM, VM, Host]:
    name, to = request["vm"], request["to"]
    host = _known(estate, name, to)
    running = estate.vms[name]
    running.require_sound("migrate it", estate.journal.topology_file)
    running.require_unrecorded("migrate it")
    moves.require_unmoved(estate, name, "migrate it")
    vm = estate.topology.vm(name)
    where = {other: v.step.host for other, v in estate.vms.items()}
    arriving = [one for one, moving in estate.journal.moves.items() if moving.to == to]
    closed = estate.journal.maintenance
    reasons = reasons_against(estate.topology, where, vm, host, arriving, closed=closed)
    if reasons:
        raise LabError(f"migrate {name} to {to}: " + "; and ".join(reasons))
    return running, vm, host
