"""A lab in which migrations are disturbed: phases waited for, faults, and what they leave."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from testbed import topology as topologies
from testbed.guest.specification import GuestSpec
from testbed.kernel.port import PortSwitch
from testbed.lab import vmx
from testbed.lab.client import request
from testbed.lab.down import down
from testbed.lab.journal import Journal
from testbed.lab.lines import LineSocket
from testbed.lab.up import up
from testbed.plan.steps import PowerOn
from tests.end_to_end.failure_scene import process, scene
from tests.end_to_end.replayed import Replayed
from tests.end_to_end.wires import MS, Net

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = """\
name: {name}
switches: {{"tor-[a,b]": {{mtu: 9000}}}}
links: [{{between: [tor-a, tor-b], rate: 100Mbit, rtt: 1ms}}]
datastores: {{shared01: {{hosts: "esx[01-03]"}}}}
distributed_switches:
  DSwitch: {{mtu: 9000, uplinks: [uplink1], portgroups: {{vMotion: {{}}, VM-Network: {{}}}}}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 4}}
    memory: 64MiB
    nics: {{vmnic0: {{switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks:
      vmk1: {{portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
  esx03:
    cpu: {{cores: 4}}
    memory: 8MiB
    nics: {{vmnic0: {{switch: tor-b, rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks: {{vmk1: {{portgroup: vMotion, ip: 192.168.20.13/24, services: [vmotion], mtu: 9000}}}}
vms:
  db01:
    host: esx01
    memory: 8MiB
    vcpus: 2
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: 192.168.10.50/24}}]
    workload: {{kind: uniform, dirty_rate: 6MB/s, working_set: 50%}}
  client:
    host: esx03
    memory: 4MiB
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: 192.168.10.51/24}}]
"""
ADDRESSES = {"esx01": "192.168.20.11", "esx02": "192.168.20.12"}
EARLY = {"quick_resume": "on", "remaining_pages": "after resume"}
PROFILES = {
    "patient": {"timeout": "8s"},
    "impatient": {"timeout": "2s"},
    "near": {"rtt_limit": "150ms"},
    "patient, early": {"timeout": "8s", **EARLY},
    "impatient, early": {"timeout": "2s", **EARLY},
}
DEADLINE_S = 30.0


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not in time"
        time.sleep(0.003)


class Migration:
    """One that is asked for, and whose events are read in a thread of its own."""

    def __init__(self, lane: Lane, to: str, options: dict[str, Any], *, trace: bool) -> None:
        self.lane, self.to = lane, to
        self.source = lane.host()
        self.phases: set[str] = set()
        self.last: dict[str, Any] = {}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(lane.net.directory.socket))
        LineSocket(self._socket).send(
            {
                "command": "migrate", "vm": "db01", "to": to, "verify": False,
                "switchover_goal_ns": 2000 * MS, "command_line": "test", "options": options,
                "trace": {"stop": "stop-based", "granularity": "4KiB"} if trace else None,
            }
        )  # fmt: skip
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        lines = LineSocket(self._socket)
        while (said := lines.receive(60)) is not None:
            if "event" not in said:
                self.last = said
                return
            self.phases.add(said.get("phase", ""))

    def cancel(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def ended(self) -> dict[str, Any]:
        """The last word: `{"result"}` or `{"error"}`."""
        self._thread.join(90)
        assert not self._thread.is_alive(), "the migration has not ended"
        self._socket.close()
        return self.last


class Lane:
    """A lab of its own, in which one migration after another is disturbed. A context manager."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.topology = topologies.loads(TEXT.format(name=name), str(directory / f"{name}.yaml"))
        self.net = Net(name)
        self._directory = directory
        self._undo = ExitStack()
        self._scenes: dict[str, dict[str, Any]] = {}
        self._replayed: Replayed | None = None
        self._moves: list[Migration] = []
        for profile, values in PROFILES.items():
            text = "".join(f"{key}: {{value: {v}, assumed: a test}}\n" for key, v in values.items())
            (directory / f"{profile}.yaml").write_text(f"inherits: unlimited\n{text}")

    def __enter__(self) -> Lane:
        with ExitStack() as undo:
            undo.callback(self._forget)
            undo.callback(down, self.name)
            up(self.topology)
            for to in ("esx02", "esx01"):  # both hosts' agents run from here on
                move = self.migrate(to)
                assert move.ended()["result"]["outcome"] == "completed"
                self.rest()
                self._scenes[to] = scene(self.net.directory)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _forget(self) -> None:
        if self._replayed is not None:
            self._replayed.close()
            self._replayed = None

    # -- what is asked of it ------------------------------------------------------------------

    def migrate(
        self, to: str | None = None, *, profile: str = "patient", trace: bool = False
    ) -> Migration:
        """To the other host, if none is named."""
        options = {"profile": str(self._directory / f"{profile}.yaml")}
        self._moves.append(Migration(self, to or self.other(self.host()), options, trace=trace))
        return self._moves[-1]

    def vm(self) -> dict[str, Any]:
        return request(self.net.directory, {"command": "vm", "vm": "db01"}, timeout_s=30)

    def host(self) -> str:
        """Where the guest is."""
        return str(self.vm()["host"])

    @staticmethod
    def other(host: str) -> str:
        return "esx02" if host == "esx01" else "esx01"

    def rest(self) -> dict[str, Any]:
        """Wait until no migration is under way; the guest then."""
        wait_until(
            lambda: (
                Journal.read(self.net.directory.journal).state == "up"
                and self.vm()["state"] != "migrating"
            ),
            "the migration is over",
        )
        return self.vm()

    def mend(self) -> None:
        """No migration, links as they are in the file, and a guest that runs."""
        while self._moves:
            self._moves.pop().ended()
        self.rest()
        self.net.link("tor-a", "tor-b", up=True)
        self.near()
        for host, tor in (("esx01", "tor-a"), ("esx02", "tor-b")):
            self.net.link(f"{host}/vmnic0", tor, up=True)
        if self.vm()["state"] == "failed":
            self._forget()
        up(self.topology)

    def see_to_agent(self) -> None:
        """Have the agent run of the host that the guest is not at: a migration there starts one."""
        while not process(self.name, to := self.other(self.rest()["host"]), f"agent-{to}"):
            self.migrate().ended()

    def near(self) -> None:
        """The link between the hosts as it is in the file."""
        self.net.link("tor-a", "tor-b", delay_ns=MS // 2, rate_bps=100_000_000)

    # -- what can be seen of it ---------------------------------------------------------------

    def require_intact(self) -> None:
        """The guest runs, nothing in its memory is wrong, and it goes on."""
        found = self.vm()
        assert found["state"] == "running"
        before = found["counters"]["pages_written"]
        wait_until(lambda: self.vm()["counters"]["pages_written"] > before, "the guest writes on")
        if self._replayed is None:
            (step,) = [
                one
                for one in Journal.read(self.net.directory.journal).plan.steps
                if isinstance(one, PowerOn) and one.vm == "db01"
            ]
            self._replayed = Replayed(GuestSpec.from_json(vmx.guest_fields(step, "")))
        different = self._replayed.different(found["vmx_pid"], found["counters"]["vcpu_pids"])
        assert different == 0, f"{different} pages are not what the guest wrote"

    def require_reachable(self) -> None:
        """The guest's port is open, and the network knows where.

        On a link that had been long, what was sent then comes before what is sent now.
        """
        wait_until(lambda: self.net.reaches("client/eth0", "db01/eth0"), "an echo", 10)

    def require_clean(self) -> None:
        """Nothing is where the guest isn't; where it has died, no process of it is anywhere."""
        found = self.vm()
        expected = self._scenes[found["host"]]
        if found["state"] == "failed":
            expected = {
                place: [one for one in things if one != "vmx-db01"]
                for place, things in expected.items()
            }
        deadline = time.monotonic() + DEADLINE_S
        while (now := scene(self.net.directory)) != expected:
            assert time.monotonic() < deadline, f"{now} and not {expected}"
            time.sleep(0.01)

    def port(self, host: str) -> PortSwitch:
        """The guest's port at a host."""
        return PortSwitch(f"tb.{self.name}.{host}", "db01-eth0")
