"""The VMX process of one VM: holds the guest, and runs one end of a migration."""

from __future__ import annotations

import select
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import prctl
from testbed.errors import LabError, TestbedError
from testbed.guest.machine import Guest
from testbed.guest.recording import record
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import from_json
from testbed.kernel import netns
from testbed.lab import disk
from testbed.lab.agent_acceptor import AgentAcceptor
from testbed.lab.counting import count
from testbed.lab.lines import LineSocket, Message
from testbed.lab.plug import Plug
from testbed.ledger import Ledger
from testbed.migration import destination, source, swap_bitmap
from testbed.migration.phase import MigrationFailed, MigrationLost, MigrationUncertain
from testbed.migration.specification import MigrationSpec

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from testbed.plan.steps import PowerOn


def guest_fields(step: PowerOn, directory: str) -> dict[str, Any]:
    """A VM of the plan as `GuestSpec.to_json` tells it; `directory` is its place on disk."""
    return GuestSpec(
        name=step.vm,
        memory_bytes=step.memory_bytes,
        vcpus=step.vcpus,
        workloads=step.workloads,
        seed=step.seed,
        in_use_bytes=step.in_use_bytes,
        backing=step.backing,
        page_bytes=step.page_bytes,
        resident_bytes=step.resident_bytes,
        affinity=step.affinity,
        directory=directory,
    ).to_json()


def run(
    control: socket.socket,
    *,
    vm: str,
    vm_netns: str,
    host: str,
    account: dict[str, Any] | None = None,
) -> None:
    """Live as the VMX of `vm` in the namespace `host` until the supervisor ends it.

    `account` is what the host's CPU is charged (`accounts.terms`), by the VM's NIC process too.
    """
    prctl.set_name(f"vmx-{vm}")
    netns.enter(host)
    _Vmx(LineSocket(control), host, vm_netns, account).serve()


