"""Teams, bandwidth, marks and stacks that can't work: place, reason and remedy of each."""

from __future__ import annotations

import pytest

from testbed.errors import Problem, TopologyError
from testbed.topology import loads

GOOD = """\
name: good
switches: {tor: {}}
distributed_switches:
  D:
    uplinks: [u1, u2, u3]
    teaming: {policy: mac_hash}
    nioc:
      vmotion: {shares: high, reservation: 3Gbit, limit: 8Gbit}
      virtualMachine: {reservation: 2Gbit}
      nfs: {reservation: 2500Mbit}
    marking: {dscp: 46, traffic: management}
    portgroups:
      vMotion: {vlan: 20, marking: {cos: 4, dscp: 26, traffic: vmotion, protocol: tcp}}
      VMs:
        vlan: 10
        teaming: {active: [u1], standby: [u2]}
        shaping: {egress: {average: 1Gbit, peak: 2Gbit, burst: 1MiB}}
      Plain: {marking: {dscp: 8, source: 10.0.0.0/8, destination: 10.0.0.0/8}}
hosts:
  h1:
    cpu: {cores: 2}
    memory: 4GiB
    nics:
      vmnic0: {switch: tor, rate: 10Gbit, uplink: D/u1}
      vmnic1: {switch: tor, rate: 10Gbit, uplink: D/u2}
      vmnic2: {switch: tor, rate: 1Gbit, qos: {management: {guarantee: 60%, limit: 80%}}}
      vmnic3: {switch: tor, offloads: {tso: off, checksum: off}, rings: {tx: 256, rx: 4096}}
    vswitches:
      S:
        uplinks: [vmnic2, vmnic3]
        security: {promiscuous: reject}
        teaming: {active: [vmnic2], standby: [vmnic3], notify: on, detection: link}
        portgroups: {Mgmt: {shaping: {egress: {average: 1Mbit, peak: 1Mbit, burst: 64KiB}}}}
    vmks:
      vmk0: {portgroup: Mgmt, ip: 192.168.0.1/24, services: [management]}
      vmk1: {portgroup: vMotion, ip: 192.168.20.1/24, services: [vmotion], netstack: vmotion}
      vmk2: {portgroup: Plain, ip: 192.168.40.1/24, services: [nfs]}
datastores: {shared: {hosts: h1}}
vms:
  web:
    host: h1
    memory: 64MiB
    datastore: shared
    nics: [{portgroup: VMs, bandwidth: {shares: low, reservation: 1500Mbit, limit: 5Gbit}}]
"""


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as error:
        loads(text, "lab.yaml")
    return error.value.problems


def place_of(text: str, marked: str) -> tuple[int, int]:
    """The line and column of a string that the text has once."""
    assert text.count(marked) == 1, marked
    before = text[: text.index(marked)]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def test_the_file_that_the_mistakes_are_put_into_is_good() -> None:
    assert loads(GOOD, "f").name == "good"


