"""What a topology file can't say yet, and why: refused, never accepted and ignored.

An entry goes when its mechanism is built. A path names mappings' entries and lists' items
by `*`.
"""

from __future__ import annotations

from typing import TypeAlias

Shape: TypeAlias = tuple[str, ...]

_DELAY = "latency, jitter and loss on links come with the delay lines"
_VLAN = "VLANs come with the port programs"
_PORT = "policies of a port come with the port programs"
_SHAPING = "traffic shaping of port groups comes with the port programs"
_NIOC = "Network I/O Control comes with its scheduler classes on the uplinks"
_TEAMING = "teaming of several uplinks comes with failover"
_CPU = "the CPU ledger of a host comes later, so clock rates have no effect"
_PROFILE = "profiles of vMotion's behaviour come later; the present engine is the only one"
_NETSTACK = "TCP/IP stacks other than the default one come later"
_MEMORY = "other memory backings come later; a VM's memory is 4 KiB pages"
_OFFLOAD = "the NICs' offloads are the kernel's own for now"

KEYS: dict[Shape, str] = {
    ("profile",): _PROFILE,
    ("hosts", "*", "profile"): _PROFILE,
    ("nioc",): _NIOC,
    ("links", "*", "rtt"): _DELAY,
    ("links", "*", "latency"): _DELAY,
    ("links", "*", "delay"): _DELAY,
    ("links", "*", "jitter"): _DELAY,
    ("links", "*", "loss"): _DELAY,
    ("links", "*", "reorder"): _DELAY,
    ("links", "*", "vlans"): _VLAN,
    ("links", "*", "vlan"): _VLAN,
    ("links", "*", "qos"): "queues of physical switches come later",
    ("switches", "*", "qos"): "queues of physical switches come later",
    ("switches", "*", "vlans"): _VLAN,
    ("routers", "*", "interfaces", "*", "vlan"): _VLAN,
    ("distributed_switches", "*", "nioc"): _NIOC,
    ("distributed_switches", "*", "teaming"): _TEAMING,
    ("distributed_switches", "*", "lacp"): _TEAMING,
    ("hosts", "*", "cpu", "mhz"): _CPU,
    ("hosts", "*", "nioc"): _NIOC,
    ("hosts", "*", "nics", "*", "offloads"): _OFFLOAD,
    ("hosts", "*", "nics", "*", "vlans"): _VLAN,
    ("hosts", "*", "vswitches", "*", "nioc"): "standard switches have no Network I/O Control",
    ("hosts", "*", "vswitches", "*", "teaming"): _TEAMING,
    ("hosts", "*", "vswitches", "*", "security"): _PORT,
    ("hosts", "*", "vswitches", "*", "shaping"): _SHAPING,
    ("hosts", "*", "vmks", "*", "netstack"): _NETSTACK,
    ("hosts", "*", "vmks", "*", "vlan"): _VLAN,
    ("vms", "*", "backing"): _MEMORY,
    ("vms", "*", "page_size"): _MEMORY,
    ("vms", "*", "reservation"): "admission by reservations comes later",
    ("vms", "*", "nics", "*", "vlan"): _VLAN,
    ("vms", "*", "nics", "*", "offloads"): _OFFLOAD,
} | {
    (*switch, "portgroups", "*", key): reason
    for switch in (("distributed_switches", "*"), ("hosts", "*", "vswitches", "*"))
    for key, reason in {
        "vlan": _VLAN,
        "teaming": _TEAMING,
        "marking": _PORT,
        "security": _PORT,
        "shaping": _SHAPING,
    }.items()
}

SERVICES: dict[str, str] = dict.fromkeys(
    (
        "management",
        "provisioning",
        "faultTolerance",
        "faultToleranceLogging",
        "vsan",
        "vSphereReplication",
        "vSphereReplicationNFC",
        "nvmeTcp",
        "nfs",
        "iscsi",
    ),
    "only the vmotion service has traffic so far",
)

WORKLOADS: dict[str, str] = dict.fromkeys(
    ("oltp", "iometer", "web", "exchange", "zipf", "mail", "compile"),
    "only idle, uniform and sequential writers exist so far",
)

TEAMING = _TEAMING
