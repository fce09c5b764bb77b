"""A guest with a NIC process in one namespace, and a client's namespace beside it."""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import socket
import subprocess
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError
from testbed.guest.machine import Guest
from testbed.guest.nic import process
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Echo, Media, Ping, Web, to_json
from testbed.kernel import netns, sysctl
from testbed.measure import ping
from testbed.measure.endpoint import Endpoint
from testbed.measure.ping import PingTest
from testbed.migration.destination import Destination
from testbed.migration.source import migrate

if TYPE_CHECKING:
    from contextlib import ExitStack

MIB = 1 << 20
MS = 10**6
WORKLOADS = (Web(file_bytes=3 * MIB + 7), Media(rate_bps=4_000_000), Echo(), Ping())
SPEC = GuestSpec(name="vm", memory_bytes=4 * MIB, vcpus=2, workloads=WORKLOADS, seed=7)


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


class Child:
    """A forked process that lives for one function."""

    def __init__(self, main, kind=socket.SOCK_STREAM):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.pid = os.fork()
        if not self.pid:
            try:
                self.socket.close()
                main(theirs)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        theirs.close()
        self.socket.settimeout(20)
        self._ended = False

    def end(self):
        """Once, or more often."""
        self.socket.close()
        if not self._ended:
            self._ended = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class Vmx(Child):
    """Holds a guest; `call` has one of its methods called, and gives what that returns.

    One that arrives by a migration waits in `netns_name` for it.
    """

    def __init__(self, spec=SPEC, *, masked=False, netns_name=None, arrives=None):
        def main(control):
            if netns_name:
                netns.enter(netns_name)
            if arrives:
                with Destination(arrives) as prepared:
                    control.send(pickle.dumps(prepared.guest.nic_line()))
                    assert control.recv(100) == b"attached"
                    prepared.guest.attach_nic()
                    made = prepared.receive().guest
            else:
                made = Guest.create_masked(spec) if masked else Guest.power_on(spec)
                control.send(pickle.dumps(made.nic_line()))
            with made as guest:
                while asked := control.recv(1 << 16):
                    name, arguments = pickle.loads(asked)
                    try:
                        method = getattr(guest, name, None) or partial(migrate, guest)
                        result = method(*arguments)
                    except Exception as error:
                        result = error
                    control.send(pickle.dumps(result))

        super().__init__(main, socket.SOCK_SEQPACKET)
        self.line = pickle.loads(self.socket.recv(1 << 16))

    def call(self, name, *arguments):
        self.socket.send(pickle.dumps((name, arguments)))
        result = pickle.loads(self.socket.recv(1 << 20))
        if isinstance(result, Exception):
            raise result
        return result

    def copy_memory_to(self, other):
        """All of it, as a migration has done when the guest is resumed there."""
        one, another = (Path(f"/proc/{vmx.pid}/fd/{vmx.line['memory']}") for vmx in (self, other))
        with another.open("r+b") as destination:
            destination.write(one.read_bytes())


class Nic(Child):
    """The NIC process of a VM."""

    def __init__(self, vm_netns):
        def main(control):
            netns.enter(vm_netns)
            process.run(control, vm="vm", read_sysctl=sysctl.read, write_sysctl=sysctl.write)

        super().__init__(main)
        self._lines = self.socket.makefile("rb")

    def ask(self, command, **fields):
        line = json.dumps({"command": command, "ask": 1, **fields})
        self.socket.sendall(line.encode() + b"\n")
        return json.loads(self._lines.readline())

    def serve(self, workloads):
        answer = self.ask("services", workloads=[to_json(one) for one in workloads])
        assert "error" not in answer, answer
        return answer

    def attach(self, vmx, vcpus=SPEC.vcpus, account=None):
        line = vmx.line | {"account": account}
        answer = self.ask("attach", pid=vmx.pid, line=line, vcpus=vcpus)
        assert "error" not in answer, answer
        vmx.call("attach_nic", self.pid)

    def guests_mapped(self):
        """How many guests' memory it holds on to."""
        return Path(f"/proc/{self.pid}/maps").read_text().count("/memfd:guest-")

    def end(self):
        """It ends by itself, and leaves the namespace as it found it."""
        self._lines.close()
        self.socket.close()
        pidfd = os.pidfd_open(self.pid)
        ended = select.select([pidfd], [], [], 20)[0]
        os.close(pidfd)
        super().end()
        assert ended


@dataclass(frozen=True, slots=True)
class Wire:
    """The VM's namespace and the client's, joined by a veth."""

    vm: str
    client: str

    def ends(self, version=4):
        addresses = ("10.98.1.1", "10.98.1.2") if version == 4 else ("fd98::1", "fd98::2")
        return tuple(
            Endpoint(f"/run/netns/{name}", address)
            for name, address in zip((self.client, self.vm), addresses, strict=True)
        )


def wire(undo: ExitStack) -> Wire:
    names = f"tb-nic-{os.getpid()}-c", f"tb-nic-{os.getpid()}-v"
    for name in names:
        run("ip", "netns", "add", name)
        undo.callback(run, "ip", "netns", "del", name)
    far = ["type", "veth", "peer", "name", "eth0", "netns", names[1]]
    run("ip", "-n", names[0], "link", "add", "eth0", *far)
    for number, name in enumerate(names, 1):
        run("ip", "-n", name, "address", "add", f"10.98.1.{number}/24", "dev", "eth0")
        run("ip", "-n", name, "address", "add", f"fd98::{number}/64", "dev", "eth0", "nodad")
        run("ip", "-n", name, "link", "set", "eth0", "up")
    made = Wire(names[1], names[0])
    deadline = time.monotonic() + 20
    while True:  # IPv6 begins when the kernel's link watch has seen the carrier
        try:
            ping.measure(*made.ends(6), PingTest(count=1, timeout_ns=1500 * MS))
        except MeasurementError:
            assert time.monotonic() < deadline
        else:
            return made
