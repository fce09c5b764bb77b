"""Two network namespaces joined by a veth, and processes in them, for benchmarks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import traceback
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MTU = 9000
A, B = "10.99.0.1", "10.99.0.2"  # of the first NIC, eth0; `addresses` has the others
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Pair:
    """The names of two namespaces; addresses `A` and `B` are in the first and second."""

    a: str
    b: str

    def enter(self, address: str) -> None:
        """Move the calling process into the namespace of an address."""
        name = self.a if address == A else self.b
        with Path(f"/run/netns/{name}").open() as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"enter {name}")

    def command(self, address: str, *words: str) -> list[str]:
        """The words of a command that runs in the namespace of an address."""
        return ["ip", "netns", "exec", self.a if address == A else self.b, *words]


def run(*words: str) -> str:
    """Run a command; its failure is an error with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def addresses(nic: int) -> tuple[str, str]:
    """Those of the ends of a NIC, counted from 0."""
    return f"10.99.{nic}.1", f"10.99.{nic}.2"


@contextmanager
def pair(rate_bps: int | None = None, nics: int = 1) -> Iterator[Pair]:
    """A private pair with MTU 9000; both ends of each NIC shaped by HTB if a rate is given."""
    names = Pair(f"tb-bench-{os.getpid()}-a", f"tb-bench-{os.getpid()}-b")
    with ExitStack() as undo:
        for name in (names.a, names.b):
            run("ip", "netns", "add", name)
            undo.callback(run, "ip", "netns", "del", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for nic in range(nics):
            _add_nic(names, nic, rate_bps)
        yield names


def _add_nic(names: Pair, nic: int, rate_bps: int | None) -> None:
    device = f"eth{nic}"
    run(
        *("ip", "-n", names.a, "link", "add", device, "mtu", str(MTU), "type", "veth"),
        *("peer", "name", device, "mtu", str(MTU), "netns", names.b),
    )
    for address, name in zip(addresses(nic), (names.a, names.b), strict=True):
        run("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
        run("ip", "-n", name, "link", "set", device, "up")
        # /sys shows the devices of the namespace that mounted it: ip netns exec does so.
        script = (
            # One CPU handles what each end receives, or veth reorders (kernel notes).
            f"echo 1 > /sys/class/net/{device}/queues/rx-0/rps_cpus;"
            "echo 4096 131072 134217728 > /proc/sys/net/ipv4/tcp_rmem;"
            "echo 4096 16384 134217728 > /proc/sys/net/ipv4/tcp_wmem"
        )
        run("ip", "netns", "exec", name, "sh", "-ec", script)
        if rate_bps is not None:
            _shape(name, device, rate_bps)


def _shape(netns: str, device: str, rate_bps: int) -> None:
    tc = ("tc", "-n", netns)
    burst_bytes = max(65536, min(262144, rate_bps // 8 // 4000))
    run(*tc, *["qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "1"])
    run(
        *tc, *["class", "add", "dev", device, "parent", "1:", "classid", "1:1", "htb"],
        *("rate", f"{rate_bps}bit", "ceil", f"{rate_bps}bit", "quantum", "65536"),
        *("burst", str(burst_bytes), "cburst", str(burst_bytes)),
    )  # fmt: skip


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """A forked process that does the work and ends; on the way out it is waited for.

    A work that failed is an error, unless the caller is already failing: then it is killed.
    """
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _work(work)
    try:
        yield pid
    except BaseException:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise RuntimeError(f"the other end failed with status {status}")


def _work(work: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
