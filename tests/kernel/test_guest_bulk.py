"""A guest's traffic in bulk, and what its host's CPU lets through."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Bulk, Echo, Sink
from testbed.ledger import BURST_NS, Ledger
from testbed.measure import session
from testbed.measure.endpoint import socket_in
from testbed.measure.tcp_session import SessionTest
from tests.kernel.nic_wires import MIB, MS, Nic, Vmx, run, wire

pytestmark = [pytest.mark.root, pytest.mark.needs_program("ip"), pytest.mark.needs_program("tc")]
PORT = 5009
CYCLES_PER_BYTE = 8
MHZ = 32.0  # 4 MB/s, which any machine can do
CAP = MHZ * 1e6 / CYCLES_PER_BYTE
AT_ONCE = 512 * 1024  # what may be in buffers between the sender and who counts


@pytest.fixture
def undo():
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def wires():
    with ExitStack() as stack:
        yield wire(stack)


@pytest.fixture
def bulk(undo, wires):
    """Start a VM that sends to the client's namespace, at a host's account or none."""

    def start(account=None, rate_bps=0):
        workload = Bulk(wires.ends()[0].address, PORT, rate_bps)
        return powered_on(undo, wires.vm, (workload, Echo()), account)

    return start


def spec_of(workloads):
    return GuestSpec("vm", 4 * MIB, 1, workloads, seed=7)


def powered_on(undo, netns, workloads, account=None):
    nic = Nic(netns)
    undo.callback(nic.end)
    nic.serve(workloads)
    vmx = Vmx(spec_of(workloads))
    undo.callback(vmx.end)
    nic.attach(vmx, 1, account)
    return nic, vmx


def open_account(tmp_path, name="esx01", mhz=MHZ):
    path = tmp_path / name
    ledger = Ledger.open(path, 8, mhz)
    return ledger, {
        "path": str(path),
        "cycles_per_byte": CYCLES_PER_BYTE,
        "cycles_per_packet": 0,
    }


class Drain:
    """Whoever connects first in the client's namespace; counts what it is sent."""

    def __init__(self, undo, wires):
        self.received = 0
        listener = socket_in(f"/run/netns/{wires.client}", socket.AF_INET, socket.SOCK_STREAM, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", PORT))
        listener.listen()
        listener.settimeout(20)
        self._open = listener
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        undo.callback(self.close)

    def close(self):
        with suppress(OSError):
            self._open.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _read(self):
        with suppress(OSError):
            with self._open as listener:
                self._open, _ = listener.accept()
            with self._open as connection:
                while data := connection.recv(1 << 18):
                    self.received += len(data)

    def begin(self):
        """Wait until something has come."""
        deadline = time.monotonic() + 20
        while not self.received:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def rates(self, count=3, seconds=0.3):
        """Bytes a second, in several short times after another."""
        found = []
        for _ in range(count):
            before, begin = self.received, time.monotonic()
            time.sleep(seconds)
            found.append((self.received - before) / (time.monotonic() - begin))
        return found


def test_it_keeps_to_its_host_s_cycles(wires, undo, bulk, tmp_path):
    """Half the megahertz are half the throughput; a link ten times as wide changes nothing."""
    qdisc = ("tc", "-n", wires.vm, "qdisc")
    undo.callback(run, *qdisc, "del", "dev", "eth0", "root")
    link = ("dev", "eth0", "parent", "1:", "classid", "1:1", "htb", "rate")
    run(*qdisc, "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1")
    run("tc", "-n", wires.vm, "class", "add", *link, "100mbit")
    ledger, account = open_account(tmp_path)
    drain = Drain(undo, wires)
    bulk(account)
    drain.begin()
    begin, before, charged = time.monotonic_ns(), drain.received, ledger.used()["vm"]
    narrow = max(drain.rates())
    run("tc", "-n", wires.vm, "class", "change", *link, "1gbit")
    wide = max(drain.rates())
    took_s = (time.monotonic_ns() - begin + BURST_NS) / 1e9
    assert drain.received - before <= CAP * took_s + AT_ONCE
    used = ledger.used()["vm"] - charged
    assert used / CYCLES_PER_BYTE == pytest.approx(drain.received - before, abs=2 * AT_ONCE)
    Ledger.open(tmp_path / "esx01", 8, MHZ / 2)
    drain.rates(1)
    halved = max(drain.rates())
    assert 0.7 < wide / narrow < 1.4
    assert 1.5 < wide / halved < 2.7


def test_nothing_is_charged_without_an_account(wires, undo, bulk):
    drain = Drain(undo, wires)
    bulk()
    drain.begin()
    assert max(drain.rates(3, 0.1)) > 2 * CAP  # and it may be much more


def test_it_keeps_to_its_own_rate(wires, undo, bulk):
    drain = Drain(undo, wires)
    begin = time.monotonic()
    _, vmx = bulk(rate_bps=16_000_000)
    drain.begin()
    drain.rates(2)
    assert drain.received <= 2e6 * (time.monotonic() - begin + 0.01) + AT_ONCE
    assert drain.received >= 2e6 * 0.9 / 10
    came = drain.received  # before it is asked: more comes meanwhile
    counted = vmx.call("task_counters")[0, 0]
    assert counted["bytes"] >= came
    assert counted["operations"] > 1


def test_a_sink_takes_what_its_host_can_receive(wires, undo, tmp_path):
    """It is the receiver's host that has no more cycles; packets cost it as well."""
    ledger, account = open_account(tmp_path, "receiver")
    account |= {"cycles_per_byte": 4, "cycles_per_packet": 4 * 1448}
    _, sink = powered_on(undo, wires.client, (Sink(PORT),), account)
    _, bulk = powered_on(undo, wires.vm, (Bulk(wires.ends(6)[0].address, PORT),))
    deadline = time.monotonic() + 20
    while not (start := sink.call("task_counters")[0, 0]["bytes"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    begin = time.monotonic()
    time.sleep(1)
    came = sink.call("task_counters")[0, 0]["bytes"]
    took_s = time.monotonic() - begin + BURST_NS / 1e9
    assert CAP * took_s / 10 <= came - start <= CAP * took_s + AT_ONCE
    assert ledger.used()["vm"] >= 8 * came * 0.9
    assert bulk.call("task_counters")[0, 0]["bytes"] >= came


def test_the_host_that_it_runs_at_is_charged(wires, undo, bulk, tmp_path):
    here, account = open_account(tmp_path)
    there, other = open_account(tmp_path, "esx02", MHZ / 2)
    drain = Drain(undo, wires)
    nic, vmx = bulk(account)
    drain.begin()
    arrived = Vmx(spec_of((Bulk(wires.ends()[0].address, PORT), Echo())), masked=True)
    undo.callback(arrived.end)
    nic.attach(arrived, 1, other)
    vmx.call("suspend")
    used = here.used()["vm"]
    assert used > 0
    assert there.used()["vm"] == 0
    vmx.copy_memory_to(arrived)
    before, begin = drain.received, time.monotonic()
    arrived.call("resume")
    drain.rates(2)
    took_s = time.monotonic() - begin + BURST_NS / 1e9
    assert CAP * took_s / 20 <= drain.received - before <= CAP / 2 * took_s + AT_ONCE
    assert here.used()["vm"] == used
    assert there.used()["vm"] >= CAP * took_s / 20


def test_a_guest_that_waits_for_its_host_stops_at_once(wires, undo, bulk, tmp_path):
    """And its other workloads go on, as slowly as the host does."""
    _, account = open_account(tmp_path, mhz=8.0)
    drain = Drain(undo, wires)
    _, vmx = bulk(account)
    drain.begin()
    for _ in range(3):
        begin = time.monotonic()
        vmx.call("suspend")
        assert time.monotonic() - begin < 0.5
        vmx.call("resume")
        time.sleep(0.05)
    answered = session.echo(*wires.ends(), SessionTest(7, 1, 500 * MS, 5 * MS))
    assert answered.answered
    assert answered.wrong_bytes == 0


def test_it_dials_until_somebody_answers_and_again(wires, undo, bulk):
    _, vmx = bulk()
    time.sleep(0.2)  # it is refused
    assert vmx.call("task_counters")[0, 0]["bytes"] == 0
    for _ in range(2):
        with ExitStack() as one:
            Drain(one, wires).begin()
