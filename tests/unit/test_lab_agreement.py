"""What two hosts' profiles come to for one migration, and the specification made of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import profiles
from testbed import topology as topologies
from testbed.errors import LabError
from testbed.lab.adapter_paths import adapter_paths, vmotion_paths
from testbed.lab.agreement import Options, agreed, as_asked, encrypts
from testbed.lab.engine_spec import path_rates, stream_specs, used, window_bytes
from testbed.lab.outcome import together_bps
from testbed.lab.path import Path

if TYPE_CHECKING:
    from testbed.topology.model import Host, Topology

TEXT = """\
name: agreement
switches: {tor: {}}
distributed_switches:
  DSwitch:
    uplinks: [uplink1, uplink2]
    portgroups:
      Management: {}
      vMotion-1: {teaming: {active: [uplink1]}}
      vMotion-2: {teaming: {active: [uplink2]}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4, mhz: 2000}
    memory: 4GiB
    nics:
      vmnic0: {switch: tor, rate: 40Gbit, uplink: DSwitch/uplink1}
      vmnic1: {switch: tor, rate: 1Gbit, uplink: DSwitch/uplink2}
    vmks:
      vmk0: {portgroup: Management, ip: "192.168.5.[11-12]/24", services: [management]}
      vmk1: {portgroup: vMotion-1, ip: "192.168.20.[11-12]/24", services: [vmotion]}
      vmk2: {portgroup: vMotion-2, ip: "192.168.20.[21-22]/24", services: [vmotion]}
vms: {}
"""


@pytest.fixture(scope="module")
def topology() -> Topology:
    return topologies.loads(TEXT, "agreement.yaml")


NAMES = st.sampled_from(profiles.names())


@given(NAMES, NAMES)
def test_neither_host_does_more_than_it_can(ours: str, theirs: str) -> None:
    source, destination = profiles.load(ours), profiles.load(theirs)
    found = agreed(source, destination)
    for one in (source, destination):
        if one.window_bytes is not None:
            assert found.window_bytes is not None
            assert found.window_bytes <= one.window_bytes
        assert found.vmks <= one.vmks
        assert found.helpers(40 * 10**9) <= one.helpers(40 * 10**9)
        assert found.timeout_ns <= one.timeout_ns
        if one.rtt_limit_ns is not None:
            assert found.rtt_limit_ns is not None
            assert found.rtt_limit_ns <= one.rtt_limit_ns
        if one.remaining_pages == "before resume":
            assert found.remaining_pages == "before resume"
        assert not found.quick_resume or one.quick_resume
    assert (found.switchover_goal_ns, found.trace_stop, found.sdps) == (
        source.switchover_goal_ns,
        source.trace_stop,
        source.sdps,
    )


def test_options_come_before_profiles() -> None:
    seven = profiles.load("vsphere-7.0")
    found = agreed(seven, seven, Options(quick_resume=False, sdps=not seven.sdps))
    assert (found.quick_resume, found.remaining_pages) == (False, "before resume")
    assert found.sdps is not seven.sdps
    assert agreed(seven, seven, Options(switchover_goal_ns=7)).switchover_goal_ns == 7


def with_profile(host: Host, name: str, **fields: Any) -> Host:
    return replace(host, profile=replace(profiles.load(name), **fields))


def test_encryption_is_what_both_hosts_agree_to(topology: Topology) -> None:
    here, there = topology.hosts
    old, new = with_profile(here, "vsphere-6.0"), with_profile(there, "vsphere-7.0")
    must = with_profile(there, "vsphere-7.0", encryption="required")
    assert encrypts(new, new, None)  # opportunistic
    assert not encrypts(old, new, "opportunistic")
    assert not encrypts(new, new, "disabled")
    assert encrypts(here, there, "required")  # which model nothing
    assert not encrypts(here, there, None)
    for source, destination, asked, words in (
        (old, new, "required", "profile vsphere-6.0 of esx01 has none"),
        (new, must, "disabled", "requires it"),
    ):
        with pytest.raises(LabError, match=words):
            encrypts(source, destination, asked)  # type: ignore[arg-type]


def test_a_profile_that_costs_cpu_needs_a_clock_rate(topology: Topology) -> None:
    host, asked = topology.hosts[0], Options(profile="esx-4.0")
    assert as_asked(host, asked, Fraction(1)).profile.name == "esx-4.0"
    assert as_asked(host, Options(), Fraction(1)) is host
    with pytest.raises(LabError, match="add mhz"):
        as_asked(replace(host, mhz=None), asked, Fraction(1))


def test_each_adapter_has_a_partner_and_streams_are_pinned_to_them(topology: Topology) -> None:
    here, there = topology.hosts
    paths = vmotion_paths(here, there)
    assert [(one.source_vmk, one.destination_vmk) for one in paths] == [
        ("vmk1", "vmk1"),
        ("vmk2", "vmk2"),
    ]
    (management,) = adapter_paths(here, there, "management")
    assert management.source_address == "192.168.5.11"
    rates = path_rates(topology, here.name, there.name, paths, {})
    assert rates == [40 * 10**9, 10**9]
    # One helper for each 15 Gb/s of a NIC: three and one.
    streams = stream_specs(profiles.load("vsphere-7.0"), paths, rates, None)
    assert [one.source_device for one in streams] == ["vmk1", "vmk2", "vmk1", "vmk1"]
    assert {one.source_address for one in streams[:2]} == {"192.168.20.11", "192.168.20.21"}
    assert len(stream_specs(profiles.load("vsphere-7.0"), paths, rates, 4)) == 8
    (alone,) = stream_specs(profiles.load("esx-4.0"), paths[:1], rates[:1], None)
    assert alone.source_device is None


def test_an_old_profile_uses_one_adapter() -> None:
    assert used(profiles.load("esx-4.0"), [10**9, 10**9]) == [0]
    assert used(profiles.load("vsphere-5.0"), [10**9] * 20) == list(range(16))
    assert used(profiles.load("vsphere-5.0"), [10**10] * 6) == list(range(4))


def test_a_window_grows_to_the_path_unless_a_path_is_not_known() -> None:
    new, old = profiles.load("vsphere-6.0"), profiles.load("esx-4.0")
    product_bytes = 10**10 // 8 // 10  # 10 Gb/s at 100 ms
    grown = window_bytes(new, [10**10, 10**9], [10**8, 10**6])
    assert grown is not None
    assert product_bytes <= grown < 1.01 * product_bytes + (1 << 20)
    assert window_bytes(new, [10**10, None], [10**8, 10**8]) is None
    assert window_bytes(old, [10**10], [10**8]) == 263536


def test_paths_that_share_a_nic_share_its_rate() -> None:
    def way(*uplinks: str) -> Path:
        return Path(("tor",), (), 1500, (uplinks[0], uplinks[1]))

    apart = [way("vmnic0", "vmnic0"), way("vmnic1", "vmnic1")]
    meeting = [way("vmnic0", "vmnic0"), way("vmnic1", "vmnic0")]
    assert together_bps(apart, [10, 10]) == 20
    assert together_bps(meeting, [10, 10]) == 10
    assert together_bps([None, *apart[:1]], [None, 10]) is None
