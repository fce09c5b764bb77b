"""Links, VLANs and ways to other networks that can't work: place, reason and remedy of each."""

from __future__ import annotations

import pytest

from testbed.errors import Problem, TopologyError
from testbed.topology import loads

GOOD = """\
name: good
switches:
  tor-a: {mtu: 9000, qos: {by: cos, queues: [{values: [4, 5], weight: 4}, {values: 0, weight: 1}]}}
  tor-b: {mtu: 9000}
  spare: {}
routers:
  core:
    interfaces:
      tor-a: [{vlan: 20, ip: 192.168.20.1/24}, {vlan: 30, ip: 192.168.30.1/24}]
links:
  - {between: [tor-a, tor-b], rate: 10Gbit, rtt: 10ms, jitter: 2ms, loss: 0.1%, vlans: [0, "20-40"]}
distributed_switches:
  D:
    mtu: 9000
    uplinks: [u1, u2]
    portgroups:
      vMotion: {vlan: 20}
      Far: {vlan: 30}
      Management: {vlan: 0}
      Trunk: {vlan: [20, "35-39"]}
hosts:
  h1:
    cpu: {cores: 2}
    memory: 4GiB
    nics:
      vmnic0: {switch: tor-a, mtu: 9000, uplink: D/u1, vlans: [0, 20, 30, "35-39"]}
      vmnic1: {switch: tor-b, mtu: 9000, uplink: D/u2}
      vmnic2: {switch: spare}
    vswitches:
      S: {uplinks: [vmnic2], portgroups: {Guests: {vlan: 4095}}}
    vmks:
      vmk0: {portgroup: Management, ip: 192.168.0.1/24, services: [management]}
      vmk1:
        portgroup: vMotion
        ip: 192.168.20.11/24
        gateway: 192.168.20.1
        services: [vmotion]
        netstack: vmotion
        routes: [{to: 192.168.30.0/24, via: 192.168.20.1}]
        mtu: 9000
  h2:
    cpu: {cores: 2}
    memory: 4GiB
    nics: {vmnic0: {switch: tor-b, mtu: 9000, uplink: D/u1}}
    vmks:
      vmk0: {portgroup: Management, ip: 192.168.0.2/24, services: [management]}
      vmk1:
        {portgroup: vMotion, ip: 192.168.20.12/24, gateway: 192.168.20.1, services: [vmotion],
         mtu: 9000}
  h3:
    cpu: {cores: 2}
    memory: 4GiB
    nics: {vmnic0: {switch: tor-b, mtu: 9000, uplink: D/u1}}
    vmks:
      vmk2: {portgroup: Far, ip: 192.168.30.13/24, gateway: 192.168.30.1, services: [vmotion]}
datastores: {shared: {hosts: [h1, h2]}}
vms:
  web:
    {host: h1, memory: 64MiB, datastore: shared,
     nics: [{portgroup: Trunk, vlan: 35, ip: 10.35.0.1/24}]}
  fw:
    {host: h1, memory: 64MiB, datastore: shared,
     nics: [{portgroup: Guests, vlan: 7}, {portgroup: Far}]}
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
    assert len(loads(GOOD, "f").hosts) == 3


# (what is replaced, by what, where the problem is: the text that begins there,
#  what the message holds, what the remedy holds)
MISTAKES = {
    # links
    "rtt and latency": ("rtt: 10ms", "rtt: 10ms, latency: 5ms", "latency", "rtt", "keep"),
    "jitter above delay": ("jitter: 2ms", "jitter: 6ms", "6ms", "5 ms", "at most 5 ms"),
    "jitter alone": ("rtt: 10ms, jitter", "jitter", "2ms", "2 ms", "latency"),
    "jitter one way": ("rtt: 10ms", "latency: {tor-a: 5ms}", "2ms, loss", "from tor-b", "latency"),
    "no such end": (
        "rtt: 10ms",
        "latency: {tor-x: 5ms, tor-a: 2ms, tor-b: 2ms}",
        "tor-x",
        "'tor-x'",
        "tor-a or",
    ),
    "unit of a delay": ("rtt: 10ms", "rtt: 10", "10, jitter", "10", "5ms"),
    "too long": ("rtt: 10ms", "rtt: 3s", "3s", "'3s'", "2s"),
    "all lost": ("loss: 0.1%", "loss: 100%", "100%", "100%", "remove the link"),
    "no share": ("loss: 0.1%", "loss: 0.1", "0.1, vlans", "0.1", "0.1%"),
    "reorder": ("loss: 0.1%", "reorder: 1%", "reorder", "in order", "remove"),
    "delay": ("rtt: 10ms", "delay: 10ms", "delay", "rtt", "latency: 5ms"),
    "given twice": (
        "links:\n  - {b",
        "links:\n  - {between: [tor-b, tor-a]}\n  - {b",
        "[tor-a, tor-b]",
        "in line 11 already",
        "keep one",
    ),
    "queue value": ("[4, 5]", "[4, 9]", "9], w", "9", "from 0 to 7"),
    "queue value twice": ("values: 0", "values: 4", "4, weight: 1", "queue 1", "once"),
    "queue weight": ("weight: 4", "weight: 0", "0}, {v", "0", "from 1"),
    "queue mark": ("by: cos", "by: vlan", "vlan, q", "'vlan'", "cos or dscp"),
    # VLANs
    "4095 on a link": ('"20-40"]', "4095]", "4095]", "guest tagging", "0-4094"),
    "4095 distributed": (
        "vMotion: {vlan: 20}",
        "vMotion: {vlan: 4095}",
        "4095}\n      F",
        "standard",
        "0-4094",
    ),
    "4095 at a NIC": ('[0, 20, 30, "35-39"]', "[0, 4095]", "4095]", "guest tagging", "0-4094"),
    "4095 at a router": ("{vlan: 30, ip", "{vlan: 4095, ip", "4095, ip", "4095", "4094"),
    "4096": ("vMotion: {vlan: 20}", "vMotion: {vlan: 4096}", "4096", "4096", "0 to 4094"),
    "backwards": ('"20-40"]', '"40-20"]', '"40-20"', "backwards", "numbers"),
    "trunk on a standard switch": ("vlan: 4095", "vlan: [7, 8]", "[7, 8]", "a list", "4095"),
    "range on a standard switch": ("vlan: 4095", 'vlan: "7-8"', '"7-8"', "'7-8'", "4095"),
    "empty trunk": ("vMotion: {vlan: 20}", "vMotion: {vlan: []}", "[]", "nothing", "vlan: 0"),
    "empty link": ('[0, "20-40"]', "[]", "[]", "no VLAN", "leave vlans out"),
    "empty NIC": ('[0, 20, 30, "35-39"]', "[]", "[]", "no VLAN", "leave vlans out"),
    "vlan of a link": ("rtt: 10ms", "vlan: 10", "vlan: 10", "several", "vlans:"),
    "vlans of a switch": ("spare: {}", "spare: {vlans: [1]}", "vlans: [1]", "cables", "links"),
    "vlan of a vmk": ("vmk2: {", "vmk2: {vlan: 3, ", "vlan: 3, ", "port group", "port group"),
    "vlan of a NIC": (
        "{switch: spare}",
        "{vlan: 3, switch: spare}",
        "vlan: 3, ",
        "trunk",
        "vlans:",
    ),
    "vmk in a trunk": (
        "{portgroup: Far, ip",
        "{portgroup: Trunk, ip",
        "Trunk, ip: 192",
        "vmk",
        "one VLAN",
    ),
    "guest in an access group": (
        "portgroup: Far}",
        "portgroup: Far, vlan: 9}",
        "vlan: 9",
        "30",
        "remove",
    ),
    "guest outside the trunk": ("vlan: 35,", "vlan: 34,", "34, ip", "VLAN 34", "20, 35-39"),
    "guest untagged": ("Trunk, vlan: 35,", "Trunk,", "{portgroup: Trunk,", "untagged", "vlan: N"),
    "not in the NIC's trunk": (
        '[0, 20, 30, "35-39"]',
        "[0, 20, 30]",
        "[0, 20, 30]",
        "VLAN 35",
        "add 35",
    ),
    "untagged not in it": (
        '[0, 20, 30, "35-39"]',
        '[20, 30, "35-39"]',
        "[20, 30,",
        "untagged",
        "add 0",
    ),
    "not on the link": (
        'vlans: [0, "20-40"]',
        'vlans: [0, 19, "30-40"]',
        "[0, 19",
        "VLAN 20",
        "add 20",
    ),
    "untagged not on the link": (
        'vlans: [0, "20-40"]',
        'vlans: ["20-40"]',
        '["20-40"]',
        "untagged",
        "add 0",
    ),
    # addresses and ways
    "address outside": (
        "192.168.0.2/24",
        "192.168.7.2/24",
        "192.168.7.2",
        "192.168.0.0/24",
        "192.168.0.0",
    ),
    "gateway outside": (
        "gateway: 192.168.30.1,",
        "gateway: 192.168.20.1,",
        "192.168.20.1, services: [vmotion]}\n",
        "192.168.30.0",
        "own network",
    ),
    "gateway is no router": (
        "gateway: 192.168.30.1,",
        "gateway: 192.168.30.9,",
        "192.168.30.9",
        "core is 192.168.30.1",
        "write 192.168.30.1",
    ),
    "gateway is a vmk": (
        "ip: 192.168.0.1/24,",
        "ip: 192.168.0.1/24, gateway: 192.168.0.2,",
        "192.168.0.2,",
        "forwards nothing",
        "router",
    ),
    "route to nowhere": (
        "to: 192.168.30.0/24",
        "to: 172.16.0.0/12",
        "172.16.0.0/12",
        "core has no interface",
        "interface",
    ),
    "route everywhere": (
        "to: 192.168.30.0/24",
        "to: 0.0.0.0/0",
        "0.0.0.0/0",
        "every",
        "gateway: 192.168.20.1",
    ),
    "route home": (
        "to: 192.168.30.0/24",
        "to: 192.168.20.0/25",
        "192.168.20.0/25",
        "itself",
        "remove",
    ),
    "route by another network": (
        "via: 192.168.20.1",
        "via: 192.168.30.1",
        "192.168.30.1}]",
        "192.168.20.0/24",
        "own",
    ),
    "route with host bits": (
        "to: 192.168.30.0/24",
        "to: 192.168.30.1/24",
        "192.168.30.1/24, via",
        "bits",
        "192.168.20.0/24",
    ),
    "route of two families": (
        "to: 192.168.30.0/24",
        'to: "fd00::/64"',
        "192.168.20.1}]",
        "IPv4",
        "IPv6",
    ),
    "vMotion in two VLANs": (
        "{portgroup: vMotion, ip: 192.168.20.12/24, gateway: 192.168.20.1,",
        "{portgroup: Far, ip: 192.168.20.12/24,",
        "Far, ip: 192.168.20.12",
        "VLAN 30",
        "one VLAN",
    ),
    "gateway in another VLAN": (
        "{vlan: 30, ip",
        "{vlan: 31, ip",
        "Far, ip",
        "VLAN 31",
        "same VLAN",
    ),
    "gateway without a cable": (
        "}, {vlan: 30, ip: 192.168.30.1/24}]",
        "}]\n      spare: {vlan: 30, ip: 192.168.30.1/24}",
        "vmk2",
        "no cable",
        "link",
    ),
    "two interfaces in one VLAN": (
        "{vlan: 30, ip",
        "{vlan: 20, ip",
        "{vlan: 20, ip: 192.168.30.1",
        "VLAN 20",
        "one interface",
    ),
    "no VLAN for the second": (
        "{vlan: 20, ip: 192.168.20.1/24}, {vlan: 30, ip",
        "{vlan: 20, ip: 192.168.20.1/24}, {ip",
        "Far, ip",
        "no VLAN",
        "same VLAN",
    ),
}


WITH_OTHERS = ("two interfaces in one VLAN",)
"""Mistakes that are more than one: the gateway is in another VLAN too."""


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
    others = [p for p in found if p is not at_place[0]]
    assert not others or mistake in WITH_OTHERS, others


def test_the_way_to_a_gateway_is_as_wide_as_what_a_vmk_sends() -> None:
    """What a router's interface never receives it can't answer with "too big"."""
    text = GOOD.replace("  spare: {}\n", "  spare: {}\n  edge: {mtu: 4000}\n")
    text = text.replace("links:\n  - {b", "links:\n  - {between: [tor-a, edge]}\n  - {b")
    moved = text.replace("      tor-a: [{vlan: 20", "      edge: [{vlan: 20")
    (problem,) = problems(moved)
    assert problem.where == "switches.edge.mtu"
    assert "MTU 4000 of edge" in problem.message
    assert "router core" in problem.message
    assert "raise it to 9000" in problem.remedy
    wide = moved.replace("edge: {mtu: 4000}", "edge: {mtu: 9000}\n  mid: {mtu: 4000}")
    wide = wide.replace("[tor-a, edge]", "[tor-a, mid]}\n  - {between: [mid, edge]")
    (problem,) = problems(wide)
    assert problem.where == "switches.mid.mtu"
    assert loads(wide.replace("mid: {mtu: 4000}", "mid: {mtu: 9000}"), "f")


def test_a_path_of_a_standby_uplink_is_wide_too() -> None:
    text = GOOD.replace("vmnic1: {switch: tor-b", "vmnic1: {switch: edge")
    text = text.replace("  spare: {}\n", "  spare: {}\n  edge: {mtu: 9000}\n  mid: {mtu: 4000}\n")
    text = text.replace(
        "links:\n  - {b", "links:\n  - {between: [tor-a, mid]}\n  - {between: [mid, edge]}\n  - {b"
    )
    team = "vMotion: {vlan: 20, teaming: {active: [u1], standby: [u2]}}"
    (problem,) = problems(text.replace("vMotion: {vlan: 20}", team))
    assert problem.where == "switches.mid.mtu"
    unused = "vMotion: {vlan: 20, teaming: {active: [u1]}}"
    assert loads(text.replace("vMotion: {vlan: 20}", unused), "f")


FABRICS = """\
name: fabrics
switches: {a: {}, b: {}}
distributed_switches: {D: {uplinks: [u, v], portgroups: {vMotion: {}}}}
hosts:
  "h[1-2]":
    cpu: {cores: 1}
    memory: 1GiB
    nics: {vmnic0: {switch: a, uplink: D/u}, vmnic1: {switch: b, uplink: D/v}}
    vmks: {vmk0: {portgroup: vMotion, ip: "10.1.0.[1-2]/24", services: [vmotion]}}
