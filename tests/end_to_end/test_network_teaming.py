"""Teams of uplinks: no loop, each frame once, and on with the others when one fails."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.wires import MS, RARP, Net, frame, standing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

# ---------------------------------------------------------------- many uplinks, one tree

MANY = """\
name: many
switches: {{"tor-[a,b]": {{}}}}
links: [{{between: [tor-a, tor-b]}}]
datastores: {{shared01: {{hosts: "esx[01-02]"}}}}
distributed_switches:
  DSwitch:
    uplinks: [{names}]
    portgroups: {{VM-Network: {{vlan: 10}}, Tests: {{vlan: 10}}}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 4}}
    memory: 1GiB
    nics: {{{nics}}}
    vmks:
      "vmk[0-3]": {{portgroup: Tests, ip: "192.168.10.[11-14]/24"}}
vms:
  "app[1-2]": {{host: esx01, memory: 16MiB, datastore: shared01,
              nics: [{{portgroup: VM-Network, ip: "192.168.10.[51-52]/24"}}]}}
"""
SHAPES = {
    "two uplinks, one switch": ("tor-a", "tor-a"),
    "two uplinks, two switches": ("tor-a", "tor-b"),
    "four uplinks, one switch": ("tor-a",) * 4,
    "four uplinks, two switches": ("tor-a", "tor-b") * 2,
}


def many(switches: tuple[str, ...]) -> str:
    numbers = range(len(switches))
    nics = ", ".join(
        f"vmnic{n}: {{switch: {switch}, rate: 1Gbit, uplink: DSwitch/uplink{n}}}"
        for n, switch in zip(numbers, switches, strict=True)
    )
    text = MANY.format(names=", ".join(f"uplink{n}" for n in numbers), nics=nics)
    vmks = [
        f'      vmk{n}: {{portgroup: Tests, ip: "192.168.10.[{20 + n},{30 + n}]/24"}}\n'
        for n in range(4)
    ]
    begin, _, rest = text.partition('      "vmk[0-3]"')
    return begin + "".join(vmks) + rest.partition("\n")[2]


@pytest.fixture(scope="module", params=list(SHAPES))
def team(request: pytest.FixtureRequest) -> Iterator[tuple[Net, int]]:
    switches = SHAPES[request.param]
    with standing(many(switches)) as net:
        yield net, len(switches)


ADAPTERS = (
    *(f"esx0{host}/vmk{n}" for host in (1, 2) for n in range(4)),
    "app1/eth0-esx01",
    "app2/eth0-esx01",
)


def uplinks(host: str, count: int) -> list[str]:
    return [f"{host}/vmnic{n}" for n in range(count)]


def test_each_broadcast_arrives_once_everywhere_and_ends(team: tuple[Net, int]) -> None:
    """Ten from every adapter: each at all the others once, on each cable once at most."""
    net, count = team
    cables = [*uplinks("esx01", count), *uplinks("esx02", count)]
    sent = {
        where: [frame(net.macs[where.replace("-esx01", "")], f"{where} {n}") for n in range(10)]
        for where in ADAPTERS
    }
    with net.hear(*ADAPTERS) as heard:
        for where, frames in sent.items():
            net.send(where.replace("-esx01", ""), *frames)
    for where, frames in sent.items():
        for one in frames:
            assert heard.copies(one) == {other: 1 for other in ADAPTERS if other != where}
    # And no frame goes round: nothing moves any more, but for what kernels say of themselves.
    before = net.sent(*cables)
    time.sleep(0.5)
    assert all(n - before[where] < 20 for where, n in net.sent(*cables).items())


def test_ports_are_spread_over_the_uplinks(team: tuple[Net, int]) -> None:
    """By the originating port: each adapter's frames leave by one uplink, all are in use."""
    net, count = team
    cables = uplinks("esx01", count)
    with net.hear(*cables) as heard:
        for n in range(4):
            net.send(f"esx01/vmk{n}", *(frame(net.macs[f"esx01/vmk{n}"], f"{i}") for i in range(5)))
    left_by = {
        n: {
            one.where
            for one in heard.frames
            if one.outgoing and one.source == net.macs[f"esx01/vmk{n}"]
        }
        for n in range(4)
    }
    assert all(len(found) == 1 for found in left_by.values()), left_by
    assert set().union(*left_by.values()) == set(cables)
    pinned = net.uplinks_of_ports()
    assert left_by == {n: {f"esx01/{pinned[f'esx01/vmk{n}-port']}"} for n in range(4)}


def test_local_traffic_stays_local(team: tuple[Net, int]) -> None:
    net, count = team
    net.ping("app1/eth0", "app2/eth0", 2)
    cables = uplinks("esx01", count)
    before = net.sent(*cables)
    assert net.ping("app1/eth0", "app2/eth0", 100, 2 * MS).lost == 0
    sent = sum(net.sent(*cables).values()) - sum(before.values())
    assert sent < 20, "frames between two VMs of a host left it"


def test_all_adapters_reach_each_other_over_the_cables(team: tuple[Net, int]) -> None:
    net, _ = team
    for n in range(4):
        found = net.ping(f"esx01/vmk{n}", f"esx02/vmk{3 - n}", 10, 2 * MS)
        assert (found.lost, found.duplicates) == (0, 0)


# ---------------------------------------------------------------- failover

