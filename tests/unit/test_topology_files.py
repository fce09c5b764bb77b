"""The shipped topologies load, and say what their files say."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from testbed.guest.workloads import Writer
from testbed.topology import json_schema, load, loads

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
FILES = sorted(TOPOLOGIES.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_topology_loads_under_its_own_name(path: Path) -> None:
    topology = load(path)
    assert topology.name == path.stem
    assert topology.text == path.read_text()
    assert topology.file == str(path)
    macs = [u.mac for h in topology.hosts for u in h.uplinks]
    macs += [v.mac for h in topology.hosts for v in h.vmks]
    macs += [n.mac for v in topology.vms for n in v.nics]
    macs += [i.mac for r in topology.routers for i in r.interfaces]
    assert len(set(macs)) == len(macs)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_topology_names_its_schema_and_question(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=topology.schema.json"
    header = [line for line in lines if line.startswith("#")]
    assert any("?" in line for line in header)


def test_the_shipped_schema_is_the_generated_one() -> None:
    shipped = json.loads((TOPOLOGIES / "topology.schema.json").read_text())
    assert shipped == json_schema(), "run: testbed schema > topologies/topology.schema.json"


def test_every_key_of_the_schema_is_described() -> None:
    schema = json_schema()
    for name, model in {"": schema, **schema["$defs"]}.items():
        assert model["additionalProperties"] is False, name
        for key, of in model["properties"].items():
            assert len(of.get("description", "")) > 10, f"{name}.{key}"


def test_the_quickstart_is_the_lab_that_the_readme_promises() -> None:
    lab = load(TOPOLOGIES / "quickstart.yaml")
    assert [h.name for h in lab.hosts] == ["esx01", "esx02"]
    assert [h.uplinks[0].switch for h in lab.hosts] == ["tor-a", "tor-b"]
    assert lab.links[0].ends == ("tor-a", "tor-b")
    for number, host in enumerate(lab.hosts):
        (vmk,) = host.vmks_for("vmotion")
        assert vmk.addresses == (IPNetwork(f"192.168.20.{11 + number}/24"),)
        assert vmk.mtu == host.uplinks[0].mtu == lab.switches[0].mtu == 9000
        assert host.uplinks[0].rate_bps == 10**10
        assert host.vswitch_of("VM-Network") is host.vswitches[0]
        assert host.vswitches[0].uplinks == ("vmnic0",)
    db01 = lab.vm("db01")
    assert (db01.memory_bytes, db01.vcpus, db01.host) == (2**30, 2, "esx01")
    assert db01.workloads == (Writer("uniform", 200_000_000, 2**30 // 5 // 4096 * 4096),)
    assert db01.nics[0].mtu == 9000


def test_both_families_and_gateways_follow_the_host_pattern() -> None:
    lab = load(TOPOLOGIES / "routed.yaml")
    vmk = lab.host("esx02").vmks[0]
    assert vmk.addresses == (IPNetwork("192.168.22.11/24"), IPNetwork("fd00:22::11/64"))
    assert vmk.gateways == (IPAddress("192.168.22.1"), IPAddress("fd00:22::1"))
    assert lab.switches[1].site == "b"
    assert {i.mtu for i in lab.routers[0].interfaces} == {9000}


def test_scale_divides_memory_and_rates_and_nothing_else() -> None:
    text = (TOPOLOGIES / "evacuation.yaml").read_text()
    small, full = loads(text, "f"), loads(text.replace("scale: 1/10", "scale: 1"), "f")
    assert (small.scale, full.scale) == (Fraction(1, 10), 1)
    for less, more in zip(small.hosts, full.hosts, strict=True):
        assert less.memory_bytes * 10 == more.memory_bytes
        assert (less.uplinks[0].rate_bps or 0) * 10 == more.uplinks[0].rate_bps
        assert less.uplinks[0].mtu == more.uplinks[0].mtu
        assert less.cores == more.cores
    for vm, whole in zip(small.vms, full.vms, strict=True):
        assert vm.memory_bytes * 10 == whole.memory_bytes
        (less_work,), (more_work,) = vm.workloads, whole.workloads
        assert isinstance(less_work, Writer)
        assert isinstance(more_work, Writer)
        assert less_work.dirty_rate_bytes_per_s * 10 == more_work.dirty_rate_bytes_per_s
        assert less_work.working_set_bytes == vm.memory_bytes // 10 // 4096 * 4096
        assert vm.vcpus == whole.vcpus


def test_a_working_set_in_bytes_is_scaled_too() -> None:
    text = (TOPOLOGIES / "evacuation.yaml").read_text().replace("working_set: 10%", "@")
    lab = loads(text.replace("@", "working_set: 400MiB"), "f")
    assert {
        w.working_set_bytes for vm in lab.vms for w in vm.workloads if isinstance(w, Writer)
    } == {40 * 2**20}


def test_mac_addresses_are_the_same_every_time_and_differ_between_labs() -> None:
    text = (TOPOLOGIES / "quickstart.yaml").read_text()
    first, again = loads(text, "f"), loads(text, "f")
    other = loads(text.replace("name: quickstart", "name: other"), "f")
    assert first == again
    assert first.vms[0].nics[0].mac != other.vms[0].nics[0].mac
    assert first.hosts[0].uplinks[0].mac != other.hosts[0].uplinks[0].mac
    for lab in (first, other):
        assert lab.vms[0].nics[0].mac.startswith("00:50:56:")
        assert int(lab.vms[0].nics[0].mac[9:11], 16) <= 0x3F
        assert int(lab.hosts[0].uplinks[0].mac[:2], 16) & 3 == 2


def test_a_given_mac_address_is_kept_and_avoided() -> None:
    text = (TOPOLOGIES / "quickstart.yaml").read_text()
    taken = loads(text, "f").hosts[0].vmks[0].mac
    vm_nic = "{portgroup: VM-Network, "
    lab = loads(text.replace(vm_nic, f"{vm_nic}mac: {taken}, "), "f")
    assert lab.vms[0].nics[0].mac == taken
    assert lab.hosts[0].vmks[0].mac != taken
