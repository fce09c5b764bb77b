"""What this machine's kernel has, found by trying it in a namespace that is then removed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.errors import KernelError
from testbed.kernel import htb, messages, netns, syscalls
from testbed.kernel.iochain import bpf
from testbed.kernel.iochain.assembler import Register, assemble, compute, leave
from testbed.kernel.netlink import RefusedError, Socket
from testbed.kernel.template import ACK, CREATE, EXCLUSIVE, Template
from testbed.plan.policies import Shape
from testbed.plan.steps import End, Veth

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULES = "install the kernel's full module package (Debian: linux-image-amd64)"
_QUEUE = f"apt install iptables; {_MODULES}"
_NEW_KERNEL = "run a newer kernel"
_CLSACT_PARENT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_NETLINK_NETFILTER = 12


@dataclass(frozen=True, slots=True)
class Capability:
    """A thing that the kernel or the machine has or lacks.

    `present` is None where finding out needs root. `fallback` says what is used instead (empty:
    nothing, the feature does not work), `install` what provides it.
    """

    name: str
    present: bool | None
    detail: str
    used_for: str
    fallback: str = ""
    install: str = ""


def probe() -> tuple[Capability, ...]:
    """Try everything; as root inside a namespace of its own, which nothing outlives.

    Raises nothing for what is missing: that is the answer.
    """
    return (*_networking(), *_machine())


def has_netem() -> bool:
    """Whether the kernel has netem; without root it is taken to have none."""

    def tried() -> bool:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        with Socket() as opened:
            try:
                _netem(opened)
            except RefusedError:
                return False
            return True

    try:
        return netns.in_thread(lambda _: tried())
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class _Trial:
    name: str
    used_for: str
    fallback: str
    install: str
    attempt: Callable[[Socket], str]


def _networking() -> tuple[Capability, ...]:
    try:
        return netns.in_thread(lambda _: _try_all())
    except OSError as error:
        cause = str(error.strerror)
        if error.errno == errno.EPERM:
            cause = "needs root: 'sudo testbed doctor' tries it"
        missing = None if error.errno == errno.EPERM else False
        return tuple(
            Capability(trial.name, missing, cause, trial.used_for, trial.fallback, trial.install)
            for trial in _trials()
        )


def _try_all() -> tuple[Capability, ...]:
    """In a thread: its network namespace has no name, and ends with the thread."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    found = []
    with Socket() as opened:
        for trial in _trials():
            try:
                present, detail = True, trial.attempt(opened)
            except RefusedError as refusal:
                present, detail = False, refusal.cause
            except (KernelError, OSError) as error:
                present, detail = False, getattr(error, "strerror", None) or str(error)
            found.append(
                Capability(
                    trial.name, present, detail, trial.used_for, trial.fallback, trial.install
                )
            )
    return tuple(found)


def _trials() -> tuple[_Trial, ...]:
    """In an order in which each may use what those before it made."""
    return (
        _Trial("network namespaces", "every node", "", "CONFIG_NET_NS", lambda _: "made one"),
        _Trial("veth", "every wire", "", _MODULES, _veth),
        _Trial("bridge", "switches and VMs' NICs", "", _MODULES, _bridge),
        _Trial("htb", "link rates, NIOC", "", _MODULES, _htb),
        _Trial("rps_cpus", "packet order on wires", "", "CONFIG_RPS", _rps),
        _Trial("clsact", "IOChains of ports", "", _MODULES, _clsact),
        _Trial("eBPF", "VLANs, security, marking, teaming, loss", "", "CONFIG_BPF_SYSCALL", _bpf),
        _Trial("netem", "latency of links", "delay line on NFQUEUE", _MODULES, _netem),
        _Trial("nfnetlink_queue", "delay line, where netem is missing", "netem", _QUEUE, _queue),
        _Trial("8021q", "nothing: eBPF tags frames", "eBPF on clsact", _MODULES, _vlan),
    )


def _sent(opened: Socket, *batch: bytearray) -> str:
    refusal = opened.request(batch)
    if refusal is not None:
        raise refusal
    return "made one"


def _veth(opened: Socket) -> str:
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        wire = Veth(End("", "probe-a", 1500, ""), End("", "probe-b", 1500, ""))
        return _sent(opened, messages.create_veth(wire, 2, 3, fd), messages.set_up(2))
    finally:
        os.close(fd)


def _bridge(opened: Socket) -> str:
    return _sent(
        opened,
        messages.create_bridge(4, "probe-br", 1500, None),
        messages.configure(4, 1500),
        messages.configure(3, 1500, master=4),
        messages.port_flags(3, False),
    )


def _htb(opened: Socket) -> str:
    shape = Shape("", "probe-a", 10**11, 1500, 12_500_000_000, 262144, "")
    return _sent(opened, *htb.shape(shape, 2)) + " of 100 Gbit/s"


