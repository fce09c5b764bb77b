"""One VM on its way to another host: its wires there, its two VMX processes, the transfer."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError, MigrationError, TestbedError
from testbed.kernel import builder, undo
from testbed.lab import compare, moves
from testbed.lab.change import alter_steps
from testbed.lab.child import Child, checked
from testbed.lab.felt import follow
from testbed.lab.host_log import End, MoveLog, form
from testbed.lab.journal import Moving
from testbed.lab.outcome import Arrived, Outcome
from testbed.lab.plug import Plug
from testbed.lab.rewiring import closed, rewiring, wires
from testbed.plan.steps import Bridge
from testbed.report.observed import Observed

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.lab.estate import Estate
    from testbed.lab.lines import Message
    from testbed.lab.rewiring import Rewiring
    from testbed.lab.running_vm import RunningVM
    from testbed.lab.terms import Terms
    from testbed.plan.steps import PowerOn, Veth
    from testbed.report.vmkernel_log import Side
    from testbed.topology.model import VM

PREPARE_DEADLINE_S = 120.0
ARRIVAL_DEADLINE_S = 10.0
COMPARE_DEADLINE_S = 240.0
_ON_THE_WAY = {"progress", "iterated", "stopping"}
_PHASE_AT = {"iterated": "pre-copy", "stopping": "switchover"}
_SIDES: tuple[Side, Side] = ("S", "D")


@dataclass(slots=True)
class Move:
    """One migration from its first wire to its last."""

    estate: Estate
    running: RunningVM
    vm: VM
    terms: Terms
    request: Message
    emit: Callable[[Message], None]
    gone: asyncio.Event
    started_ns: int
    log: MoveLog | None = None
    notices: list[str] = field(default_factory=list)
    nic_line: dict[str, Any] = field(default_factory=dict)
    """Where a NIC process finds the guest at the destination."""
    _phase: str = "connect"
    """As the source has last told."""
    _resumed: bool = False
    """Whether it has run at the destination, perhaps without all of its pages."""

    @property
    def old_step(self) -> PowerOn:
        """The VM as it stood before."""
        return self.running.step

    async def carry_out(self) -> Outcome:
        """Wires, destination, transfer; undone as far as it has come if it fails.

        What is done to the lab is done at one go: no other migration comes in between.
        """
        estate, name, to = self.estate, self.vm.name, self.terms.hosts[1].name
        plan = rewiring(estate.topology, estate.journal.placement, name, to)
        async with AsyncExitStack() as stack:
            moves.begin(estate, name, Moving(to, plan.made))
            stack.callback(moves.end, estate, name, arrived=False)
            builder.build([closed(step) for step in plan.made])
            stack.callback(undo.remove, plan.made)
            moves.follow_all(estate)
            await estate.agents.of(to, plan.step.host_netns)
            arriving = await estate.spawn(plan.step)
            stack.push_async_callback(arriving.end)
            stack.callback(follow, estate, name, self._memory())
            self.log = self._begin_log(arriving)
            outcome = await self._transfer(arriving, wires(plan.made), wires(plan.gone))
            if outcome.arrived is not None:
                stack.pop_all()
                await self._settle(arriving, outcome.arrived.memory_fd, plan.step)
                await self._rewire(plan)
        if outcome.lost and outcome.failure is not None:
            self.running.channel.trouble = f"it was lost on its way to {to}, with pages missing"
            await self.running.channel.end()
            again = f"'testbed up {estate.journal.topology_file}' powers it on afresh"
            outcome.failure["remedy"] = again
        if outcome.arrived is None and self.running.channel.trouble is not None:
            self._open_ports(wires(plan.gone))
        return outcome

    def _open_ports(self, ports: list[Veth]) -> None:
        """The source's VMX may have ended with them cut: the VM is to be powered on there anew.

        What the switch has learned goes with that, so it is told again where the VM is.
        """
        names, step = [wire.b.name for wire in ports], self.old_step
        nics = [(name, mac) for name, mac in self._nics() if mac is not None]
        try:
            with Plug(step.host_netns, names, step.netns, nics) as plug:
                plug.open_and_announce()
        except TestbedError as error:
            self.notices.append(f"its port could not be opened again: {error}")

    async def _rewire(self, plan: Rewiring) -> None:
        """What is left to do at the switches. The VM has moved: a failure is told, and no more."""
        estate, name, to = self.estate, self.vm.name, self.terms.hosts[1].name
        # Others have come and gone meanwhile.
        now = rewiring(estate.topology, estate.journal.placement, name, to, standing=plan.made)
        try:
            await alter_steps(estate, now.altered)
        except TestbedError as error:
            self.notices.append(f"what {to} mirrors to {name} is not as it should be: {error}")
        try:
            undo.remove(now.gone)
        except TestbedError as error:
            self.notices.append(f"its old port is not gone: {error}")
        moves.end(estate, name, arrived=True)

    async def _settle(self, arriving: Child, memory_fd: int, step: PowerOn) -> None:
        """The VM is at its new host: let go of the old one."""
        leaving = self.running.channel
        running = self.running
        running.step, running.channel, running.memory_fd = step, arriving, memory_fd
        running.nic_line = self.nic_line
        follow(self.estate, self.vm.name, (arriving.pid, memory_fd))
        await leaving.end()
        if running.silent:  # it ended while it served both: nobody has told the new guest
            await running.let_go_of_nic()

    def _memory(self) -> tuple[int, int]:
        """The guest's at the source: process and descriptor."""
        return self.running.channel.pid, self.running.memory_fd

    def _begin_log(self, arriving: Child) -> MoveLog:
        """The lines of both hosts' logs; they grow with what the source says."""
        spec, hosts = self.terms.spec, self.terms.hosts
        seen = Observed(
            migration_id=spec.migration_id,
            vm=self.vm.name,
            source=hosts[0].name,
            destination=hosts[1].name,
            source_address=spec.source_address,
            destination_address=spec.destination_address,
            memory_bytes=spec.guest.memory_bytes,
            switchover_goal_ns=spec.switchover_goal_ns,
        )
        ends: dict[Side, End] = {
            side: End(host.name, pid, form(host.profile))
            for side, host, pid in zip(
                _SIDES, hosts, (self.running.channel.pid, arriving.pid), strict=True
            )
        }
        return MoveLog(self.estate.directory, ends, seen, self.started_ns)

    def _message(self, end: int, ports: list[Veth], nics: list[tuple[str, str | None]]) -> Message:
        """What the VMX at the source (0) or the destination (1) is told."""
        charged = self.terms.accounts[end]
        return {
            "spec": self.terms.spec_at(end),
            "ledger": charged and charged["path"],
            "nics": nics,
            "ports": [wire.b.name for wire in ports],
        }

    def _nics(self) -> list[tuple[str, str | None]]:
        netns = self.old_step.netns
        bridges = [
            s for s in self.estate.journal.plan.steps if isinstance(s, Bridge) and s.netns == netns
        ]
        return [(bridge.name, bridge.mac) for bridge in bridges]

    async def _transfer(self, arriving: Child, made: list[Veth], gone: list[Veth]) -> Outcome:
        """Let the two ends work, and find out which of them has the guest."""
        nics, leaving = self._nics(), self.running.channel
        nic = self.running.nic if self.running.nic and not self.running.nic.trouble else None
        here, there = self._message(0, gone, nics), self._message(1, made, nics)
        there["nic_pid"] = nic.child.pid if nic is not None else None
        there["sleep_ns_per_ms"] = self.running.sleep_ns_per_ms
        async with leaving.conversation:
            self.running.migrating = True
            arriving.ask({"command": "receive", **there})
            try:
                said = checked(await arriving.receive(PREPARE_DEADLINE_S))
            except (LabError, MigrationError) as error:
                self.running.migrating = False
                return Outcome.failed({"phase": "prepare", "cause": f"at the destination: {error}"})
            self.nic_line = said["nic_line"]
            if nic is not None:  # it goes on there as soon as the guest does
                await nic.attach(arriving.pid, self.nic_line, self.vm.vcpus)
            there_too = (arriving.pid, said["memory_fd"])
            follow(self.estate, self.vm.name, self._memory(), there_too)
            leaving.ask({"command": "migrate", "started_ns": self.started_ns, **here})
            source = asyncio.create_task(self._follow_source(leaving))
            destination = asyncio.create_task(self._follow_destination(leaving, arriving))
            cancelling = asyncio.create_task(self._cancel_when_gone(leaving))
            try:
                return await self._settled(source, destination, arriving, here)
            finally:
                self.running.migrating = False
                for task in (source, destination, cancelling):
                    task.cancel()

    async def _cancel_when_gone(self, leaving: Child) -> None:
        await self.gone.wait()
        leaving.tell({"command": "cancel"})

    async def _follow_source(self, leaving: Child) -> Message:
        """Pass its progress on; its last word."""
        while (said := await leaving.receive()).get("event") in _ON_THE_WAY:
            self._phase = said.get("phase") or _PHASE_AT[said["event"]]
            if said["event"] == "progress":
                self.emit(said)
            elif self.log is not None:
                self.log.tell(said)
        return said

    async def _follow_destination(self, leaving: Child, arriving: Child) -> Arrived:
        """Its guest, running; when it holds the guest to be verified, compare first.

        Raises:
            LabError: it failed, or the memories could not be compared.
        """
        verification = None
        said = checked(await arriving.receive())
        if said["event"] == "loaded":
            try:
                verification = await self._compare(leaving, arriving, said["memory_fd"])
            except BaseException:
                await arriving.end()  # or the source would wait for it
                raise
            arriving.tell({"command": "go"})
            said = checked(await arriving.receive())
        if said["event"] == "resumed":  # not all of its pages are there
            self._resumed = True
            said = checked(await arriving.receive())
        return Arrived(said["memory_fd"], verification)

    async def _compare(self, leaving: Child, arriving: Child, memory_fd: int) -> Message:
        """Both memories at rest, compared by a process of its own."""
        source = (leaving.pid, self.running.memory_fd)
        reader = await Child.spawn(
            partial(compare.run, source=source, destination=(arriving.pid, memory_fd))
        )
        try:
            return await reader.receive(COMPARE_DEADLINE_S)
        finally:
            await reader.end()

    async def _settled(
        self,
        source: asyncio.Task[Message],
        destination: asyncio.Task[Arrived],
        arriving: Child,
        here: Message,
    ) -> Outcome:
        """How it ended. The guest is left on one side, unless its VMX died with it."""
        try:
            said = await source
        except LabError as error:
            cause = f"the source's VMX ended with the guest ({error})"
            said = {"phase": self._phase, "cause": cause}
        unclear = said.get("event") == "sent" or said.get("uncertain", True) or said.get("lost")
        if not unclear:
            return Outcome.failed(said)
        # Even a guest that the source holds for lost may have got its last pages.
        try:
            arrived = await asyncio.wait_for(destination, ARRIVAL_DEADLINE_S)
        except (LabError, MigrationError, TimeoutError) as error:
            await arriving.end()  # now it surely doesn't run there, and never will
            leaving = self.running.channel
            if self._resumed or said.get("lost"):
                return Outcome.failed(
                    {"phase": "page-in", "cause": f"{error}", **said, "lost": True}
                )
            if leaving.trouble is None:
                leaving.ask({"command": "take_back", **here})
                checked(await leaving.receive(ARRIVAL_DEADLINE_S))
            if said.get("event") == "sent":
                said = {"phase": "resume", "cause": f"the destination ended: {error}"}
            return Outcome.failed(said)
        return Outcome.completed(arrived, said.get("engine"))
