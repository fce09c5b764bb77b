"""The rules of a wire's namespace that send what its ports receive to queues."""

from __future__ import annotations

import socket
import subprocess

from testbed.errors import KernelError
from testbed.kernel import sysctl

TABLE = "raw"  # before connection tracking; PREROUTING: a sender's side would stall TCP
PROGRAMS = ("iptables", "ip6tables")
_SYSCTLS = (
    ("net/bridge/bridge-nf-call-iptables", "1"),
    ("net/bridge/bridge-nf-call-ip6tables", "1"),
    ("net/bridge/bridge-nf-filter-vlan-tagged", "1"),  # or tagged frames pass undelayed
    ("net/bridge/bridge-nf-call-arptables", "0"),
)
_DEADLINE_S = 20.0


def rules(ports: tuple[str, str]) -> list[str]:
    """The rules as iptables prints them: what port n receives goes to queue n."""
    return [
        f"-A PREROUTING -m physdev --physdev-in {port} -j NFQUEUE --queue-num {queue}"
        for queue, port in enumerate(ports)
    ]


def install(ports: tuple[str, str], where: str) -> None:
    """Send all IPv4 and IPv6 packets that the two ports receive to queues 0 and 1.

    In the namespace that the calling thread is in, which is the wire's alone: other rules of the
    table go. Until a queue is bound, what is sent to it is dropped.

    Raises:
        KernelError: a port, program or kernel feature is missing, or a setting reads back
            otherwise.
    """
    for port in ports:  # the rules would take any name, and let its frames pass undelayed
        try:
            socket.if_nametoindex(port)
        except OSError as error:
            raise KernelError("find", f"port {port} in {where}", str(error.strerror)) from error
    wanted = rules(ports)
    text = "\n".join([f"*{TABLE}", ":PREROUTING ACCEPT [0:0]", *wanted, "COMMIT", ""])
    for program in PROGRAMS:
        _run(where, f"{program}-restore", "-w", given=text)
        printed = _run(where, program, "-w", "-t", TABLE, "-S", "PREROUTING")
        found = [line.strip() for line in printed.splitlines() if line.startswith("-A")]
        if found != wanted:
            raise KernelError("set", f"{program} rules in {where}", f"they read back as {found}")
    # The rules come first: where br_netfilter is a module, they load it.
    for name, value in _SYSCTLS:
        sysctl.write(name, value, where)


def _run(where: str, *words: str, given: str = "") -> str:
    attempt, target = "run", f"{words[0]} in {where}"
    try:
        done = subprocess.run(
            words, input=given, capture_output=True, text=True, check=False, timeout=_DEADLINE_S
        )
    except FileNotFoundError as error:
        remedy = "sudo scripts/install, or install the package iptables"
        raise KernelError(attempt, target, "it is not installed", remedy) from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(attempt, target, f"it took over {_DEADLINE_S:g} s") from error
    if done.returncode != 0:
        raise KernelError(
            attempt, target, done.stderr.strip() or f"status {done.returncode}",
            "the kernel needs xt_NFQUEUE, xt_physdev and br_netfilter",
        )  # fmt: skip
    return done.stdout
