"""VLANs and marking in a lab: who reaches whom, and what the frames on the cables carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.wires import IPV4, Flow, Net, frame, standing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

TEXT = """\
name: coloured
switches: {"tor-[a,b]": {mtu: 9000}}
links: [{between: [tor-a, tor-b], rate: 1Gbit, vlans: [10, 20, "100-104"]}]
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1]
    marking: {dscp: 16, protocol: icmp, traffic: management}
    portgroups:
      Management: {vlan: 20}
      vMotion: {vlan: 20, marking: [{cos: 4, dscp: 26, protocol: tcp}, {cos: 1}]}
      Red: {vlan: 10}
      Blue: {vlan: 20}
      Trunk: {vlan: [0, "100-109"]}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics:
      vmnic0: {switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}
      vmnic1: {switch: "tor-[a,b]", rate: 1Gbit}
    vswitches:
      vSwitch1:
        uplinks: [vmnic1]
        portgroups: {Guests: {vlan: 4095}}
    vmks:
      vmk0: {portgroup: Management, ip: "192.168.5.[11-12]/24", services: [management]}
      vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}
vms:
  red1: {host: esx01, memory: 16MiB, datastore: shared01,
         nics: [{portgroup: Red, ip: 10.0.0.1/24}, {portgroup: Trunk, vlan: 104}]}
  red2: {host: esx02, memory: 16MiB, datastore: shared01, nics: [{portgroup: Red, ip: 10.0.0.2/24}]}
  blue1: {host: esx01, memory: 16MiB, datastore: shared01,
          nics: [{portgroup: Blue, ip: 10.0.0.3/24}]}
  blue2: {host: esx02, memory: 16MiB, datastore: shared01,
          nics: [{portgroup: Blue, ip: 10.0.0.4/24}, {portgroup: Trunk, vlan: 104}]}
  guest: {host: esx01, memory: 16MiB, datastore: shared01,
          nics: [{portgroup: Guests, vlan: 20, ip: 10.0.0.5/24}]}
  tagger: {host: esx01, memory: 16MiB, datastore: shared01,
           nics: [{portgroup: Guests}, {portgroup: Trunk}]}
"""
TCP, ICMP = 6, 1
CABLE = "tor-a/esx01-vmnic0"
FAR = "tor-b/tor-a"


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with standing(TEXT) as found:
        yield found


@pytest.mark.parametrize(
    ("source", "destination", "reached"),
    [
        ("red1", "red2", True),
        ("blue1", "blue2", True),
        ("red1", "blue1", False),  # on one virtual switch
        ("red1", "blue2", False),  # over the trunk
        ("blue1", "red2", False),
        ("guest", "blue2", True),  # it tags its frames itself
        ("blue1", "guest", True),  # over the physical switch, as they are on two virtual ones
        ("guest", "red1", False),
    ],
)
def test_one_vlan_is_one_network(net: Net, source: str, destination: str, reached: bool) -> None:
    """All addresses are of one subnet: only the VLANs keep them apart."""
    assert net.reaches(f"{source}/eth0", f"{destination}/eth0") == reached


def test_no_frame_crosses_a_vlan(net: Net) -> None:
    """A broadcast of each goes to its VLAN's ports, once, without a tag, and nowhere else."""
    places = {
        "red": ("red1/eth0-esx01", "red2/eth0-esx02"),
        "blue": ("blue1/eth0-esx01", "blue2/eth0-esx02"),
    }
    vmks = ("esx01/vmk0", "esx01/vmk1", "esx02/vmk0", "esx02/vmk1")  # in VLAN 20, as blue
    everywhere = (*places["red"], *places["blue"], *vmks)
    for colour, (mine, other) in places.items():
        sent = frame(net.macs[f"{colour}1/eth0"], f"from {colour}")
        with net.hear(*everywhere) as heard:
            net.send(mine, sent)
        expected = dict.fromkeys((other, *(vmks if colour == "blue" else ())), 1)
        assert heard.copies(sent) == expected


