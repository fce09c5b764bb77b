"""The security policies of port groups: whose address a port may send from, and what it hears."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.labs import run
from tests.end_to_end.wires import Net, frame, standing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

TEXT = """\
name: guarded
switches: {tor: {}}
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    uplinks: [uplink1]
    portgroups:
      Strict: {vlan: 10}
      Open: {vlan: 10, security: {forged_transmits: accept, mac_changes: accept}}
      Watching: {vlan: 10, security: {promiscuous: accept}}
      Watching-20: {vlan: 20, security: {promiscuous: accept}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics: {vmnic0: {switch: tor, rate: 1Gbit, uplink: DSwitch/uplink1}}
vms:
  "strict[1-2]": {host: "esx[01-02]", memory: 16MiB, datastore: shared01,
                nics: [{portgroup: Strict, ip: "192.168.10.[11-12]/24"}]}
  "open[1-2]": {host: "esx[01-02]", memory: 16MiB, datastore: shared01,
              nics: [{portgroup: Open, ip: "192.168.10.[21-22]/24"}]}
  watcher: {host: esx01, memory: 16MiB, datastore: shared01,
            nics: [{portgroup: Watching}, {portgroup: Watching-20}, {portgroup: Strict}]}
"""
OTHER = "02:00:00:00:00:66"


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with standing(TEXT) as found:
        yield found


@pytest.mark.parametrize(("vm", "passes"), [("strict1", False), ("open1", True)])
def test_forged_transmits(net: Net, vm: str, passes: bool) -> None:
    forged = frame(OTHER, f"forged by {vm}")
    honest = frame(net.macs[f"{vm}/eth0"], f"sent by {vm}")
    there = ("strict2/eth0-esx02", "open2/eth0-esx02", "esx01/vmnic0")
    with net.hear(*there) as heard:
        net.send(f"{vm}/eth0", forged, honest)
    assert set(heard.copies(honest)) == set(there[:2])
    assert set(heard.copies(forged)) == (set(there[:2]) if passes else set())


@pytest.mark.parametrize(("vm", "reached"), [("strict1", False), ("open1", True)])
def test_mac_changes(net: Net, vm: str, reached: bool) -> None:
    """A guest that takes another address hears nothing sent to it, unless that is accepted."""
    own = net.macs[f"{vm}/eth0"]
    assert net.reaches("strict2/eth0", f"{vm}/eth0")

    def becomes(mac: str) -> None:
        run("exec", "guarded", vm, "--", "ip", "link", "set", "eth0", "address", mac)

    becomes(OTHER)
    try:
        run("exec", "guarded", "strict2", "--", "ip", "neigh", "flush", "all")
        assert net.reaches("strict2/eth0", f"{vm}/eth0") == reached
        # Even one that nobody has to ask for: straight to the address.
        to_it = frame(net.macs["strict2/eth0"], "to the new address", to=OTHER)
        with net.hear(f"{vm}/eth0-esx01") as heard:
            net.send(f"{vm}/eth0", frame(OTHER, "where it is"))
            net.send("strict2/eth0", to_it)
        assert (heard.copies(to_it) != {}) == reached
    finally:
        becomes(own)
        run("exec", "guarded", "strict2", "--", "ip", "neigh", "flush", "all")
    assert net.reaches("strict2/eth0", f"{vm}/eth0")


@pytest.mark.parametrize("sender", ["strict2/eth0", "open1/eth0"])
def test_only_a_promiscuous_port_hears_what_is_for_others(net: Net, sender: str) -> None:
    """From the network and from its own switch, once, and of its own VLAN alone."""
    to = net.macs["strict1/eth0"]
    net.ping(sender, "strict1/eth0", 2)
    one = frame(net.macs[sender], f"from {sender}", to=to)
    ports = [f"watcher/eth{n}-esx01" for n in range(3)]
    with net.hear(*ports, "strict1/eth0-esx01", "strict2/eth0-esx02") as heard:
        net.send(sender, one)
    assert heard.copies(one) == {"strict1/eth0-esx01": 1, ports[0]: 1}
