"""Preflight on a lab that stands: echoes between its vMotion adapters, and what breaks them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from testbed.lab.adapter_paths import vmotion_paths
from testbed.lab.directory import LabDirectory
from testbed.lab.journal import Journal
from testbed.lab.preflight import End, Preflight, preflight
from tests.end_to_end.wires import MS, Net, standing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

TEXT = """\
name: checked
profile: vsphere-5.0
switches: {"tor-[a,b]": {mtu: 9000}}
links: [{between: [tor-a, tor-b], rate: 1Gbit}]
distributed_switches:
  DSwitch: {mtu: 9000, uplinks: [uplink1], portgroups: {One: {vlan: 20}, Two: {vlan: 21}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4, mhz: 2600}
    memory: 1GiB
    nics: {vmnic0: {switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}}
    vmks:
      vmk1: {portgroup: One, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}
      vmk2: {portgroup: Two, ip: "fd00::[11-12]/64", services: [vmotion]}
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with standing(TEXT) as found:
        yield found


def checked(*, forced: bool = False) -> Preflight:
    topology = Journal.read(LabDirectory("checked").journal).topology()
    ends = [End(host, f"tb.checked.{host.name}") for host in topology.hosts]
    paths = vmotion_paths(*topology.hosts)
    assert [(path.ip_version, path.mtu) for path in paths] == [(4, 9000), (6, 1500)]
    return asyncio.run(preflight(ends[0], ends[1], paths, forced=forced))


def test_all_is_well_and_quickly_so(net: Net) -> None:
    checked()  # neighbours are found
    start = time.monotonic()
    found = checked()
    assert time.monotonic() - start < 1  # 0.1 s is the aim; ten times that on a busy machine
    assert (found.refusals, found.notes) == ((), ())
    assert [way.source for way in found.ways] == [
        "esx01/vmk1", "esx02/vmk1", "esx01/vmk2", "esx02/vmk2",
    ]  # fmt: skip
    assert all(0 < rtt_ns < 10 * MS for rtt_ns in found.rtts_ns)


def test_a_narrow_hop_is_found_before_pages_vanish_in_it(net: Net) -> None:
    net.link("tor-a", "tor-b", mtu=1500)
    try:
        reasons = checked().refusals
    finally:
        net.link("tor-a", "tor-b", mtu=9000)
    assert len(reasons) == 2  # both ways; the other path's packets are small enough
    assert all("packets of 9000 bytes" in reason for reason in reasons)


def test_distance_is_judged_by_the_profile(net: Net) -> None:
    net.link("tor-a", "tor-b", delay_ns=15 * MS)
    try:
        refused, forced = checked(), checked(forced=True)
    finally:
        net.link("tor-a", "tor-b", delay_ns=0)
    assert all(28 * MS < rtt_ns < 300 * MS for rtt_ns in refused.rtts_ns)
    assert len(refused.refusals) == len(forced.notes) == 2
    assert "profile vsphere-5.0 supports 10 ms" in refused.refusals[0]
    assert forced.refusals == ()


def test_a_cut_link_is_a_reason(net: Net) -> None:
    net.link("esx02/vmnic0", "tor-b", up=False)
    try:
        reasons = checked().refusals
    finally:
        net.link("esx02/vmnic0", "tor-b", up=True)
    assert len(reasons) == 4
    assert "esx01/vmk1 gets no answer from esx02/vmk1 (192.168.20.12)" in reasons[0]
