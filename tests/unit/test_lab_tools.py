"""From where to where the tools look, judged on plans alone: no lab runs."""

from __future__ import annotations

import pytest

from testbed import topology as topologies
from testbed.errors import InputError, MeasurementError
from testbed.lab.capture_point import capture_point
from testbed.lab.journal import Journal
from testbed.lab.planning import plan_here
from testbed.lab.switch_ports import switch_ports
from testbed.lab.tool_ends import destinations, device_of, ends, mtu_of, node_of_address
from testbed.report.port_view import UPLINK, VM, VMKERNEL

TEXT = """\
name: tools
switches: {tor-a: {mtu: 9000}, tor-b: {mtu: 9000}}
links: [{between: [tor-a, tor-b]}]
routers: {core: {interfaces: {tor-a: {ip: 192.168.10.1/24}, tor-b: {ip: 192.168.30.1/24}}}}
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch: {mtu: 9000, uplinks: [uplink1, uplink2], portgroups: {Management: {}, vMotion: {}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics:
      vmnic0: {switch: "tor-[a,b]", mtu: 9000, uplink: DSwitch/uplink1}
      vmnic1: {switch: "tor-[a,b]", mtu: 9000, uplink: DSwitch/uplink2}
      vmnic2: {switch: "tor-[a,b]"}
    vswitches: {vSwitch0: {uplinks: [vmnic2], portgroups: {VM-Network: {}}}}
    vmks:
      vmk0:
        portgroup: Management
        ip: ["192.168.10.[11-12]/24", "fd00:10::[11-12]/64"]
        gateway: 192.168.10.1
        services: [management]
      vmk1:
        portgroup: vMotion
        ip: "192.168.20.[11-12]/24"
        services: [vmotion]
        mtu: 9000
        netstack: vmotion
vms:
  db01:
    host: esx01
    memory: 16MiB
    datastore: shared01
    nics: [{portgroup: VM-Network, ip: 192.168.50.50/24}]
"""


@pytest.fixture(scope="module")
def journal() -> Journal:
    return of({})


def of(placement: dict[str, str]) -> Journal:
    topology = topologies.loads(TEXT, "tools.yaml")
    return Journal("up", "tools.yaml", TEXT, plan_here(topology, placement), placement)


# ---------------------------------------------------------------- where a tool sends from and to


def test_an_adapter_sends_from_its_own_address(journal: Journal) -> None:
    ours, theirs = ends(journal, "esx01", "vmk0", "esx02/vmk0")
    assert (ours.address, ours.device, theirs.address) == ("192.168.10.11", "vmk0", "192.168.10.12")
    assert ours.netns_path == "/run/netns/tb.tools.esx01"
    ours, theirs = ends(journal, "esx01", "vmk0", "fd00:10::12")
    assert (ours.address, theirs.address) == ("fd00:10::11", "fd00:10::12")


def test_a_stack_sends_by_its_own_adapter(journal: Journal) -> None:
    ours, _ = ends(journal, "esx01", None, "esx02/vmk1", "vmotion")
    assert (ours.address, ours.device) == ("192.168.20.11", "vmk1")
    with pytest.raises(InputError, match=r"vmk0 of esx01 isn't in its stack 'vmotion'"):
        ends(journal, "esx01", "vmk0", "esx02/vmk1", "vmotion")
    with pytest.raises(InputError, match="it has: default, vmotion"):
        ends(journal, "esx01", None, "esx02/vmk1", "provisioning")


def test_without_a_route_nothing_is_sent(journal: Journal) -> None:
    ends(journal, "esx01", "vmk0", "10.9.9.9")  # it has a gateway
    with pytest.raises(MeasurementError, match=r"from vmk1 to 10\.9\.9\.9: no route"):
        ends(journal, "esx01", "vmk1", "10.9.9.9")
    with pytest.raises(MeasurementError, match="no route"):  # the gateway is IPv4's alone
        ends(journal, "esx01", "vmk0", "fd00:99::1")
    with pytest.raises(InputError, match="no address of the IP version"):
        ends(journal, "esx01", "vmk1", "fd00:99::1")


