"""Which migrations are refused, with every reason at once, and which path they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import pytest

from testbed import topology as topologies
from testbed.errors import InputError, LabError
from testbed.lab.adapter_paths import AdapterPath, vmotion_paths
from testbed.lab.adapters import adapter, adapters, common_addresses
from testbed.lab.admission import reasons_against
from testbed.lab.path import Path, find_path
from testbed.plan.compile import compile_plan

if TYPE_CHECKING:
    from testbed.topology.model import Topology

TEXT = """\
name: admission
switches: {core: {mtu: 9000}, "tor-[a,b,c]": {mtu: 9000}}
links:
  - {between: [tor-a, core], rate: 40Gbit}
  - {between: [tor-b, core], rate: 5Gbit}
datastores: {shared01: {hosts: [esx01, esx02]}}
distributed_switches:
  DSwitch: {mtu: 9000, uplinks: [uplink1], portgroups: {vMotion: {}, VM-Network: {}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 4GiB
    nics: {vmnic0: {switch: "tor-[a,b]", rate: 10Gbit, mtu: 9000, uplink: DSwitch/uplink1}}
    vmks:
      vmk1:
        portgroup: vMotion
        ip: ["192.168.20.[11-12]/24", "fd00:20::[11-12]/64"]
        services: [vmotion]
        mtu: 9000
  esx03:
    cpu: {cores: 1}
    memory: 1GiB
    nics: {vmnic0: {switch: tor-c, rate: 10Gbit, mtu: 1500}}
    vswitches: {vSwitch0: {mtu: 1500, uplinks: [vmnic0], portgroups: {Other: {}}}}
vms:
  db01:
    host: esx01
    memory: 2GiB
    vcpus: 2
    datastore: shared01
    nics: [{portgroup: VM-Network, ip: "192.168.10.50/24"}]
"""


@pytest.fixture(scope="module")
def topology() -> Topology:
    return topologies.loads(TEXT, "admission.yaml")


def test_a_move_that_may_be_made(topology: Topology) -> None:
    assert reasons_against(topology, {}, topology.vm("db01"), topology.host("esx02")) == ()


def test_a_move_to_where_it_is(topology: Topology) -> None:
    (reason,) = reasons_against(topology, {}, topology.vm("db01"), topology.host("esx01"))
    assert "runs on esx01 already" in reason
    placed = {"db01": "esx02"}
    assert reasons_against(topology, placed, topology.vm("db01"), topology.host("esx01")) == ()


def test_every_reason_is_given_at_once(topology: Topology) -> None:
    reasons = reasons_against(topology, {}, topology.vm("db01"), topology.host("esx03"))
    for word in ("1 GiB of memory free", "1 cores", "shared01", "'VM-Network'", "vmotion service"):
        assert any(word in reason for reason in reasons), word
    assert len(reasons) == 5


def test_room_counts_what_has_moved_there(topology: Topology) -> None:
    two = topologies.loads(
        TEXT.replace("  db01:", '  "db[01-02]":').replace("host: esx01", 'host: "esx[01-02]"')
        .replace("10.50/24", "10.[50-51]/24").replace("memory: 4GiB", "memory: 3GiB"),
        "two.yaml",
    )  # fmt: skip
    (reason,) = reasons_against(two, {}, two.vm("db01"), two.host("esx02"))
    assert "1 GiB of memory free" in reason
    away = {"db02": "esx01"}
    assert reasons_against(two, away, two.vm("db01"), two.host("esx02")) == ()
    # Nor does it lend the room of one that is on its way.
    (reason,) = reasons_against(two, away, two.vm("db01"), two.host("esx02"), ["db02"])
    assert "1 GiB of memory free" in reason


def test_a_host_needs_room_for_what_is_not_swapped() -> None:
    text = TEXT.replace("memory: 4GiB", "memory: 1GiB").replace(
        "memory: 2GiB", "memory: 1536MiB\n    reservation: 50%"
    )
    over = topologies.loads(text, "over.yaml")
    assert over.vm("db01").resident_bytes == 1 << 30
    assert reasons_against(over, {}, over.vm("db01"), over.host("esx02")) == ()
    smaller = replace(over.host("esx02"), memory_bytes=(1 << 30) - 4096)
    (reason,) = reasons_against(over, {}, over.vm("db01"), smaller)
    assert "of memory free and db01 needs 1 GiB" in reason


def test_a_host_has_what_its_vms_hold_and_not_only_what_they_reserve() -> None:
    """Both reserve half of 2 GiB, so 3 GiB could take them; but nothing is reclaimed."""
    two = TEXT.replace("  db01:", '  "db[01-02]":').replace("host: esx01", 'host: "esx[01-02]"')
    two = two.replace("10.50/24", "10.[50-51]/24").replace("memory: 4GiB", "memory: 3GiB")
    topology = topologies.loads(two.replace("2GiB", "2GiB\n    reservation: 50%"), "two.yaml")
    (reason,) = reasons_against(topology, {}, topology.vm("db01"), topology.host("esx02"))
    assert "1 GiB of memory free" in reason
    assert "running VMs keep the memory that they have" in reason


def test_the_vmotion_path_and_its_slowest_link(topology: Topology) -> None:
    path = vmotion_paths(topology.host("esx01"), topology.host("esx02"))[0]
    assert (path.source_address, path.destination_address) == ("192.168.20.11", "192.168.20.12")
    physical = way(topology, path)
    assert physical is not None
    assert physical.nodes == ("tor-a", "core", "tor-b")
    assert physical.rate_bps == 5 * 10**9
    # 5 Gb/s of jumbo frames: 8948 of 9038 bytes of line time are TCP payload.
    assert physical.goodput_bps(4) == 5 * 10**9 * 8948 // 9038


def test_packets_smaller_than_the_links_get_what_the_links_let_through() -> None:
    """Measured once on a 100 Mb/s link of MTU 9000: 95.6 Mb/s at MTU 1500, not 94.1."""
    path = Path(("tor",), ((100_000_000, 9000),), 1500)
    assert path.goodput_bps(4) == pytest.approx(95.39e6, rel=1e-3)
    same = Path(("tor",), ((100_000_000, 1500),), 1500)
    assert same.goodput_bps(4) == pytest.approx(94.148e6, rel=1e-5)


def way(topology: Topology, path: AdapterPath) -> Path | None:
    return find_path(
        topology,
        ("esx01", path.source_vmk, path.source_network),
        ("esx02", path.destination_vmk, path.destination_network),
        path.mtu,
    )


def test_a_router_is_no_short_cut_within_a_network() -> None:
    routers = "routers: {r1: {interfaces: {tor-a: {ip: 10.1.0.1/24}, tor-b: {ip: 10.2.0.1/24}}}}"
    shortcut = topologies.loads(TEXT.replace("links:\n", f"{routers}\nlinks:\n"), "shortcut.yaml")
    path = vmotion_paths(shortcut.host("esx01"), shortcut.host("esx02"))[0]
    physical = way(shortcut, path)
    assert physical is not None
    assert physical.nodes == ("tor-a", "core", "tor-b")
    assert physical.rate_bps == 5 * 10**9


def test_two_networks_are_joined_by_the_router_between_them() -> None:
    routed = topologies.load(FilePath("topologies/routed.yaml"))
    path = vmotion_paths(routed.host("esx01"), routed.host("esx02"))[0]
    physical = way(routed, path)
    assert physical is not None
    assert physical.nodes == ("leaf-1", "core", "leaf-2")


def test_a_route_of_its_own_leads_there_as_a_gateway_does() -> None:
    text = FilePath("topologies/routed.yaml").read_text()
    plain = text.replace('        gateway: ["192.168.[21,22].1", "fd00:[21,22]::1"]\n', "")
    unrouted = topologies.loads(plain, "unrouted.yaml")
    with pytest.raises(LabError, match="no gateway or route to"):
        vmotion_paths(unrouted.host("esx01"), unrouted.host("esx02"))[0]
    routes = '        routes: [{to: "fd00:[22,21]::/64", via: "fd00:[21,22]::1"}]\n'
    anchor = "        services: [vmotion]\n"
    routed = topologies.loads(plain.replace(anchor, anchor + routes), "own-routes.yaml")
    path = vmotion_paths(routed.host("esx01"), routed.host("esx02"))[0]
    assert path.ip_version == 6  # the IPv4 addresses have no way


def test_no_vmotion_adapter_no_path(topology: Topology) -> None:
    with pytest.raises(LabError, match="no address"):
        vmotion_paths(topology.host("esx01"), topology.host("esx03"))[0]


def test_adapters_by_name(topology: Topology) -> None:
    plan = compile_plan(topology, cpus=2)
    assert set(adapters(plan)) == {"esx01/vmk1", "esx02/vmk1", "db01/eth0"}
    assert adapter(plan, "esx01/vmk1").addresses == (("192.168.20.11", 4), ("fd00:20::11", 6))
    assert adapter(plan, "db01") == adapter(plan, "db01/eth0")
    with pytest.raises(InputError, match="esx01/vmk1"):
        adapter(plan, "esx01/vmk7")
    assert common_addresses(adapter(plan, "esx01"), adapter(plan, "db01")) == (
        "192.168.20.11",
        "192.168.10.50",
    )


WITH_NIOC = (
    TEXT.replace(
        "portgroups: {vMotion: {}, VM-Network: {}}}",
        "nioc: {virtualMachine: {shares: high, reservation: 1Gbit}, vmotion: {limit: 2Gbit}},"
        " portgroups: {vMotion: {}, VM-Network: {}}}",
    ).replace(
        'ip: "192.168.10.50/24"}',
        'ip: "192.168.10.50/24", bandwidth: {reservation: 600Mbit}}',
    )
    + """\
  db02:
    host: esx02
    memory: 1GiB
    vcpus: 1
    datastore: shared01
    nics: [{portgroup: VM-Network, ip: 192.168.10.51/24, bandwidth: {reservation: 500Mbit}}]
"""
)


def test_a_host_takes_no_more_bandwidth_reservations_than_it_can_keep() -> None:
    topology = topologies.loads(WITH_NIOC, "admission.yaml")
    there = {"db01": "esx01", "db02": "esx02"}
    (reason,) = reasons_against(topology, there, topology.vm("db01"), topology.host("esx02"))
    assert "500 Mbit/s of virtualMachine's reservation on DSwitch free" in reason
    assert "db01 reserves 600 Mbit/s" in reason
    alone = {"db01": "esx01", "db02": "esx01"}
    assert not reasons_against(topology, alone, topology.vm("db01"), topology.host("esx02"))


def test_a_limit_of_the_traffic_type_bounds_what_the_path_carries() -> None:
    topology = topologies.loads(WITH_NIOC, "admission.yaml")
    ends = [(h, "vmk1", topology.host(h).vmks[0].addresses[0]) for h in ("esx01", "esx02")]
    path = find_path(topology, ends[0], ends[1], 9000)
    assert path is not None
    assert path.rate_bps == pytest.approx(2 * 10**9, rel=1e-6)


def test_shaping_bounds_what_one_end_sends_and_the_other_receives() -> None:
    shaped = "vMotion: {shaping: {egress: %s, ingress: %s}}"
    rate = "{average: %s, peak: 9Gbit, burst: 1MB}"
    for egress, ingress, least in (("1Gbit", "2Gbit", 1), ("3Gbit", "2Gbit", 2)):
        group = shaped % (rate % egress, rate % ingress)
        topology = topologies.loads(TEXT.replace("vMotion: {}", group), "admission.yaml")
        physical = way(topology, vmotion_paths(topology.host("esx01"), topology.host("esx02"))[0])
        assert physical is not None
        assert physical.rate_bps == least * 10**9