"""


def test_a_team_ends_in_switches_that_are_linked() -> None:
    (problem,) = problems(FABRICS)
    assert problem.where == "hosts.h1.vmks.vmk0"
    assert "b and a are not linked" in problem.message
    assert loads(FABRICS.replace("hosts:", "links: [{between: [a, b]}]\nhosts:"), "f")
    one = "vMotion: {teaming: {active: [v]}}"
    assert loads(FABRICS.replace("vMotion: {}", one), "f")


def test_missing_vlans_of_a_link_are_told_together() -> None:
    (problem,) = problems(GOOD.replace('vlans: [0, "20-40"]', "vlans: [0]"))
    assert problem.where == "links[0].vlans"
    assert "VLAN 20 (vmk1 of h" in problem.message
    assert "VLAN 30" in problem.message
    assert problem.remedy == "add 20, 30, 35 to its vlans"


def test_the_trunk_of_a_host_that_a_vm_can_move_to_carries_its_vlan() -> None:
    nic = "nics: {vmnic0: {switch: tor-b, mtu: 9000, uplink: D/u1}}\n    vmks:\n      vmk0"
    text = GOOD.replace(nic, nic.replace("D/u1", "D/u1, vlans: [0, 20, 30]"))
    (problem,) = problems(text)
    assert problem.where == "hosts.h2.nics.vmnic0.vlans"
    assert "VLAN 35 of port group Trunk" in problem.message
    assert loads(text.replace("hosts: [h1, h2]", "hosts: [h1]"), "f")


def test_queues_need_a_port_where_frames_can_wait() -> None:
    (problem,) = problems(GOOD.replace("rate: 10Gbit, ", ""))
    assert problem.where == "switches.tor-a.qos"
    assert "no port of tor-a has a rate" in problem.message
    assert loads(
        GOOD.replace("rate: 10Gbit, ", "").replace("D/u1, vl", "D/u1, rate: 1Gbit, vl"), "f"
    )


def test_a_second_network_in_a_vlan_has_two_members_or_a_gateway() -> None:
    other = GOOD.replace("192.168.0.2/24", "192.168.7.2/24")
    (problem,) = problems(other)
    assert "192.168.7.2/24 is of another network than vmk0 of h1" in problem.message
    gateway = other.replace("192.168.7.2/24,", "192.168.7.2/24, gateway: 192.168.7.1,")
    assert loads(gateway, "f")
    router = "core:\n    interfaces:\n      tor-b: {ip: [192.168.7.1/24, 192.168.0.254/24]}\n"
    assert loads(other.replace("core:\n    interfaces:\n", router), "f")


def wide_team(count: int, rate: str) -> str:
    nics = ", ".join(f"vmnic{n}: {{switch: tor, rate: {rate}}}" for n in range(count))
    names = ", ".join(f"vmnic{n}" for n in range(count))
    return (
        f"name: wide\nswitches: {{tor: {{}}}}\nhosts:\n  h:\n    cpu: {{cores: 1}}\n"
        f"    memory: 1GiB\n    nics: {{{nics}}}\n"
        f"    vswitches: {{S: {{uplinks: [{names}], portgroups: {{vMotion: {{}}}}}}}}\n"
        "    vmks: {vmk0: {portgroup: vMotion, ip: 10.0.0.1/24, services: [vmotion]}}\n"
    )


@pytest.mark.parametrize(("rate", "most"), [("1Gbit", 16), ("10Gbit", 4)])
def test_every_uplink_of_a_team_counts_as_a_vmotion_nic(rate: str, most: int) -> None:
    assert len(loads(wide_team(most, rate), "f").hosts[0].uplinks) == most
    (problem,) = problems(wide_team(most + 1, rate))
    assert problem.where == "hosts.h.nics"
    assert f"{most + 1} x" in problem.message
    team = "vMotion: {teaming: {active: [vmnic0], standby: [vmnic1]}}"
    assert loads(wide_team(most + 1, rate).replace("vMotion: {}", team), "f")


CHAIN = """\
name: chain
switches: {a: {}, b: {}, c: {}}
routers:
  west: {interfaces: {a: {ip: 10.1.0.1/24}, b: {ip: 10.2.0.1/24}}}
  east: {interfaces: {b: {ip: 10.2.0.2/24}, c: {ip: 10.3.0.1/24}}}
distributed_switches: {D: {uplinks: [u], portgroups: {vMotion: {}}}}
hosts:
  "h[1-2]":
    cpu: {cores: 1}
    memory: 1GiB
    nics: {vmnic0: {switch: "[a,c]", uplink: D/u}}
    vmks:
      vmk0:
        {portgroup: vMotion, ip: "10.[1,3].0.9/24", gateway: "10.[1,3].0.1", services: [vmotion]}
"""


def test_two_routers_in_a_row_are_refused_and_one_is_not() -> None:
    found = problems(CHAIN)
    assert {p.where for p in found} == {"hosts.h1.vmks.vmk0.gateway", "hosts.h2.vmks.vmk0.gateway"}
    assert "west, the gateway of vmk0 of h1, has no interface in 10.3.0.0/24" in found[0].message
    assert found[0].remedy == "give west an interface in 10.3.0.0/24"
    east = "  east: {interfaces: {b: {ip: 10.2.0.2/24}, c: {ip: 10.3.0.1/24}}}\n"
    one = CHAIN.replace(east, "").replace("b: {ip: 10.2.0.1/24}", "c: {ip: 10.3.0.1/24}")
    assert [len(router.interfaces) for router in loads(one, "f").routers] == [2]
