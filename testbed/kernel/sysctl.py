"""Files under /proc/sys and /sys, written and read back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import netns, syscalls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.plan.steps import End

_PROC_SYS = "/proc/sys/"


def canonical(value: str) -> str:
    """A value as it compares: fields parted by one blank (the kernel reports tabs)."""
    return " ".join(value.split())


def same_mask(a: str, b: str) -> bool:
    """Whether two CPU masks ("1", "00000000,00000001") name the same CPUs."""
    return int(a.replace(",", "") or "0", 16) == int(b.replace(",", "") or "0", 16)


def applicable(settings: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of a namespace's settings that this kernel has a file for.

    Only br_netfilter's may lack: without it a bridge passes nothing to iptables anyway.
    """
    return [
        (name, value)
        for name, value in settings
        if not name.startswith("net/bridge/") or os.access(_PROC_SYS + name, os.F_OK)
    ]


def write(name: str, value: str, where: str) -> None:
    """Set a sysctl (`net/ipv4/ip_forward`) of the namespace that the calling thread is in.

    Args:
        name: the path under /proc/sys, with slashes.
        value: what to write.
        where: the namespace's name, for messages.

    Raises:
        KernelError: it cannot be written, or reads back otherwise.
    """
    target = f"{name} in {where}"
    try:
        fd = os.open(_PROC_SYS + name, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
            found = os.pread(fd, 4096, 0).decode()
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(
            "set sysctl", target, str(error.strerror), f"see `sysctl {name.replace('/', '.')}`"
        ) from error
    _compare("set sysctl", target, value, canonical(found), canonical(found) == canonical(value))


def read(name: str, where: str) -> str:
    """The value of a sysctl in the namespace that the calling thread is in.

    Raises:
        KernelError: it cannot be read.
    """
    try:
        fd = os.open(_PROC_SYS + name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return canonical(os.pread(fd, 4096, 0).decode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError("read sysctl", f"{name} in {where}", str(error.strerror)) from error


def check(settings: Iterable[tuple[str, str]], where: str) -> None:
    """Compare sysctls of the calling thread's namespace with what they should be.

    Raises:
        KernelError: one differs, or cannot be read.
    """
    for name, value in settings:
        found = read(name, where)
        _compare("keep sysctl", f"{name} in {where}", value, found, found == canonical(value))


def enable_ipv6(link: str, where: str) -> None:
    """Let a link have IPv6 addresses, in the namespace that the calling thread is in.

    Raises:
        KernelError: the kernel has no IPv6, or there is no such link.
    """
    write(f"net/ipv6/conf/{link}/disable_ipv6", "0", where)


def keep_neighbours(link: str, where: str) -> None:
    """Have a VM's NIC keep its ARP and NDP entries while its plug is pulled.

    In the namespace that the calling thread is in. Kernels before 5.16 lack it: there the
    first packet after a replug may wait a second for an answer.

    Raises:
        KernelError: it cannot be set.
    """
    for name in (
        f"net/ipv4/conf/{link}/arp_evict_nocarrier",
        f"net/ipv6/conf/{link}/ndisc_evict_nocarrier",
    ):
        if os.access(_PROC_SYS + name, os.F_OK):
            write(name, "0", where)


def pin_receiving(ends: Iterable[End]) -> None:
    """Have one CPU handle all that a veth end receives: spread over several, it is reordered.

    Raises:
        KernelError: there is no such end or CPU, or the setting reads back otherwise.
    """
    netns.in_thread(lambda _: _in_each_sysfs(tuple(ends), write_mask=True))


def check_receiving(ends: Iterable[End]) -> None:
    """Compare the CPUs that handle what veth ends receive with what they should be.

    Raises:
        KernelError: one differs, or cannot be read.
    """
    netns.in_thread(lambda _: _in_each_sysfs(tuple(ends), write_mask=False))


def _in_each_sysfs(ends: Iterable[End], write_mask: bool) -> None:
    by_netns: dict[str, list[End]] = {}
    for end in ends:
        by_netns.setdefault(end.netns, []).append(end)
    try:
        syscalls.own_mounts()
        for where, there in by_netns.items():
            netns.enter(where)
            syscalls.mount_own_sysfs()
            for end in there:
                _receiving_cpu(end, write_mask)
    except OSError as error:
        raise KernelError(
            "mount", "a sysfs of one namespace", str(error.strerror), "run as root"
        ) from error


def _receiving_cpu(end: End, write_mask: bool) -> None:
    mask = cpu_mask(end.rps_cpu)
    target = f"rps_cpus of {end.name} in {end.netns}"
    mode = os.O_RDWR if write_mask else os.O_RDONLY
    try:
        fd = os.open(f"/sys/class/net/{end.name}/queues/rx-0/rps_cpus", mode | os.O_CLOEXEC)
        try:
            if write_mask:
                os.write(fd, mask.encode())
            found = os.pread(fd, 4096, 0).decode().strip()
        finally:
            os.close(fd)
    except OSError as error:
        cpus = f"this machine has CPUs 0-{(os.cpu_count() or 1) - 1}"
        raise KernelError("set", target, str(error.strerror), cpus) from error
    _compare("set" if write_mask else "keep", target, mask, found, same_mask(found, mask))


def cpu_mask(cpu: int) -> str:
    """A CPU mask: 32 bits a word, words parted by commas."""
    digits = f"{1 << cpu:x}"
    words = []
    while digits:
        words.append(digits[-8:])
        digits = digits[:-8]
    return ",".join(reversed(words))


def _compare(attempt: str, target: str, wanted: str, found: str, equal: bool) -> None:
    if not equal:
        raise KernelError(
            attempt,
            target,
            f"wanted {canonical(wanted)!r}, the kernel has {found!r}",
            "another program may have changed it, or the kernel limits it",
        )