def test_a_trunk_carries_its_vlans_alone(net: Net) -> None:
    """As a guest sends them: in VLANs that the link between the racks has and has not."""
    mac = net.macs["tagger/eth0"]
    sent = [frame(mac, "over the trunk", vid=vid) for vid in (0, 10, 30, 104, 105)]
    with net.hear("tor-a/esx01-vmnic1", "tor-b/esx02-vmnic0") as heard:
        net.send("tagger/eth0", *sent)
    came = [one.vid for one in heard.at("tor-a/esx01-vmnic1") if one.source == mac]
    assert came == [None, 10, 30, 104, 105]
    passed = [one.vid for one in heard.at("tor-b/esx02-vmnic0") if one.source == mac]
    assert passed == [10, 104]


def test_a_trunk_port_group_takes_its_vlans_alone(net: Net) -> None:
    mac = net.macs["tagger/eth1"]
    sent = [frame(mac, "from a trunk", vid=vid) for vid in (0, 10, 99, 100, 104, 109, 110)]
    with net.hear(CABLE, "blue2/eth1-esx02", "blue2/eth1", "red2/eth0-esx02") as heard:
        net.send("tagger/eth1", *sent)
    found = [one.vid for one in heard.at(CABLE) if one.source == mac]
    assert found == [None, 100, 104, 109]
    # The guest in VLAN 104 gets that one, without the tag that it takes off itself.
    assert heard.copies(frame(mac, "from a trunk", vid=104))["blue2/eth1-esx02"] == 1
    assert heard.copies(frame(mac, "from a trunk")) == {CABLE: 1, "blue2/eth1": 1}
    assert not heard.at("red2/eth0-esx02")


def test_marks_are_in_the_frames_on_the_cable(net: Net) -> None:
    """CoS in the tag and DSCP in the header; rules by protocol and traffic; others unmarked."""
    net.ping("esx01/vmk1", "esx02/vmk1", 2)
    with net.hear(CABLE, FAR) as heard:
        net.ping("esx01/vmk1", "esx02/vmk1", 3)
        net.ping("esx01/vmk0", "esx02/vmk0", 3)
        net.ping("red1/eth0", "red2/eth0", 3)
        flows = Flow("esx01/vmk1", "esx02/vmk1"), Flow("red1/eth0", "red2/eth0")
        net.together(*flows, duration_s=1, omit_s=0)
    for where in (CABLE, FAR):
        marks = {
            (one.ip[0], one.protocol): (one.vid, one.pcp, one.dscp)
            for one in heard.at(where, outgoing=False)
            if one.kind == IPV4
        }
        assert marks == {
            ("192.168.20.11", TCP): (20, 4, 26),  # the first rule
            ("192.168.20.11", ICMP): (20, 1, 0),  # the second
            ("192.168.5.11", ICMP): (20, 0, 16),  # the uplinks' rule, for management
            ("10.0.0.1", ICMP): (10, 0, 0),  # not for VMs
            ("10.0.0.1", TCP): (10, 0, 0),
        }
    for one in heard.frames:
        if one.kind == IPV4 and not one.outgoing:
            assert checksum(one.packet[:20]) == 0


def checksum(header: bytes) -> int:
    """Of a header with its own checksum in it: 0 if that is right (RFC 1071)."""
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, len(header), 2))
    return (total & 0xFFFF) + (total >> 16) ^ 0xFFFF


def test_a_guest_tags_for_itself_and_gets_tags_taken_off(net: Net) -> None:
    net.reaches("guest/eth0", "blue1/eth0")
    with net.hear("tor-a/esx01-vmnic1", "guest/eth0") as heard:
        net.ping("guest/eth0", "blue1/eth0", 3)
    asked = [one for one in heard.at("tor-a/esx01-vmnic1", outgoing=False) if one.kind == IPV4]
    assert {one.vid for one in asked} == {20}
    assert {one.vid for one in heard.at("guest/eth0") if one.kind == IPV4} == {None}
    # What is in another VLAN reaches the guest's port but not the guest.
    other = frame(net.macs["red1/eth0"], "in another VLAN", vid=10)
    with net.hear("tor-a/esx01-vmnic1", "guest/eth0") as heard:
        net.send("red1/eth0", frame(net.macs["red1/eth0"], "in another VLAN"))
    assert heard.copies(other, outgoing=True) == {"tor-a/esx01-vmnic1": 1}
    assert not heard.copies(other)
    assert not [one for one in heard.at("guest/eth0") if one.source == net.macs["red1/eth0"]]
