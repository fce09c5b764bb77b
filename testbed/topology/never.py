"""What a topology file never says, and why: keys of the right sort in the wrong place.

A path names mappings' entries and lists' items by `*`. Each has its reason and its remedy.
"""

from __future__ import annotations

from typing import TypeAlias

Shape: TypeAlias = tuple[str, ...]

_STANDARD: Shape = ("hosts", "*", "vswitches", "*")
_DISTRIBUTED: Shape = ("distributed_switches", "*")
_NO_NIOC = (
    "Network I/O Control belongs to distributed switches; a standard switch has none",
    "remove it, or join the vmnics to a distributed switch with nioc",
)
_NIOC_ELSEWHERE = (
    "Network I/O Control is set on a distributed switch, for all its uplinks",
    "move it into distributed_switches",
)
_NO_MARKING = (
    "CoS and DSCP are marked by distributed switches; a standard switch marks nothing",
    "remove it, or move the port group to a distributed switch",
)
_NO_LACP = (
    "link aggregation needs LACP on the physical switch too, and neither end runs it here",
    "remove it, and use teaming: {policy: originating_port} or mac_hash",
)
_TRUNK_ELSEWHERE = (
    "a physical switch passes every VLAN; what is carried belongs to the cables",
    "write vlans at links, and at the hosts' nics",
)

KEYS: dict[Shape, tuple[str, str]] = {
    ("nioc",): _NIOC_ELSEWHERE,
    ("hosts", "*", "nioc"): _NIOC_ELSEWHERE,
    (*_STANDARD, "nioc"): _NO_NIOC,
    (*_STANDARD, "marking"): _NO_MARKING,
    (*_STANDARD, "portgroups", "*", "marking"): _NO_MARKING,
    (*_STANDARD, "portgroups", "*", "shaping", "ingress"): (
        "a standard switch shapes what its adapters send (egress) and nothing else",
        "remove it, or move the port group to a distributed switch, which shapes both ways",
    ),
    (*_STANDARD, "lacp"): _NO_LACP,
    (*_DISTRIBUTED, "lacp"): _NO_LACP,
    ("links", "*", "reorder"): (
        "a link keeps its frames in order, jitter too, as a cable does",
        "remove it",
    ),
    ("links", "*", "delay"): (
        "a link's delay is its latency (one way) or its rtt (both ways)",
        "write latency: 5ms or rtt: 10ms",
    ),
    ("links", "*", "vlan"): ("a link carries several VLANs", "write vlans: [10, 20]"),
    ("links", "*", "qos"): (
        "queues belong to the physical switch, and serve all its ports",
        "write qos at the switch",
    ),
    ("switches", "*", "vlans"): _TRUNK_ELSEWHERE,
    ("switches", "*", "vlan"): _TRUNK_ELSEWHERE,
    ("hosts", "*", "nics", "*", "vlan"): (
        "the port of a vmnic is a trunk, and the port groups have the VLANs",
        "write vlans: [10, 20] for the trunk, and vlan at the port groups",
    ),
    ("hosts", "*", "vmks", "*", "vlan"): (
        "a vmk's frames get the VLAN of its port group",
        "write vlan at the port group",
    ),
    ("vms", "*", "nics", "*", "offloads"): (
        "offloads are the physical NICs'",
        "write offloads at a host's nics",
    ),
}
