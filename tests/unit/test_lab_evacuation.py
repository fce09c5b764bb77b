"""Where the VMs of a host go when it is emptied."""

from __future__ import annotations

from testbed import topology as topologies
from testbed.lab.admission import reasons_against
from testbed.lab.evacuation import choose

TEXT = """\
name: evacuation
switches: {tor: {}}
datastores: {shared01: {hosts: "esx[01-04]"}}
distributed_switches:
  DSwitch: {uplinks: [uplink1], portgroups: {vMotion: {}, VM-Network: {}}}
hosts:
  esx01: &host
    cpu: {cores: 4}
    memory: 8GiB
    nics: {vmnic0: {switch: tor, uplink: DSwitch/uplink1}}
    vmks: {vmk1: {portgroup: vMotion, ip: 192.168.20.11/24, services: [vmotion]}}
  esx02:
    cpu: {cores: 4}
    memory: 4GiB
    nics: {vmnic0: {switch: tor, uplink: DSwitch/uplink1}}
    vmks: {vmk1: {portgroup: vMotion, ip: 192.168.20.12/24, services: [vmotion]}}
  esx03:
    cpu: {cores: 2}
    memory: 3GiB
    nics: {vmnic0: {switch: tor, uplink: DSwitch/uplink1}}
    vmks: {vmk1: {portgroup: vMotion, ip: 192.168.20.13/24, services: [vmotion]}}
  esx04:
    cpu: {cores: 4}
    memory: 8GiB
    nics: {vmnic0: {switch: tor, uplink: DSwitch/uplink1}}
vms:
  large: {host: esx01, memory: 3GiB, vcpus: 4, datastore: shared01}
  "small[1-4]": {host: esx01, memory: 1GiB, datastore: shared01}
  there: {host: esx03, memory: 1GiB, datastore: shared01}
""".replace(" &host", "")


def test_every_vm_finds_a_host_that_may_take_it_and_none_is_overfilled() -> None:
    topology = topologies.loads(TEXT, "evacuation.yaml")
    found = choose(topology, {}, "esx01")
    moves = dict(found.moves)
    # The large one comes first, while there is room for its four vCPUs; esx04 has no vMotion vmk.
    assert found.moves[0] == ("large", "esx02")
    assert sorted(host for vm, host in found.moves[1:]) == ["esx02", "esx03", "esx03"]
    ((stuck, cause),) = found.stuck
    assert stuck == "small4"
    for words in ("esx02 has 0 B of memory free", "esx03 has 0 B", "no vmk with the vmotion"):
        assert words in cause
    # In the order of the moves each is admitted as it comes.
    where = {vm.name: vm.host for vm in topology.vms}
    for vm, host in found.moves:
        assert not reasons_against(topology, where, topology.vm(vm), topology.host(host))
        where[vm] = host
    assert set(moves) | {stuck} == {"large", "small1", "small2", "small3", "small4"}


def test_a_closed_host_takes_none_and_an_empty_one_has_none_to_move() -> None:
    topology = topologies.loads(TEXT, "evacuation.yaml")
    found = choose(topology, {}, "esx01", closed=["esx02", "esx03"])
    assert found.moves == ()
    assert len(found.stuck) == 5
    assert choose(topology, {}, "esx04") == choose(topology, {}, "esx02")
    away = {vm.name: "esx02" for vm in topology.vms}
    assert choose(topology, away, "esx01").moves == ()


def test_a_host_in_maintenance_mode_is_a_reason_against() -> None:
    topology = topologies.loads(TEXT, "evacuation.yaml")
    vm, host = topology.vm("small1"), topology.host("esx02")
    (reason,) = reasons_against(topology, {}, vm, host, closed=["esx02"])
    assert "'testbed evacuate esx02 --exit'" in reason