# (what is replaced, by what, where the problem is: the text that begins there,
#  what the message holds, what the remedy holds)
MISTAKES = {
    # teams
    "no such uplink": ("active: [u1]", "active: [u4]", "u4", "'u4'", "u1"),
    "no such vmnic": ("active: [vmnic2]", "active: [vmnic0]", "vmnic0]", "'vmnic0'", "vmnic"),
    "active and standby": ("standby: [u2]", "standby: [u1]", "u1]}", "already", "once"),
    "nobody active": ("active: [u1]", "active: []", "active: []", "no active", "at least one"),
    "all standby": (
        "active: [u1], standby: [u2]",
        "standby: [u1, u2, u3]",
        "teaming: {standby",
        "no active",
        "active",
    ),
    "ip_hash": ("policy: mac_hash", "policy: ip_hash", "ip_hash", "port channel", "mac_hash"),
    "lacp as a policy": ("policy: mac_hash", "policy: lacp", "lacp", "port channel", "mac_hash"),
    "load": ("policy: mac_hash", "policy: load_based", "load_based", "30 s", "explicit"),
    "policy": (
        "policy: mac_hash",
        "policy: round_robin",
        "round_robin",
        "'round_robin'",
        "mac_hash",
    ),
    "lacp": ("teaming: {policy: mac_hash}", "lacp: {}", "lacp", "LACP", "mac_hash"),
    "beacon": ("detection: link", "detection: beacon", "beacon", "beacons", "link"),
    "no switch": ("notify: on", "notify: maybe", "maybe", "'maybe'", "on or off"),
    "an uplink twice": ("uplink: D/u2", "uplink: D/u1", "D/u1}\n      vmnic2", "vmnic0", "own"),
    "no connected uplink": (
        "active: [u1], standby: [u2]",
        "active: [u3]",
        "VMs, band",
        "'VMs' is connected on host h1",
        "uplinks",
    ),
    # Network I/O Control
    "over 75 %": ("reservation: 2500Mbit", "reservation: 2501Mbit", "nioc", "75 %", "7.5 Gbit/s"),
    "over the link": (
        "reservation: 3Gbit, limit: 8Gbit",
        "reservation: 11Gbit",
        "11Gbit",
        "10 Gbit/s",
        "7.5 Gbit/s",
    ),
    "limit below": ("limit: 8Gbit", "limit: 2Gbit", "2Gbit}\n      virtual", "3 Gbit/s", "raise"),
    "limit above": ("limit: 8Gbit", "limit: 11Gbit", "11Gbit", "limits no uplink", "lower"),
    "shares": ("shares: high", "shares: highest", "highest", "'highest'", "1 to 100"),
    "shares of 0": ("shares: high", "shares: 0", "0, res", "0", "1 to 100"),
    "no such type": ("      nfs:", "      vMotion:", "vMotion: {res", "'vMotion'", "vmotion"),
    "no rate": ("rate: 10Gbit, uplink: D/u1", "uplink: D/u1", "vmnic0", "no rate", "add rate"),
    "idle reservations": (
        "nioc:",
        "nioc:\n      idle_reservations: kept",
        "kept",
        "'kept'",
        "lent",
    ),
    "NIOC on a standard switch": (
        "security: {promiscuous: reject}",
        "nioc: {}",
        "nioc: {}",
        "standard switch",
        "distributed",
    ),
    "NIOC on a host": (
        "    memory: 4GiB",
        "    memory: 4GiB\n    nioc: {}",
        "nioc: {}",
        "distributed switch",
        "move",
    ),
    "VMs over their type": (
        "reservation: 1500Mbit",
        "reservation: 2001Mbit",
        "2001Mbit",
        "2 Gbit/s",
        "raise",
    ),
    "a VM's limit below": ("limit: 5Gbit", "limit: 1Gbit", "1Gbit}}", "1.5 Gbit/s", "raise"),
    "a VM without NIOC": (
        "portgroup: VMs,",
        "portgroup: Mgmt,",
        "bandwidth",
        "Network I/O Control",
        "nioc",
    ),
    # quality of service, offloads, rings
    "over 100 %": (
        "{management: {g",
        "{nfs: {guarantee: 50%}, management: {g",
        "qos",
        "110%",
        "100%",
    ),
    "limit below guarantee": ("limit: 80%", "limit: 50%", "50%", "50%", "60%"),
    "shares of no rate": ("rate: 1Gbit, qos", "qos", "qos", "without a rate", "add rate"),
    "NIOC and QoS": (
        "uplink: D/u1}",
        "uplink: D/u1, qos: {nfs: {guarantee: 5%}}}",
        "qos: {nfs",
        "Network I/O Control",
        "one of the two",
    ),
    "checksum with tso": ("tso: off, ", "", "checksum", "tso", "tso off"),
    "ring": ("tx: 256", "tx: 32", "32,", "32", "64 to 4096"),
    # shaping
    "ingress on a standard switch": (
        "{egress: {average: 1Mbit",
        "{ingress: {average: 1Mbit",
        "ingress",
        "egress",
        "distributed",
    ),
    "peak below average": ("peak: 2Gbit", "peak: 500Mbit", "500Mbit, b", "1 Gbit/s", "average"),
    "small burst": ("burst: 64KiB", "burst: 8KiB", "8KiB", "8 KiB", "16 KiB"),
    "no burst": (", burst: 1MiB", "", "egress: {average: 1Gbit", "burst", "burst: 1MiB"),
    "nothing shaped": (
        "shaping: {egress: {average: 1Gbit, peak: 2Gbit, burst: 1MiB}}",
        "shaping: {}",
        "{}\n      Pl",
        "nothing",
        "egress",
    ),
    # marking
    "marking on a standard port group": (
        "Mgmt: {",
        "Mgmt: {marking: {dscp: 1}, ",
        "marking: {dscp: 1}",
        "standard",
        "distributed",
    ),
    "marking on a standard switch": (
        "security: {promiscuous: reject}",
        "marking: {dscp: 1}",
        "marking: {dscp: 1}",
        "standard",
        "distributed",
    ),
    "CoS untagged": ("marking: {dscp: 8,", "marking: {cos: 8,", "8, source", "8", "0 to 7"),
    "CoS in no tag": ("marking: {dscp: 8,", "marking: {cos: 5,", "cos: 5", "untagged", "VLAN"),
    "CoS on untagged uplinks": (
        "{dscp: 46, traffic: management}",
        "{cos: 5, traffic: nfs}",
        "cos: 5",
        "untagged",
        "VLAN",
    ),
    "no mark": ("marking: {dscp: 46, ", "marking: {", "{traffic: man", "marks nothing", "dscp"),
    "DSCP": ("dscp: 46", "dscp: 64", "64, t", "64", "0 to 63"),
    "traffic": (
        "dscp: 46, traffic: management",
        "dscp: 46, traffic: mail",
        "mail",
        "'mail'",
        "management",
    ),
    "port of no protocol": (
        "dscp: 46,",
        "dscp: 46, source_port: 80,",
        "source_port",
        "every protocol",
        "tcp",
    ),
    "port of icmp": (
        "dscp: 46,",
        "dscp: 46, protocol: icmp, source_port: 80,",
        "source_port",
        "icmp has no",
        "tcp",
    ),
    "port range": (
        "protocol: tcp}",
        'protocol: tcp, source_port: "9-8"}',
        '"9-8"',
        "backwards",
        "65535",
    ),
    "two families": ("destination: 10.0.0.0/8", 'destination: "fd00::/8"', '"fd00', "IPv6", "each"),
    "icmp of IPv6": (
        "{dscp: 46,",
        '{dscp: 46, protocol: icmp, source: "fd00::/8",',
        '"fd00',
        "IPv6",
        "icmpv6",
    ),
    "host bits": ("source: 10.0.0.0/8", "source: 10.0.0.1/8", "10.0.0.1/8", "bits", "/24"),
    # security, stacks
    "security": ("promiscuous: reject", "promiscuous: yes", "yes", "'yes'", "accept"),
    "two types in one vmk": (
        "services: [nfs]",
        "services: [nfs, iscsi]",
        "[nfs, iscsi]",
        "iSCSI and nfs",
        "own",
    ),
    "two types and QoS": (
        "services: [management]",
        "services: [management, vsan]",
        "[management, vsan]",
        "qos of vmnic2",
        "own",
    ),
    "another service in vMotion's stack": (
        "services: [vmotion]",
        "services: [vmotion, vsan]",
        "[vmotion, vsan]",
        "carries vmotion, vsan",
        "alone",
    ),
    "vMotion beside its stack": (
        "services: [nfs]",
        "services: [vmotion]",
        "[vmotion]}\ndata",
        "stack",
        "netstack: vmotion",
    ),
    "empty vMotion stack": (
        "services: [vmotion],",
        "services: [],",
        "[], n",
        "carries nothing",
        "services: [vmotion]",
    ),
    "a stack to come": ("netstack: vmotion", "netstack: mine", "mine", "'mine'", "provisioning"),
    "fault tolerance": (
        "services: [nfs]",
        "services: [faultTolerance]",
        "faultTolerance",
        "logging",
        "faultToleranceLogging",
    ),
    "case of a service": (
        "services: [nfs]",
        "services: [NFS]",
        "NFS",
        "'NFS'",
        "did you mean nfs?",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_once_at_its_place(mistake: str) -> None:
    old, new, marked, message, remedy = MISTAKES[mistake]
    assert GOOD.count(old) == 1, old
    text = GOOD.replace(old, new)
    found = problems(text)
    at_place = [p for p in found if (p.line, p.column) == place_of(text, marked)]
    assert len(at_place) == 1, found
    assert message in at_place[0].message
    assert remedy in at_place[0].remedy
    assert [p for p in found if p is not at_place[0]] == []
