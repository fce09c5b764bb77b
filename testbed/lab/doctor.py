"""What this machine can do for a lab: the kernel's capabilities and the guest's tracking."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from testbed.errors import KernelError
from testbed.guest import tracking
from testbed.guest.large_pages import map_large
from testbed.guest.specification import LARGE_PAGE_BYTES
from testbed.kernel.probe import Capability, probe


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found; `mechanisms` maps a feature to what it uses here.

    `missing` names what no lab can do without and this machine lacks.
    """

    kernel: str
    mechanisms: dict[str, str]
    capabilities: tuple[Capability, ...]
    missing: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Probe this machine; what needs root and can't be tried is said to be so."""
    found = {has.name: has for has in probe()}
    return Diagnosis(
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        mechanisms={
            "namespaces, wires, switches": _mechanism(found, "network namespaces", "veth, bridge"),
            "rates": _mechanism(found, "htb", "HTB, read back"),
            "dirty tracking": _tracking(),
            "large pages": _large_pages(),
            "iperf": _mechanism(found, "iperf3", "the iperf3 program"),
            "latency, jitter": _latency(found),
            "VLAN, security, marking, teaming, loss": _mechanism(
                found, "eBPF", "IOChains: eBPF on clsact at each port"
            ),
            "NIOC, QoS, queues, traffic shaping": _mechanism(found, "htb", "HTB classes"),
        },
        capabilities=tuple(found.values()),
        missing=tuple(name for name in INDISPENSABLE if found[name].present is False),
    )


INDISPENSABLE = ("network namespaces", "veth", "bridge", "htb", "clsact", "eBPF")


def _mechanism(found: dict[str, Capability], name: str, mechanism: str) -> str:
    has = found.get(name)
    if has is None or has.present:
        return mechanism
    return "needs root to find out" if has.present is None else f"none: {has.detail}"


def _latency(found: dict[str, Capability]) -> str:
    """The same choice as `planning.plan_here` makes."""
    if found["netem"].present:
        return "netem"
    return _mechanism(found, "nfnetlink_queue", "delay lines on NFQUEUE, a process for each link")


def _tracking() -> str:
    """Which dirty tracking a guest will use, tried for real."""
    try:
        name, reason = tracking.probe()
    except KernelError as error:
        return f"none: {error.cause}"
    note = "" if os.geteuid() == 0 else " (as root it may be another)"
    return f"{name}: {reason}{note}"


def _large_pages() -> str:
    """Which pages of 2 MiB a guest gets, tried for real."""
    try:
        found = map_large("doctor", LARGE_PAGE_BYTES)
    except KernelError as error:
        return f"none: {error.cause}; {error.remedy}"
    os.close(found.fd)
    if found.kind == "hugetlb":
        return "huge pages (hugetlb), traced at 2 MiB"
    return "collapsed ones (MADV_COLLAPSE), traced at 4 KiB; vm.nr_overcommit_hugepages gives huge"
