"""A VM that is powered on: its VMX, its NIC process, and what they say of it."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.guest.workload_text import describe_workload, describe_workloads
from testbed.guest.workloads import Iometer, of_network, to_json
from testbed.lab.nic import ANSWER_DEADLINE_S, Nic

if TYPE_CHECKING:
    from testbed.lab.child import Child
    from testbed.lab.lines import Message
    from testbed.plan.steps import PowerOn

COUNT_DEADLINE_S = 60.0
"""Counting zero pages reads all of the memory."""
SWITCH_DEADLINE_S = 60.0
"""The file of an iometer workload is made."""


@dataclass(slots=True)
class RunningVM:
    """A VM that is powered on, and the processes that run it.

    `channel` is its VMX, `memory_fd` the guest's memory there and `nic_line` what a NIC process
    fetches there. `nic` is there once the VM has, or has had, workloads of the network. `step` has
    the workloads as they are now; `sleep_ns_per_ms` is its throttle.
    """

    step: PowerOn
    channel: Child
    memory_fd: int
    nic_line: dict[str, Any]
    nic: Nic | None = None
    sleep_ns_per_ms: int | None = None
    migrating: bool = False
    recording: bool = False
    configuration: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whatever changes what the VM is, or moves it."""

    @property
    def state(self) -> str:
        """`running`, `migrating`, or `failed` when its VMX or a vCPU has died."""
        if self.channel.trouble is not None:
            return "failed"
        return "migrating" if self.migrating else "running"

    @property
    def silent(self) -> bool:
        """Whether it runs, but its NIC process has ended."""
        dead_nic = self.nic is not None and self.nic.trouble is not None
        return dead_nic and self.channel.trouble is None

    def require_sound(self, attempt: str, topology_file: str) -> None:
        """See that the VM has not failed.

        Raises:
            LabError: it has.
        """
        if self.channel.trouble is not None:
            raise LabError(
                f"{attempt}: {self.step.vm} has failed ({self.channel.trouble});"
                f" 'testbed up {topology_file}' powers it on afresh"
            )

    def require_unrecorded(self, attempt: str) -> None:
        """See that it is not being recorded, which keeps its VMX and its dirty tracking busy.

        Raises:
            LabError: it is.
        """
        if self.recording:
            raise LabError(
                f"{attempt}: {self.step.vm} is being recorded; wait for that, or end it with Ctrl-C"
            )

    async def end(self) -> None:
        """End its processes, and see them gone."""
        if self.nic is not None:
            await self.nic.end()
        await self.channel.end()

    async def switch(self, step: PowerOn) -> None:
        """Have it do what `step` says; one that has failed is only noted so.

        Raises:
            LabError: it can't, and goes on as it was.
        """
        if self.channel.trouble is None:
            workloads = [to_json(one) for one in step.workloads]
            await self.channel.call(
                {"command": "switch", "workloads": workloads}, SWITCH_DEADLINE_S
            )
        self.step = step

    async def throttle(self, sleep_ns_per_ms: int | None) -> None:
        """Have its vCPUs sleep so long for each millisecond that they have run; None: not at all.

        Raises:
            LabError: its VMX doesn't answer.
        """
        message = {"command": "throttle", "sleep_ns_per_ms": sleep_ns_per_ms}
        await self.channel.call(message, ANSWER_DEADLINE_S)
        self.sleep_ns_per_ms = sleep_ns_per_ms

    async def record(self, duration_ns: int, interval_ns: int, gone: asyncio.Event) -> Message:
        """Track its writes for a time, or until `gone` is set; the trace as JSON.

        Raises:
            LabError: its writes can't be tracked.
        """

        async def cancel_when_gone() -> None:
            await gone.wait()
            self.channel.tell({"command": "cancel"})

        cancelling = asyncio.create_task(cancel_when_gone())
        self.recording = True
        try:
            return await self.channel.call(
                {"command": "record", "duration_ns": duration_ns, "interval_ns": interval_ns},
                duration_ns / 1e9 + COUNT_DEADLINE_S,
            )
        finally:
            self.recording = False
            cancelling.cancel()

    # -- its NIC --------------------------------------------------------------------------

    async def plug_in(self) -> bool:
        """See that its workloads of the network, if it has any, are served by a NIC process.

        Returns:
            Whether one was started, for the first time or again.

        Raises:
            LabError: it could not be.
        """
        if self.nic is not None and self.nic.child.trouble is not None:
            await self.nic.end()
            self.nic = None
        elif self.nic is None and not of_network(self.step.workloads):
            return False
        try:
            if self.nic is not None:
                await self.nic.serve(self.step.workloads)
                return False
            await self._start_nic()
        except LabError as error:
            what = f"serve the network workloads of {self.step.vm}"
            raise LabError(f"{what}: {error}") from error
        return True

    async def _start_nic(self) -> None:
        async with AsyncExitStack() as undo:
            nic = await Nic.start(self.step)
            undo.push_async_callback(nic.end)
            await nic.serve(self.step.workloads)
            await nic.attach(self.channel.pid, self.nic_line, self.step.vcpus)
            message = {"command": "attach_nic", "nic_pid": nic.child.pid}
            await self.channel.call(message, ANSWER_DEADLINE_S)
            self.nic = nic
            nic.watch(self.let_go_of_nic)
            undo.pop_all()

    async def let_go_of_nic(self) -> None:
        """It has ended by itself: the guest must not wait for it when it is to stop."""
        if self.channel.trouble is None:
            with suppress(LabError):
                await self.channel.call({"command": "detach_nic"}, ANSWER_DEADLINE_S)

    async def charge(self, account: dict[str, Any] | None) -> None:
        """Have what it moves charged so from now on (`accounts.terms`).

        Raises:
            LabError: its processes don't answer.
        """
        if account == self.nic_line["account"] or self.channel.trouble is not None:
            return
        await self.channel.call({"command": "charge", "account": account}, ANSWER_DEADLINE_S)
        self.nic_line = {**self.nic_line, "account": account}
        if self.nic is not None and self.nic.trouble is None:
            await self.nic.attach_anew(self.channel.pid, self.nic_line, self.step.vcpus)

    # -- what is known of it --------------------------------------------------------------

    async def status(self, *, whole: bool = False) -> dict[str, Any]:
        """The VM as JSON; `whole` has pages counted too, which reads all of its memory."""
        step = self.step
        status: dict[str, Any] = {
            "name": step.vm,
            "host": step.host,
            "datastore": step.datastore,
            "state": self.state,
            "trouble": self.channel.trouble,
            "vmx_pid": self.channel.pid,
            "nic_pid": self.nic.child.pid if self.nic is not None else None,
            "memory_bytes": step.memory_bytes,
            "vcpus": step.vcpus,
            "backing": step.backing,
            "page_bytes": step.page_bytes,
            "resident_bytes": step.resident_bytes,
            "affinity": list(step.affinity),
            "throttle_sleep_ns_per_ms": self.sleep_ns_per_ms,
            "counters": None,
        }
        if self.state == "running" and not self.recording:
            await self._count(status, whole=whole)
        workloads = self.step.workloads  # those counted: they may have been switched meanwhile
        status["workload"] = describe_workloads(workloads)
        status["workloads"] = [to_json(one) | {"text": describe_workload(one)} for one in workloads]
        for one in status["workloads"]:
            one.pop("ranges", None)  # of a trace: as many as there are
        if status["trouble"] is None and self.nic is not None:
            status["trouble"] = self.nic.trouble
        return status

    async def _count(self, status: dict[str, Any], *, whole: bool) -> None:
        deadline_s = COUNT_DEADLINE_S if whole else ANSWER_DEADLINE_S
        try:
            answer = await self.channel.call({"command": "counters", "whole": whole}, deadline_s)
        except LabError as error:
            status |= {"state": "failed", "trouble": str(error)}
            return
        status["counters"] = answer["counters"]
        status["trouble"] = status["trouble"] or self._stopped(answer["counters"]["workloads"])

    def _stopped(self, workloads: list[dict[str, Any]]) -> str | None:
        """Which workloads an error has ended; the VM runs on."""
        said = []
        for one, counted in zip(self.step.workloads, workloads, strict=True):
            if counted["failed"]:
                where = f" on datastore {self.step.datastore}" if isinstance(one, Iometer) else ""
                said.append(f"{one.kind} stopped: {os.strerror(counted['failed'])}{where}")
        if not said:
            return None
        again = f"'testbed vm {self.step.vm} workload ...' starts it again"
        return "; ".join(said) + f"; mend that, then {again}"
