"""Building a lab's kernel objects, beside `ip -batch` and `tc -batch` building the same ones.

Both make, for each host: a namespace with an uplink to one physical switch (HTB at both
ends), a virtual switch, a vmkernel adapter (address, rule, route) and a port for a VM, whose
namespace has a NIC (a bridge with MAC and address) wired to it. Ours also reads everything
back and pins what each wire receives to one CPU, which the peer does not.

One batch file of the peer makes all namespaces and creates all links in place; then a batch
of tc (while the links are still down, as ours) and one of ip for each namespace, one after
another; a namespace is entered by `-n` or, where that is faster, by `nsenter`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.kernel.builder import build
from testbed.kernel.netns import names
from testbed.kernel.undo import remove
from testbed.plan.policies import Shape
from testbed.plan.steps import (
    Address,
    Bridge,
    End,
    KernelStep,
    Netns,
    Route,
    Rule,
    Veth,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SIZES = (2, 16, 64, 128)
PAIRS = 5
GONE_BAR_MS = 1000.0
_PREFIX = "tb-bench-build"
_RATE_BPS, _HTB_RATE, _BURST_BYTES = 10 * 10**9, 1_247_000_000, 262144
_SETTLE_S = 30.0
_SAME_KERNEL_WORK = 1.2  # the same objects die: only noise may differ
_OTHERS = 8  # namespaces that other programs may make meanwhile


def steps_of(hosts: int) -> tuple[KernelStep, ...]:
    """The steps of a lab of so many hosts, with a VM each."""
    switch = f"{_PREFIX}-tor"
    made: list[KernelStep] = [Netns(switch, "tor", "switch")]
    for n in range(hosts):
        made.append(Netns(f"{_PREFIX}-esx{n}", f"esx{n}", "host"))
        made.append(Netns(f"{_PREFIX}-vm{n}", f"vm{n}", "vm"))
    made.append(Bridge(switch, "tor", 9000, "testbed bench tor"))
    for n in range(hosts):
        made += _host(n, switch)
    return tuple(made)


def _host(n: int, switch: str) -> Iterator[KernelStep]:
    host, vm = f"{_PREFIX}-esx{n}", f"{_PREFIX}-vm{n}"
    address = f"10.0.{n // 250}.{n % 250 + 1}"
    tag = f"testbed bench {n}"
    yield Bridge(host, "vSwitch0", 9000, tag)
    yield Bridge(vm, "eth0", 1500, tag, f"00:50:56:00:{n // 256:02x}:{n % 256:02x}")
    uplink = End(host, "vmnic0", 9000, tag, master="vSwitch0")
    yield Veth(uplink, End(switch, f"esx{n}-vmnic0", 9000, tag, master="tor"))
    vmk_port = End(host, "vmk1-port", 9000, tag, master="vSwitch0")
    yield Veth(End(host, "vmk1", 9000, tag), vmk_port)
    wire = End(vm, "wire", 1500, tag, master="eth0")
    yield Veth(wire, End(host, "vm-port", 1500, tag, master="vSwitch0"))
    yield Address(host, "vmk1", f"{address}/16", "")
    yield Address(vm, "eth0", f"10.1.{n // 250}.{n % 250 + 1}/16", "")
    yield Route(host, "10.0.0.0/16", "vmk1", 101, "", 4, None, address)
    yield Rule(host, address, 101, 4)
    for netns, dev in ((host, "vmnic0"), (switch, f"esx{n}-vmnic0")):
        yield Shape(netns, dev, _RATE_BPS, 9000, _HTB_RATE, _BURST_BYTES, "")


class Peer:
    """The same steps as batch files and a shell script that runs them."""

    def __init__(self, steps: Sequence[KernelStep], directory: Path) -> None:
        self._first: list[str] = []
        self._ip: dict[str, list[str]] = {}
        self._tc: dict[str, list[str]] = {}
        for step in steps:
            self._add(step)
        (directory / "first").write_text("\n".join(self._first) + "\n")
        for netns, lines in self._ip.items():
            (directory / f"{netns}.ip").write_text("\n".join(lines) + "\n")
        for netns, lines in self._tc.items():
            (directory / f"{netns}.tc").write_text("\n".join(lines) + "\n")
        begin = [f"set -e; cd {directory}; ip -batch first"]
        self.scripts = {"-n": begin + self._by_option(), "nsenter": begin + self._by_nsenter()}
        down = [f"netns delete {netns}" for netns in self._ip]
        (directory / "down").write_text("\n".join(down) + "\n")
        self._directory = directory

    def _by_option(self) -> list[str]:
        script = [f"tc -n {netns} -batch {netns}.tc" for netns in self._tc]
        return script + [f"ip -n {netns} -batch {netns}.ip" for netns in self._ip]

    def _by_nsenter(self) -> list[str]:
        script = []
        for netns in self._ip:
            last = f"ip -batch {netns}.ip"
            both = f"sh -ec 'tc -batch {netns}.tc; exec {last}'"
            command = both if netns in self._tc else last
            script.append(f"nsenter --net=/run/netns/{netns} {command}")
        return script

    def _add(self, step: KernelStep) -> None:
        match step:
            case Netns(name=name):
                self._first.append(f"netns add {name}")
                self._ip[name] = ["link set dev lo up"]
            case Bridge():
                mac, ageing = (f"address {step.mac}", "ageing_time 0") if step.mac else ("", "")
                self._first.append(
                    f"link add name {step.name} netns {step.netns} {mac} "
                    f"type bridge stp_state 0 mcast_snooping 0 forward_delay 0 {ageing}"
                )
                self._ip[step.netns].append(
                    f"link set dev {step.name} mtu {step.mtu} alias '{step.alias}' up"
                )
            case Veth(a=a, b=b):
                one = "numtxqueues 1 numrxqueues 1"
                self._first.append(
                    f"link add name {a.name} mtu {a.mtu} {one} netns {a.netns} type veth "
                    f"peer name {b.name} mtu {b.mtu} {one} netns {b.netns}"
                )
                for end in (a, b):
                    master = f"master {end.master}" if end.master else ""
                    self._ip[end.netns].append(
                        f"link set dev {end.name} {master} alias '{end.alias}' up"
                    )
            case Address():
                self._ip[step.netns].append(f"address add {step.address} dev {step.dev}")
            case Route():
                self._ip[step.netns].append(
                    f"route add {step.destination} dev {step.dev} table {step.table} "
                    f"src {step.source}"
                )
            case Rule():
                self._ip[step.netns].append(f"rule add from {step.source} table {step.table}")
            case Shape():
                rate, burst = f"{step.htb_rate_bytes_per_s * 8}bit", step.burst_bytes
                limits = f"rate {rate} burst {burst} cburst {burst} quantum 65536"
                self._tc.setdefault(step.netns, []).extend(
                    (
                        f"qdisc add dev {step.dev} root handle 1: htb default 1",
                        f"class add dev {step.dev} parent 1: classid 1:1 htb {limits}",
                    )
                )

    def build(self, way: str) -> None:
        """Build by one of `scripts`."""
        script = self._directory / "script"
        script.write_text("\n".join(self.scripts[way]) + "\n")
        done = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
        if done.returncode or done.stderr:
            raise RuntimeError(f"the peer failed: {done.stderr.strip()}")

    def down(self) -> None:
        """Take it down."""
        command = ["ip", "-batch", str(self._directory / "down")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or done.stderr:
            raise RuntimeError(f"the peer failed: {done.stderr.strip()}")


def alive() -> int:
    """The network namespaces that the kernel has: one is freed only when all inside is.

    The kernel frees the last ones only together with the next, so one more is made and
    removed; and the allocator counts what its caches keep as in use, so they are emptied.
    """
    one = Netns(f"{_PREFIX}-one", "one", "host")
    build((one,))
    remove((one,))
    cache = Path("/sys/kernel/slab/net_namespace")
    (cache / "shrink").write_text("1")
    return int((cache / "objects").read_text().split()[0])


@contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    start = time.perf_counter_ns()
    yield
    into.append((time.perf_counter_ns() - start) / 1e6)


def _await_gone(before: int) -> None:
    deadline = time.monotonic() + _SETTLE_S
    while any(name.startswith(_PREFIX) for name in names()) or alive() > before + _OTHERS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{alive() - before} namespaces are left after {_SETTLE_S} s")
        time.sleep(0.005)


@dataclass
class _Times:
    """Milliseconds, one of each a run."""

    build: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)
    freed: list[float] = field(default_factory=list)

    def take(self, build: Callable[[], object], down: Callable[[], object]) -> None:
        """Build and take down once; `freed` counts from the start of the taking down."""
        before = min(alive() for _ in range(3))
        try:
            with _timed(self.build):
                build()
        finally:
            with _timed(self.freed):
                with _timed(self.down):
                    down()
                _await_gone(before)


def _measure(hosts: int, pairs: int) -> tuple[_Times, _Times]:
    steps = steps_of(hosts)
    ours, peers = _Times(), _Times()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as undo:
        undo.callback(remove, steps)  # of what a failure leaves
        peer = Peer(steps, Path(directory))
        trials = _Times()
        for way in peer.scripts:
            trials.take(partial(peer.build, way), peer.down)
        way = list(peer.scripts)[trials.build.index(min(trials.build))]
        for turn in range(2 * pairs):
            if turn % 2 == (turn // 2) % 2:  # ABBA: neither always goes first
                ours.take(partial(build, steps), partial(remove, steps))
            else:
                peers.take(partial(peer.build, way), peer.down)
    return ours, peers


def _row(
    name: str, ours: list[float], peers: list[float], peer: str, bar: float | None
) -> dict[str, Any]:
    ratio = statistics.median(a / b for a, b in zip(ours, peers, strict=True))
    return {
        "name": name,
        "value": round(statistics.median(ours), 1),
        "unit": "ms",
        "peer": peer,
        "peer_value": round(statistics.median(peers), 1),
        "ratio": round(ratio, 3),
        "bar": None if bar is None else f"<= {bar:g}",
        "met": None if bar is None else ratio <= bar,
        "runs": len(ours),
    }


def run(runs: int | None = None) -> list[dict[str, Any]]:
    """Rows for `scripts/bench`: build times and, for the largest lab, the time to be gone."""
    pairs = runs or PAIRS
    rows: list[dict[str, Any]] = []
    build(steps_of(1))  # once for the imports and the encodings: a supervisor has them, too
    remove(steps_of(1))
    for hosts in SIZES:
        ours, peers = _measure(hosts, pairs)
        rows.append(
            _row(f"build {hosts} hosts", ours.build, peers.build, "ip -batch and tc -batch", 1.0)
        )
    gone = statistics.median(ours.down)
    rows.append(
        _row(f"{hosts} hosts gone: no name and no way in", ours.down, peers.down, "ip -batch", None)
        | {"bar": f"<= {GONE_BAR_MS:g} ms", "met": gone <= GONE_BAR_MS}
    )
    rows.append(
        _row(
            f"{hosts} hosts freed: the kernel's own work afterwards, a grace period per bridge",
            ours.freed,
            peers.freed,
            "ip -batch, netns delete",
            _SAME_KERNEL_WORK,
        )
    )
    return rows


if __name__ == "__main__":
    for row in run():
        sys.stdout.write(f"{row}\n")