def _rps(_: Socket) -> str:
    if not Path("/sys/class/net/lo/queues/rx-0/rps_cpus").exists():
        raise OSError(errno.ENOENT, "there is no rps_cpus")
    return "there is one per queue"


def _clsact(opened: Socket) -> str:
    fields = {"index": 3, "handle": _CLSACT_HANDLE, "parent": _CLSACT_PARENT}
    template = Template(
        tcmsg,
        htb.NEWQDISC,
        ACK | CREATE | EXCLUSIVE,
        fields,
        attributes=[("TCA_KIND", "clsact")],
    )
    return _sent(opened, template.fill())


def _bpf(_: Socket) -> str:
    code = assemble([compute(Register.R0, "=", 0), leave()])
    os.close(bpf.load_program("probe", code.link({}), "the probe"))
    return "loaded a program"


def _netem(opened: Socket) -> str:
    # An empty netem qdisc, with its fixed struct (latency, limit 1000, loss, gap, dup, jitter).
    fields = {"index": messages.LOOPBACK_INDEX, "handle": 0x20000, "parent": htb.TC_ROOT}
    options = {"delay": 15625, "limit": 1000, "loss": 0, "gap": 0, "duplicate": 0, "jitter": 0}
    template = Template(
        tcmsg,
        htb.NEWQDISC,
        ACK | CREATE | EXCLUSIVE,
        fields,
        attributes=[("TCA_KIND", "netem"), ("TCA_OPTIONS", options)],
    )
    return _sent(opened, template.fill())


def _vlan(opened: Socket) -> str:
    data = {"attrs": [("IFLA_VLAN_ID", 5)]}
    info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", data)]}
    attributes = [("IFLA_IFNAME", "probe-vlan"), ("IFLA_LINK", 2), ("IFLA_LINKINFO", info)]
    template = Template(
        ifinfmsg, messages.NEWLINK, ACK | CREATE | EXCLUSIVE, {"index": 9}, attributes=attributes
    )
    return _sent(opened, template.fill())


def _queue(_: Socket) -> str:
    """Bind queue 0 of the namespace: NFQNL_MSG_CONFIG with NFQNL_CFG_CMD_BIND."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as opened:
        opened.bind((0, 0))
        # nlmsghdr (length, type 3 << 8 | 2, request and ack), nfgenmsg, attribute 1: bind.
        opened.send(
            bytes.fromhex("1c000000 0203 0500 01000000 00000000 00000000 08000100 01000000")
        )
        answer = opened.recv(4096)
    number = -int.from_bytes(answer[16:20], "little", signed=True)
    if number:
        raise OSError(number, os.strerror(number))
    program = shutil.which("iptables")
    if program is None:
        raise OSError(errno.ENOENT, "the queue is there, the program iptables is not")
    return f"bound a queue; {program} makes its rules"


def _machine() -> tuple[Capability, ...]:
    return (_congestion_control(), _pagemap_scan(), _memory(), _cgroup(), _iperf3())


def _congestion_control() -> Capability:
    used_for = "migration streams and iperf3"
    try:
        with socket.socket() as opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        present, detail = True, "a socket takes it"
    except OSError as error:
        present, detail = False, str(error.strerror)
    with suppress(OSError):
        known = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
        detail += f" (this machine's default is {known})"
    return Capability("TCP cubic", present, detail, used_for, "", _MODULES)


def _pagemap_scan() -> Capability:
    release = os.uname().release
    major, _, rest = release.partition(".")
    minor = "".join(c if c.isdigit() else " " for c in rest).split()
    present = (int(major), int(minor[0]) if minor else 0) >= (6, 7)
    return Capability(
        "PAGEMAP_SCAN", present, f"Linux {release}; it came with 6.7", "dirty page tracking",
        "the guest's own byte map (cooperative)", _NEW_KERNEL,
    )  # fmt: skip


def _memory() -> Capability:
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    present = available >= 3 * 2**30
    detail = f"{available / 2**30:.1f} GiB available; a VM of 1 GiB needs 3 while it moves"
    return Capability("memory", present, detail, "VMs", "smaller VMs, or `scale`", "more memory")


def _cgroup() -> Capability:
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    legacy = Path("/sys/fs/cgroup/cpu").is_dir()
    version = "version 2" if unified else "version 1" if legacy else "not mounted"
    return Capability("cgroup", unified or legacy, version, "nothing yet", "SIGSTOP duty cycles")


def _iperf3() -> Capability:
    program = shutil.which("iperf3")
    if program is None:
        return Capability(
            "iperf3", False, "no such program", "`testbed iperf`", "", "apt install iperf3"
        )
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    version = done.stdout.splitlines()[0] if done.stdout else "it does not start"
    return Capability(
        "iperf3", done.returncode == 0, version, "`testbed iperf`", "", "apt install iperf3"
    )