def test_names_and_addresses_are_found_both_ways(journal: Journal) -> None:
    plan = journal.plan
    assert destinations(plan, "esx02/vmk1") == (("192.168.20.12", 4),)
    assert destinations(plan, "fd00::1") == (("fd00::1", 6),)
    with pytest.raises(InputError, match="names no single adapter"):
        destinations(plan, "esx02")
    assert device_of(plan, "esx02", "192.168.20.12") == "vmk1"
    assert device_of(plan, "esx01", "192.168.20.12") is None
    assert mtu_of(plan, "tb.tools.esx01", "vmk1") == 9000
    assert mtu_of(plan, "tb.tools.esx01", "vmk0") == 1500
    assert mtu_of(plan, "tb.tools.db01", "eth0") == 1500
    assert mtu_of(plan, "tb.tools.db01", "eth9") is None
    names = node_of_address(plan)
    assert names["192.168.10.1"] == names["192.168.30.1"] == "core"
    assert names["192.168.20.12"] == "esx02/vmk1"


# ---------------------------------------------------------------- ports of virtual switches


def test_ports_have_esxi_s_types_and_numbers_of_their_own(journal: Journal) -> None:
    ports = switch_ports(journal, "esx01")
    assert {p.port.client: (p.port.kind, p.port.switch) for p in ports} == {
        "vmnic0": (UPLINK, "DSwitch"),
        "vmnic1": (UPLINK, "DSwitch"),
        "vmnic2": (UPLINK, "vSwitch0"),
        "vmk0": (VMKERNEL, "DSwitch"),
        "vmk1": (VMKERNEL, "DSwitch"),
        "db01.eth0": (VM, "vSwitch0"),
    }
    assert len({p.port.number for p in ports}) == len(ports)
    assert {p.port.number >> 24 for p in ports} == {2, 3}
    by_client = {p.port.client: p for p in ports}
    assert by_client["vmk1"].adapter == ("tb.tools.esx01", "vmk1")
    assert by_client["vmnic0"].adapter is None
    assert by_client["vmk1"].uplinks == ("vmnic0", "vmnic1")
    assert by_client["db01.eth0"].dev == "db01-eth0"
    topology = topologies.loads(TEXT, "tools.yaml")
    assert by_client["db01.eth0"].port.mac == topology.vm("db01").nics[0].mac


def test_a_vm_that_has_moved_is_where_it_runs() -> None:
    moved = of({"db01": "esx02"})
    where = [p.host for p in switch_ports(moved) if p.port.client == "db01.eth0"]
    assert where == ["esx02"]
    with pytest.raises(InputError, match="no host 'esx09'; it has: esx01, esx02"):
        switch_ports(moved, "esx09")


# ---------------------------------------------------------------- where a capture listens


@pytest.mark.parametrize(
    ("name", "link", "port"),
    [
        ("esx01/vmnic0", "esx01 vmnic0", "esx01 vmnic0"),
        ("esx01/vmk1", "esx01 vmk1", "esx01 vmk1-port"),
        ("esx01/vmk1-port", "esx01 vmk1-port", "esx01 vmk1-port"),
        ("db01/eth0", "db01 eth0", "esx01 db01-eth0"),
        ("tor-a/esx01-vmnic0", "tor-a esx01-vmnic0", "tor-a esx01-vmnic0"),
        ("core/tor-a", "core tor-a", "tor-a core"),
        ("esx01/DSwitch", "esx01 DSwitch", None),
    ],
)
def test_an_adapter_and_the_port_that_it_is_plugged_into(
    journal: Journal, name: str, link: str, port: str | None
) -> None:
    def there(words: str) -> tuple[str, str]:
        node, dev = words.split()
        return f"tb.tools.{node}", dev

    point = capture_point(journal.plan, name)
    assert point.link == there(link)
    assert point.port == (there(port) if port else None)


def test_what_there_is_not_is_answered_with_what_there_is(journal: Journal) -> None:
    with pytest.raises(InputError, match=r"esx01 has no adapter 'vmk9'; it has: .*vmk1, vmk1-port"):
        capture_point(journal.plan, "esx01/vmk9")
    with pytest.raises(InputError, match=r"no node 'esx09'; it has: .*esx01"):
        capture_point(journal.plan, "esx09/vmk0")