FAILOVER = """\
name: failover
switches: {"tor-[a,b]": {mtu: 9000}}
links: [{between: [tor-a, tor-b]}]
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1, uplink2, uplink3]
    teaming: {policy: explicit, active: [uplink1], standby: [uplink2]}
    portgroups:
      vMotion: {vlan: 20}
      Stays: {vlan: 20, teaming: {failback: off}}
      Silent: {vlan: 20, teaming: {notify: off}}
      VM-Network: {vlan: 10, teaming: {policy: originating_port, active: [uplink1, uplink2]}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics:
      vmnic0: {switch: tor-a, rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}
      vmnic1: {switch: tor-b, rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink2}
      vmnic2: {switch: tor-b, rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink3}
    vmks:
      vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}
      vmk2: {portgroup: Stays, ip: "192.168.20.[21-22]/24"}
      vmk3: {portgroup: Silent, ip: "192.168.20.[31-32]/24"}
vms:
  db01: {host: esx01, memory: 96MiB, datastore: shared01,
         nics: [{portgroup: VM-Network, ip: 192.168.10.50/24}]}
  "client[1-2]": {host: "esx[01-02]", memory: 16MiB, datastore: shared01,
                nics: [{portgroup: VM-Network, ip: "192.168.10.[51-52]/24"}]}
"""
CUT = ("esx01/vmnic0", "tor-a")
NEW_WAY = "tor-b/esx01-vmnic1"
OLD_WAY = "esx01/vmnic0"  # at the host: the switch's port is taken down


@pytest.fixture(scope="module")
def failing() -> Iterator[Net]:
    with standing(FAILOVER) as net:
        yield net


def test_the_standby_takes_over_within_a_second_and_says_so(failing: Net) -> None:
    mac = {n: failing.macs[f"esx01/vmk{n}"] for n in (1, 2, 3)}
    with (
        failing.hear(NEW_WAY, OLD_WAY) as heard,
        failing.pinging("esx01/vmk1", "esx02/vmk1") as pings,
    ):
        failing.link(*CUT, up=False)
        time.sleep(0.5)
        moved = failing.uplinks_of_ports()
        failing.link(*CUT, up=True)
        time.sleep(0.5)
    back = failing.uplinks_of_ports()
    assert pings.found.outage_ns < 1000 * MS
    assert moved["esx01/vmk1-port"] == "vmnic1"
    assert back["esx01/vmk1-port"] == "vmnic0"  # failback
    assert back["esx01/vmk2-port"] == "vmnic1"  # none
    rarps = {
        (one.where, one.source, one.vid)
        for one in heard.frames
        if one.kind == RARP and one.outgoing == (one.where == OLD_WAY)
    }
    assert (NEW_WAY, mac[1], 20) in rarps
    assert (OLD_WAY, mac[1], 20) in rarps  # and when it goes back
    assert (NEW_WAY, mac[2], 20) in rarps
    assert (OLD_WAY, mac[2], 20) not in rarps
    assert not [one for one in rarps if one[1] == mac[3]]  # notify: off
    events = failing.status()["team_events"]
    assert [(event["uplink"], event["up"]) for event in events] == [
        ("vmnic0", False),
        ("vmnic0", True),
    ]
    # The one that stayed goes back when its own way fails.
    failing.link("esx01/vmnic1", "tor-b", up=False, for_ns=300 * MS)
    assert failing.uplinks_of_ports()["esx01/vmk2-port"] == "vmnic0"
    assert failing.ping("esx01/vmk2", "esx02/vmk2", 10).lost == 0


def test_an_unused_uplink_stays_silent(failing: Net) -> None:
    """It hears the broadcasts of others and sends nothing, even when it is the last."""
    before = failing.sent("esx01/vmnic2")
    failing.ping("esx01/vmk1", "esx02/vmk1", 10)
    failing.send("esx01/vmk1", *(frame(failing.macs["esx01/vmk1"], "to all") for _ in range(5)))
    failing.link(*CUT, up=False)
    failing.link("esx01/vmnic1", "tor-b", up=False)
    try:
        time.sleep(0.2)
        assert not failing.reaches("esx01/vmk1", "esx02/vmk1")
    finally:
        failing.link(*CUT, up=True)
        failing.link("esx01/vmnic1", "tor-b", up=True)
    assert failing.sent("esx01/vmnic2") == before
    time.sleep(0.2)
    assert failing.ping("esx01/vmk1", "esx02/vmk1", 10).lost == 0


def test_a_guest_that_moves_between_teams_is_reached() -> None:
    """By a VM of either host; on its way back the uplink that its host uses fails."""
    with standing(FAILOVER.replace("failover", "mobile", 1)) as net:
        cutting: list[threading.Thread] = []

        def cut(event: dict[str, Any]) -> None:
            if not cutting and event.get("phase") == "pre-copy":
                ends = ("esx02/vmnic0", "tor-a")
                cutting.append(threading.Thread(target=net.link, args=ends, kwargs={"up": False}))
                cutting[0].start()

        for to, interfere in (("esx02", None), ("esx01", cut)):
            with (
                net.pinging("client1/eth0", "db01/eth0") as one,
                net.pinging("client2/eth0", "db01/eth0") as two,
            ):
                result = net.migrate("db01", to, on_event=interfere)
            assert result["outcome"] == "completed", result["failure"]
            stun_ns = result["engine"]["stun_ns"]
            for pings in (one.found, two.found):
                assert pings.outage_ns < 10 * stun_ns + 1000 * MS
                assert pings.duplicates == 0
            for client in ("client1", "client2"):
                assert net.ping(f"{client}/eth0", "db01/eth0", 20).lost == 0
        cutting[0].join()
        assert net.uplinks_of_ports()["esx02/vmk1-port"] == "vmnic1"
