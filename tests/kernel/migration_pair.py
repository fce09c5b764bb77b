"""Two namespaces with a wire, a VMX in each, and a guest that migrates between them."""

from __future__ import annotations

import ctypes
import os
import pickle
import secrets
import select
import signal
import socket
import subprocess
import time
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from testbed.guest.machine import Guest
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Writer
from testbed.migration.destination import Destination, DestinationHooks
from testbed.migration.phase import MigrationFailed, MigrationUncertain
from testbed.migration.source import SourceHooks, migrate, take_back
from testbed.migration.specification import MigrationSpec

MIB = 1 << 20
A, B = "10.99.1.1", "10.99.1.2"
A6, B6 = "fd99::1", "fd99::2"


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


def enter(name):
    with Path(f"/run/netns/{name}").open() as file:
        assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0


class Vmx:
    """A process that does the work in a namespace and is sent for and told about by pipes."""

    def __init__(self, netns, work):
        """`work(tell, told)`: what it tells and what it is told are plain objects."""
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            mine.close()
            try:
                enter(netns)
                its.send(pickle.dumps(("end", work(lambda x: its.send(pickle.dumps(x)), its))))
            except BaseException as error:
                traceback.print_exc()
                its.send(pickle.dumps(("error", type(error).__name__, str(error))))
            finally:
                os._exit(0)
        its.close()
        self.socket = mine

    def told(self, seconds=20):
        assert select.select([self.socket], [], [], seconds)[0], "nothing was told"
        return pickle.loads(self.socket.recv(1 << 20))

    def go(self):
        self.socket.send(b"go")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def close(self):
        self.kill()
        os.waitpid(self.pid, 0)
        self.socket.close()


@contextmanager
def joined():
    """The names of both namespaces."""
    names = f"tb-mig-{os.getpid()}-a", f"tb-mig-{os.getpid()}-b"
    with ExitStack() as undo:
        for name in names:
            run("ip", "netns", "add", name)
            undo.callback(run, "ip", "netns", "del", name)
        far = ["type", "veth", "peer", "name", "eth0", "mtu", "9000", "netns", names[1]]
        run("ip", "-n", names[0], "link", "add", "eth0", "mtu", "9000", *far)
        for name, address, v6 in zip(names, (A, B), (A6, B6), strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", name, "address", "add", f"{v6}/64", "dev", "eth0", "nodad")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        yield names


@contextmanager
def starting(namespaces):
    """Start a VMX at one side; all end together."""
    with ExitStack() as undo:

        def at(side, work):
            vmx = Vmx(namespaces[side], work)
            undo.callback(vmx.close)
            return vmx

        yield at


def specification(dirty_rate=10 * 10**6, **changes):
    """Of a guest that a busy machine is faster than, unless told otherwise."""
    guest = GuestSpec(
        name="vm",
        memory_bytes=64 * MIB,
        vcpus=2,
        workloads=(Writer("uniform", dirty_rate, 16 * MIB),),
        seed=11,
    )
    fields = {
        "migration_id": time.time_ns() // 1000,
        "secret": secrets.token_bytes(32),
        "guest": changes.pop("guest", guest),
        "source_address": A,
        "destination_address": B,
        "switchover_goal_ns": 20_000_000,
        "timeout_ns": 5_000_000_000,
    }
    return MigrationSpec(**{**fields, **changes})


def advances(guest):
    before = guest.counters()["steps"].copy()
    deadline = time.monotonic() + 5
    while not (guest.counters()["steps"] > before).all():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def source(spec, tracking=None, during=None, ledger=None, throttle=None):
    """A VMX that powers on, is told to go, migrates, and tells how it went."""

    def work(tell, told):
        cuts = []
        hooks = SourceHooks(
            cut=lambda: cuts.append("cut"),
            uncut=lambda: cuts.append("uncut"),
            progress=lambda _: during and tell("copying"),
        )
        with Guest.power_on(spec.guest, tracking=tracking) as guest:
            guest.throttle(throttle)
            tell((guest.pids, guest.memory.fd))
            told.recv(10)
            try:
                report = migrate(guest, spec, hooks, ledger=ledger)
            except MigrationUncertain as error:
                assert not guest.running
                tell((type(error), str(error)))
                told.recv(10)
                take_back(guest, hooks)
                return guest.running, advances(guest), cuts
            except MigrationFailed as error:
                return type(error), error.phase, str(error), guest.running, advances(guest), cuts
            tell((report, guest.counters().tobytes(), cuts))
            told.recv(10)
        return "gone"

    return work


def destination(spec, tracking=None, ledger=None):
    """A VMX that waits for a guest, says when it holds it, and runs it until it is told."""

    def work(tell, told):
        def hold():
            tell("held")
            told.recv(10)

        opened = []
        with Destination(spec, tracking=tracking, ledger=ledger) as there:
            tell((there.guest.pids, there.guest.memory.fd))
            hooks = DestinationHooks(hold=hold, open=lambda: opened.append("open"))
            with there.receive(hooks).guest as guest:
                assert advances(guest)
                tell((guest.counters().tobytes(), opened))
                told.recv(10)
        return "gone"

    return work


def memory_of(pid, fd):
    """A guest's memory, read by a process that has no part in it."""
    return np.fromfile(f"/proc/{pid}/fd/{fd}", np.uint64).reshape(-1, 512)


SLOW_BPS, SLOW_BURST_BYTES = 200 * 10**6, 128 * 1024


def slow(namespaces):
    shaping = ["tbf", "rate", f"{SLOW_BPS}bit", "burst", str(SLOW_BURST_BYTES), "latency", "50ms"]
    run("tc", "-n", namespaces[0], "qdisc", "add", "dev", "eth0", "root", *shaping)