class _Vmx:
    def __init__(
        self,
        control: LineSocket,
        host_netns: str,
        vm_netns: str,
        account: dict[str, Any] | None,
    ) -> None:
        self._control = control
        self._host_netns = host_netns
        self._vm_netns = vm_netns
        self._account = account
        self._guest: Guest | None = None
        self._told_of_trouble = False
        self._asked = 0

    def serve(self) -> None:
        """Answer commands, one at a time, and tell when a vCPU dies."""
        while True:
            watched: list[Any] = [self._control]
            if self._guest is not None and not self._told_of_trouble:
                watched += self._guest.pidfds
            ready = select.select(watched, [], [])[0]
            if self._control not in ready:
                self._tell_of_trouble()
                continue
            try:
                message = self._control.receive()
            except EOFError:
                return
            if message is not None and message["command"] in self._commands():
                self._asked = message["ask"]
                self._carry_out(message)
            # Anything else belonged to a command that has ended meanwhile: a late "cancel".

    def _tell_of_trouble(self) -> None:
        dead = ", ".join(map(str, self._need_guest().dead_vcpus()))
        self._told_of_trouble = True
        self._control.send({"event": "trouble", "message": f"vCPU {dead} died"})

    def _say(self, message: Message) -> None:
        """Send something that answers the command under way."""
        self._control.send({**message, "ask": self._asked})

    def _commands(self) -> dict[str, Callable[[Message], Message]]:
        return {
            "power_on": self._power_on,
            "counters": self._counters,
            "switch": self._switch,
            "throttle": self._throttle,
            "record": self._record,
            "attach_nic": self._attach_nic,
            "detach_nic": self._detach_nic,
            "charge": self._charge,
            "migrate": self._migrate,
            "receive": self._receive,
            "take_back": self._take_back,
        }

    def _carry_out(self, message: Message) -> None:
        try:
            answer = self._commands()[message["command"]](message)
        except MigrationFailed as error:
            answer = {
                "error": {"type": "MigrationError", "message": str(error)},
                "phase": error.phase.value,
                "cause": error.cause,
                "remedy": error.remedy,
                "uncertain": isinstance(error, MigrationUncertain),
                "lost": isinstance(error, MigrationLost),
                "engine": error.measured and asdict(error.measured),
            }
        except (TestbedError, OSError, ValueError) as error:
            answer = {"error": {"type": type(error).__name__, "message": str(error)}}
        self._say(answer)

    def _need_guest(self) -> Guest:
        if self._guest is None:
            raise LabError("this VMX has no guest")
        return self._guest

    def _places(self, guest: Guest) -> Message:
        """Where others find a guest: descriptors of this process, and its host's account."""
        line = {**guest.nic_line(), "account": self._account}
        return {"memory_fd": guest.memory.fd, "nic_line": line}

    def _enter_vm(self) -> None:
        """What each vCPU does first: the VM's network is its own."""
        netns.enter(self._vm_netns)

    def _plug(self, message: Message) -> Plug:
        return Plug(self._host_netns, message["ports"], self._vm_netns, message["nics"])

    # -- commands -------------------------------------------------------------------------

    def _power_on(self, message: Message) -> Message:
        spec = GuestSpec.from_json(message["vm"])
        disk.prepare(spec)
        self._guest = Guest.power_on(spec, self._enter_vm)
        return {"event": "running", **self._places(self._guest)}

    def _counters(self, message: Message) -> Message:
        return {"counters": count(self._need_guest(), whole=message["whole"])}

    def _switch(self, message: Message) -> Message:
        guest = self._need_guest()
        workloads = tuple(map(from_json, message["workloads"]))
        with disk.exchanged(guest.program, replace(guest.program, workloads=workloads)):
            guest.switch_workloads(workloads)
        return {}

    def _throttle(self, message: Message) -> Message:
        self._need_guest().throttle(message["sleep_ns_per_ms"])
        return {}

    def _record(self, message: Message) -> Message:
        times = message["duration_ns"], message["interval_ns"]
        trace = record(self._need_guest(), *times, self._wait_unless_cancelled)
        return {"ranges": [asdict(one) for one in trace.ranges]}

    def _attach_nic(self, message: Message) -> Message:
        self._need_guest().attach_nic(message["nic_pid"])
        return {}

    def _detach_nic(self, _: Message) -> Message:
        self._need_guest().detach_nic()
        return {}

    def _charge(self, message: Message) -> Message:
        self._account = message["account"]
        return {}

    def _migrate(self, message: Message) -> Message:
        guest = self._need_guest()
        with self._plug(message) as plug:
            hooks = source.SourceHooks(
                cut=plug.close,
                uncut=plug.open_and_announce,
                progress=self._progress,
                iterated=lambda done: self._say({"event": "iterated", "iteration": asdict(done)}),
                stopping=lambda: self._say({"event": "stopping"}),
                cancelled=self._cancelled,
            )
            spec = MigrationSpec.from_json(message["spec"])
            ledger = _ledger(message)
            report = source.migrate(guest, spec, hooks, message["started_ns"], ledger)
        return {"event": "sent", "engine": asdict(report)}

    def _progress(self, progress: source.Progress) -> None:
        told = asdict(progress) | {"phase": progress.phase.value, "event": "progress"}
        self._say(told)

    def _cancelled(self) -> bool:
        if not self._control.pending() and not select.select([self._control], [], [], 0)[0]:
            return False
        message = self._control.receive(timeout_s=0)
        return message is not None and message.get("command") == "cancel"

    def _wait_unless_cancelled(self, wait_s: float) -> bool:
        if not self._control.pending():
            select.select([self._control], [], [], wait_s)
        return not self._cancelled()

    def _take_back(self, message: Message) -> Message:
        with self._plug(message) as plug:
            source.take_back(self._need_guest(), source.SourceHooks(uncut=plug.open_and_announce))
        return {"event": "running"}

    def _receive(self, message: Message) -> Message:
        spec = MigrationSpec.from_json(message["spec"])
        with (
            self._plug(message) as plug,
            destination.Destination(
                spec, self._enter_vm, acceptor=AgentAcceptor(spec), ledger=_ledger(message)
            ) as prepared,
        ):
            if message["nic_pid"] is not None:
                prepared.guest.attach_nic(message["nic_pid"])
            prepared.guest.throttle(message["sleep_ns_per_ms"])
            self._say({"event": "listening", **self._places(prepared.guest)})
            hooks = destination.DestinationHooks(
                hold=partial(self._hold, prepared), open=partial(self._resume, plug, spec)
            )
            arrival = prepared.receive(hooks)
            self._guest = arrival.guest
            self._say({"event": "arrived", "memory_fd": arrival.guest.memory.fd})
            swap_bitmap.settle(arrival.guest.memory)
            if arrival.trouble:
                self._control.send({"event": "trouble", "message": arrival.trouble})
            plug.announce_again()
        return {"event": "announced"}

    def _resume(self, plug: Plug, spec: MigrationSpec) -> None:
        """The guest runs here; the supervisor has to know before all of its pages are there."""
        if spec.may_resume_early:
            self._say({"event": "resumed"})
        plug.open_and_announce()

    def _hold(self, prepared: destination.Destination) -> None:
        """Wait, with both guests at rest, until the memories have been compared."""
        self._say({"event": "loaded", "memory_fd": prepared.guest.memory.fd})
        while (message := self._control.receive()) is None or message["command"] != "go":
            pass


def _ledger(message: Message) -> Ledger | None:
    """What this host's CPU is charged to, if it has a ledger."""
    return Ledger.join(Path(message["ledger"])) if message["ledger"] else None
