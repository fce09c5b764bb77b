"""Routers, gateways and TCP/IP stacks: which way the packets of a vmk go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.labs import run, vm
from tests.end_to_end.wires import IPV4, Net, standing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

TEXT = """\
name: routed-vlans
switches: {tor: {mtu: 9000}, far: {mtu: 9000}}
links: [{between: [tor, far], rate: 1Gbit}]
routers:
  core:
    interfaces:
      tor:
        - {vlan: 5, ip: [192.168.5.1/24, "fd00:5::1/64"]}
        - {vlan: 6, ip: [192.168.6.1/24, "fd00:6::1/64"]}
        - {vlan: 21, ip: 192.168.21.1/24}
        - {vlan: 22, ip: 192.168.22.1/24}
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1]
    portgroups:
      Management-1: {vlan: 5}
      Management-2: {vlan: 6}
      vMotion-1: {vlan: 21}
      vMotion-2: {vlan: 22}
      VM-Network: {vlan: 10}
hosts:
  esx01:
    cpu: {cores: 4}
    memory: 1GiB
    nics: {vmnic0: {switch: tor, rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}}
    vmks:
      vmk0: {portgroup: Management-1, ip: [192.168.5.11/24, "fd00:5::11/64"], gateway: [192.168.5.1, "fd00:5::1"], services: [management]}
      vmk1: {portgroup: vMotion-1, ip: 192.168.21.11/24, services: [vmotion], netstack: vmotion, mtu: 9000, routes: [{to: 192.168.22.0/24, via: 192.168.21.1}]}
  esx02:
    cpu: {cores: 4}
    memory: 1GiB
    nics: {vmnic0: {switch: far, rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}}
    vmks:
      vmk0: {portgroup: Management-2, ip: [192.168.6.12/24, "fd00:6::12/64"], gateway: [192.168.6.1, "fd00:6::1"], services: [management]}
      vmk1: {portgroup: vMotion-2, ip: 192.168.22.12/24, services: [vmotion], netstack: vmotion, mtu: 9000, gateway: 192.168.22.1}
vms:
  db01: {host: esx01, memory: 64MiB, datastore: shared01,
         nics: [{portgroup: VM-Network, ip: 192.168.10.50/24}]}
  client: {host: esx02, memory: 16MiB, datastore: shared01,
           nics: [{portgroup: VM-Network, ip: 192.168.10.51/24}]}
"""  # noqa: E501
LEGS = {21: "tor/core-21", 22: "tor/core-22", 5: "tor/core-5", 6: "tor/core-6"}


@pytest.fixture
def net() -> Iterator[Net]:
    with standing(TEXT) as found:
        yield found


def test_each_vmk_has_its_own_way_through_the_router(net: Net) -> None:
    """Packets pass the router's legs of their own networks, one hop less to live, and no others."""
    for ends, legs in (
        (("esx01/vmk0", "esx02/vmk0"), (5, 6)),
        (("esx01/vmk1", "esx02/vmk1"), (21, 22)),
    ):
        net.ping(*ends, 2)
        with net.hear(*LEGS.values(), ends[1]) as heard:
            found = net.ping(*ends, 10)
        assert (found.lost, found.duplicates) == (0, 0)
        asked = [one for one in heard.frames if one.kind == IPV4]
        assert {one.where for one in asked} - {ends[1]} == {LEGS[leg] for leg in legs}
        arrived = heard.at(ends[1], outgoing=False)
        assert {one.packet[8] for one in arrived if one.kind == IPV4} == {63}  # TTL
    shown = run("traceroute", "esx01", "esx02/vmk0", "--lab", net.lab, "-q", "1").stdout
    assert "core (192.168.5.1)" in shown
    assert "192.168.6.12" in shown
    assert "time=" in run("vmkping", "esx01", "fd00:6::12", "--lab", net.lab, "-c", "1").stdout


def test_the_vmotion_stack_has_routes_of_its_own(net: Net) -> None:
    """What the default stack sends to vMotion's networks takes its own gateway; and vice versa.

    vmk1's stack knows one network beside its own, so management's is not in it. Its own is not
    in the default stack, though vmk1 is on the same host.
    """
    options = ("--lab", net.lab, "-c", "1", "-W", "0.5")
    assert run("vmkping", "esx01", "192.168.22.12", "-S", "vmotion", *options).returncode == 0
    refused = run("vmkping", "esx01", "192.168.6.12", "-I", "vmk1", *options, check=False)
    assert refused.returncode == 1
    assert "route" in refused.stderr
    for there in ("192.168.22.12", "192.168.21.1"):
        with net.hear("esx01/vmk0", "esx01/vmk1") as heard:
            run("vmkping", "esx01", there, *options, check=False)
        asked = {
            (one.where, one.ip[0])
            for one in heard.frames
            if one.kind == IPV4 and one.ip[1] == there
        }
        assert asked == {("esx01/vmk0", "192.168.5.11")}


def test_a_guest_moves_over_a_router_and_the_result_says_so(net: Net) -> None:
    with net.hear(*LEGS.values()) as heard:
        result = net.migrate("db01", "esx02")
    assert result["outcome"] == "completed", result["failure"]
    (notice,) = result["notices"]
    assert "layer-3 vMotion: 192.168.21.0/24 and 192.168.22.0/24" in notice
    bulk = {one.where for one in heard.frames if one.kind == IPV4 and one.length > 4000}
    assert bulk == {LEGS[21], LEGS[22]}
    assert vm(net.lab, "db01")["host"] == "esx02"
    assert net.ping("client/eth0", "db01/eth0", 5).lost == 0
