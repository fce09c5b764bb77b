"""What the supervisor owns: the running VMs, the datastores and the journal."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError, TestbedError
from testbed.lab import accounts, vmx
from testbed.lab.agents import Agents
from testbed.lab.child import Child
from testbed.lab.cpus import cpu_count
from testbed.lab.link_change import changed_links
from testbed.lab.migration_queue import MigrationQueue, host_limits
from testbed.lab.planning import network_here
from testbed.lab.reservations import Reservations
from testbed.lab.running_vm import RunningVM
from testbed.lab.teams import Teams
from testbed.lab.together import at_most
from testbed.lab.turns import Turns
from testbed.lab.wires import Wires
from testbed.lab.workload_change import changed_workloads
from testbed.plan.network import Network
from testbed.plan.plan import step_from_json, step_to_json
from testbed.plan.policies import DelayLine
from testbed.plan.steps import DatastoreDirectory, LabStep, Netns, PowerOn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from testbed.lab.directory import LabDirectory
    from testbed.lab.journal import Journal
    from testbed.lab.lines import Message
    from testbed.lab.preloaded import Preloaded
    from testbed.lab.watch import Watch
    from testbed.plan.steps import Step
    from testbed.topology.model import Topology

POWER_ON_DEADLINE_S = 120.0
MOST_LINK_EVENTS = 100
VMS_AT_A_TIME_PER_CPU = 2  # powering on waits now and then, for a vCPU to answer


class Estate:
    """The lab as the supervisor holds it."""

    def __init__(self, directory: LabDirectory, journal: Journal, preloaded: Preloaded) -> None:
        self._preloaded = preloaded
        self.directory = directory
        self.journal = journal
        self.written = journal.topology()
        """The topology as its file says, without the changes of links and workloads."""
        self.topology = self.described(journal.links)
        self.link_events: deque[tuple[int, str]] = deque(maxlen=MOST_LINK_EVENTS)
        """What `testbed link` has done, and when (CLOCK_MONOTONIC, ns)."""
        self.vms: dict[str, RunningVM] = {}
        self.turns = Turns()
        """Whatever builds something does it in its turn."""
        self.queue = MigrationQueue(
            lambda: host_limits(self.topology.hosts, self.topology.scale.denominator)
        )
        self.describing = asyncio.Lock()
        """Held while `topology` changes, which a link's change may do beside a migration."""
        self.wires = Wires(Network.cpu_of(journal.plan.lab, cpu_count()))
        self.watches: list[Watch] = []
        """Whatever feels for a VM now (testbed/lab/felt.py)."""
        self.agents = Agents()
        self.teams = Teams()
        self.reservations = Reservations()

    def described(self, links: tuple[dict[str, Any], ...]) -> Topology:
        """The topology with these changes of links, and those of workloads in the journal."""
        return changed_workloads(changed_links(self.written, links), self.journal.workloads)

    def write_journal(self, journal: Journal) -> None:
        """Note a new state of the lab, on disk first."""
        journal.write(self.directory.journal)
        self.journal = journal

    def follow(self, *placements: Mapping[str, str]) -> None:
        """Follow the links and reservations of the lab, with its VMs placed in all these ways."""
        self.teams.follow(*(network_here(self.topology, where) for where in placements))
        self.reservations.follow(self.journal.plan)

    # -- making and unmaking what isn't in the kernel ------------------------------------

    async def make(self, steps: list[Message]) -> Message:
        """Carry out lab steps, given as JSON; `made` tells of each whether there was any need.

        `mended` are VMs that ran, and whose NIC process had ended and has been started again.
        """
        parsed = []
        for one in map(step_from_json, steps):
            if not isinstance(one, LabStep):
                raise LabError(f"a supervisor makes no {one.kind}")
            parsed.append(one)
        vms = [self.vms.get(one.vm) for one in parsed if isinstance(one, PowerOn)]
        silent = [vm.step.vm for vm in vms if vm is not None and vm.silent]
        return {"made": await self.do_all(parsed, []), "mended": silent}

    async def commit(self) -> Message:
        """Note that the lab is up: every step has been carried out.

        Where VMs run no maintenance mode was entered: the supervisor ended meanwhile.
        """
        held = {running.step.host for running in self.vms.values()}
        kept = {host: off for host, off in self.journal.maintenance.items() if host not in held}
        self.write_journal(replace(self.journal, state="up", maintenance=kept))
        self.follow(self.journal.placement)
        return {}

    async def do_all(self, steps: Sequence[LabStep], done: list[Step]) -> list[bool]:
        """Carry out lab steps in order, but VMs that follow one another several at a time.

        Args:
            steps: what to do.
            done: gets each step once it has been carried out, for whoever must go back.

        Returns:
            Of each whether there was anything to do.

        Raises:
            LabError: one failed; the VMs that were under way meanwhile have been ended.
        """

        async def one(step: LabStep) -> bool:
            made = await self.do(step)
            done.append(step)
            return made

        made: list[bool] = []
        for are_vms, group in groupby(steps, lambda step: isinstance(step, PowerOn)):
            width = VMS_AT_A_TIME_PER_CPU * cpu_count() if are_vms else 1
            made += await at_most(width, [partial(one, step) for step in group])
        return made

    async def do(self, step: LabStep) -> bool:
        """Carry out one lab step; a VM that runs already is left alone, a failed one is not.

        One whose NIC process has ended gets another.

        Returns:
            Whether there was anything to do.

        Raises:
            LabError: the VM could not be powered on.
        """
        if isinstance(step, DelayLine):
            return await self.wires.start(step)
        if isinstance(step, DatastoreDirectory):
            self._datastore(step.name).mkdir(parents=True, exist_ok=True)
            return True
        running = self.vms.get(step.vm)
        if running is not None and running.channel.trouble is None:
            await running.plug_in()
            return False
        if running is not None:
            del self.vms[step.vm]
            await running.end()
        await self._power_on(step)
        return True

    async def undo(self, step: LabStep) -> None:
        """Take back one lab step; what is gone already is no error."""
        if isinstance(step, DelayLine):
            await self.wires.stop(step)
            return
        if isinstance(step, DatastoreDirectory):
            shutil.rmtree(self._datastore(step.name), ignore_errors=True)
            return
        running = self.vms.pop(step.vm, None)
        if running is not None:
            await running.end()
        shutil.rmtree(self.files(step), ignore_errors=True)

    async def end_all(self) -> None:
        """End every VM, agent and delay line, and stop following the network."""
        self.teams.close()
        self.reservations.close()
        while self.vms:
            _, running = self.vms.popitem()
            await running.end()
        await self.agents.end_all()
        await self.wires.stop_all()
        self._preloaded.close()

    async def spawn(self, step: PowerOn) -> Child:
        """A VMX process for a VM in its host's namespace, with nothing in it yet."""
        arguments: Message = {"vm": step.vm, "vm_netns": step.netns, "host": step.host_netns}
        arguments["account"] = accounts.terms(self.directory, self.topology, step.host)
        return await Child.start(partial(self._preloaded.fork_vmx, arguments=arguments))

    async def _power_on(self, step: PowerOn) -> None:
        files = self.files(step)
        files.mkdir(parents=True, exist_ok=True)
        configuration = json.dumps(step_to_json(step), indent=2)
        (files / f"{step.vm}.json").write_text(configuration + "\n", encoding="utf-8")
        async with AsyncExitStack() as undo:
            try:
                channel = await self.spawn(step)
                undo.push_async_callback(channel.end)
                fields = vmx.guest_fields(step, str(files))
                message = {"command": "power_on", "vm": fields}
                answer = await channel.call(message, POWER_ON_DEADLINE_S)
                running = RunningVM(step, channel, answer["memory_fd"], answer["nic_line"])
                await running.plug_in()
            except TestbedError as error:
                raise LabError(f"power on {step.vm} on {step.host}: {error}") from error
            self.vms[step.vm] = running
            undo.pop_all()

    async def switch(self, step: PowerOn) -> None:
        """Have a VM do what `step` says, which differs in workloads alone.

        Raises:
            LabError: it can't, and goes on as it was.
        """
        running = self.vms[step.vm]
        await running.switch(step)
        if running.channel.trouble is None:
            await running.plug_in()

    def _datastore(self, name: str) -> Path:
        return self.directory.datastores / name

    def files(self, step: PowerOn) -> Path:
        """A VM's place on its datastore."""
        return self._datastore(step.datastore) / step.vm

    # -- the commands ---------------------------------------------------------------------

    async def status(self) -> Message:
        """The lab as JSON: nodes, VMs with their counters, what is wrong."""
        vms = await asyncio.gather(*(vm.status() for vm in self.vms.values()))
        return {
            "lab": self.directory.name,
            "state": self.journal.state,
            "supervisor_pid": os.getpid(),
            "topology_file": self.journal.topology_file,
            "maintenance": sorted(self.journal.maintenance),
            "scale_divisor": self.topology.scale.denominator,
            "nodes": [
                {"name": step.node, "role": step.role, "netns": step.name}
                for step in self.journal.plan.steps
                if isinstance(step, Netns)
            ],
            "vms": sorted(vms, key=lambda vm: vm["name"]),
            "wires": await self.wires.reading(self.journal.plan),
            "teams": [
                {"netns": where, "port": port, "uplink": uplink}
                for (where, port), uplink in sorted(self.teams.pinned().items())
            ],
            "network_troubles": [
                *self.wires.troubles(),
                *filter(None, [self.reservations.trouble]),
            ],
            "team_events": [asdict(event) for event in self.teams.events],
        }

    def pinned(self) -> dict[tuple[str, str], str | None]:
        """The vmnic that each (host, vmk) with a choice leaves by now."""
        steps = self.journal.plan.steps
        nodes = {step.name: step.node for step in steps if isinstance(step, Netns)}
        return {
            (nodes.get(where, ""), port.removesuffix("-port")): uplink
            for (where, port), uplink in self.teams.pinned().items()
        }

    async def wire_reading(self) -> Message:
        """The counters of the links with latency, as `Wires.reading`."""
        return await self.wires.reading(self.journal.plan)
