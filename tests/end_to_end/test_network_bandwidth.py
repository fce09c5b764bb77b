"""Who gets how much: Network I/O Control, QoS on the NIC, queues of switches, traffic shaping.

What is measured is payload of TCP, as a part of what the link carries of it in theory. At a
quarter of the rates that the files name: a busy machine's senders then still keep queues full.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from testbed.measure.theory import tcp_goodput_bps
from tests.end_to_end.wires import MS, Flow, Net, frame, standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

pytestmark = pytest.mark.root

RATE = 400_000_000 // 4
LINK = tcp_goodput_bps(RATE, 1500)
HOSTS = """\
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics:
      vmnic0: {switch: tor, rate: 400Mbit, uplink: DSwitch/uplink1}
    vmks:
      vmk0: {portgroup: Hosts, ip: "192.168.5.[11-12]/24", services: [management]}
      vmk1: {portgroup: Hosts, ip: "192.168.6.[11-12]/24", services: [vmotion]}
vms:
  "a[1-2]": {host: "esx[01-02]", memory: 16MiB, datastore: shared01,
           nics: [{portgroup: VM-Network, ip: "192.168.10.[51-52]/24"A-PART}]}
  "b[1-2]": {host: "esx[01-02]", memory: 16MiB, datastore: shared01,
           nics: [{portgroup: VM-Network, ip: "192.168.10.[61-62]/24"B-PART}]}
"""
CONTROLLED = """\
name: controlled
scale: 1/4
switches: {tor: {}}
datastores: {shared01: {hosts: "esx[01-02]"}}
distributed_switches:
  DSwitch:
    uplinks: [uplink1]
    nioc: {NIOC}
    portgroups: {Hosts: {}, VM-Network: {}}
"""
MANAGEMENT = Flow("esx01/vmk0", "esx02/vmk0")
VMOTION = Flow("esx01/vmk1", "esx02/vmk1")
VM_A, VM_B = Flow("a1/eth0", "a2/eth0"), Flow("b1/eth0", "b2/eth0")
TOLERANCE = 0.03  # of the link: a busy machine


def controlled(nioc: str, a: str = "", b: str = "") -> str:
    text = CONTROLLED.replace("NIOC", nioc) + HOSTS
    return text.replace("A-PART", a and f", bandwidth: {a}").replace(
        "B-PART", b and f", bandwidth: {b}"
    )


SHARES = "vmotion: {shares: high}, management: {shares: normal}"


@pytest.fixture(scope="module")
def nioc() -> Iterator[Net]:
    with standing(controlled(SHARES)) as net:
        yield net


def measured(net: Net, flows: Iterable[Flow], right: Callable[[list[float]], bool]) -> None:
    """What each of the flows gets of the link while all run is right, in one of six goes.

    A busy machine now and then takes the CPU from a sender for so long that it can't use its
    part; that it is so each time doesn't happen.
    """
    found = []
    for _ in range(6):
        found.append([bps / LINK for bps in net.together(*flows, duration_s=1)])
        if right(found[-1]):
            return
    pytest.fail(f"parts of the link: {found}")


def expect(net: Net, wanted: dict[Flow, float]) -> None:
    """Each flow gets its part of the link."""
    measured(
        net,
        wanted,
        lambda found: all(
            abs(a - b) < TOLERANCE for a, b in zip(found, wanted.values(), strict=True)
        ),
    )


def test_shares_divide_a_full_uplink_by_the_service_of_the_vmk(nioc: Net) -> None:
    nioc.apply(controlled(SHARES))
    expect(nioc, {VMOTION: 2 / 3, MANAGEMENT: 1 / 3})


def test_a_limit_holds_though_nobody_else_sends(nioc: Net) -> None:
    nioc.apply(controlled("vmotion: {limit: 100Mbit}"))
    expect(nioc, {VMOTION: 0.25})


def test_a_reservation_is_had_at_once_and_against_more_shares(nioc: Net) -> None:
    """200 Mbit/s are management's; what is left is divided 4:1, so it has a little more.

    It had next to nothing of its own before, and sent all the same: it owes nothing for that.
    """
    nioc.apply(controlled(SHARES))
    nioc.together(MANAGEMENT, duration_s=1, omit_s=0)
    nioc.apply(
        controlled("vmotion: {shares: high}, management: {shares: low, reservation: 200Mbit}")
    )
    assert nioc.together(VMOTION, MANAGEMENT, duration_s=1)[1] > 0.1 * LINK
    expect(nioc, {VMOTION: 0.4, MANAGEMENT: 0.6})


@pytest.mark.parametrize(("rule", "total"), [("lost", 0.75), ("lent", 1.0)])
def test_an_idle_reservation(nioc: Net, rule: str, total: float) -> None:
    """NFS has reserved a quarter and sends nothing; two others fill what they may."""
    reserved = "{reservation: 80Mbit}"
    nioc.apply(
        controlled(
            f"vmotion: {reserved}, management: {reserved}, nfs: {{reservation: 100Mbit}},"
            f" idle_reservations: {rule}"
        )
    )
    measured(nioc, (VMOTION, MANAGEMENT), lambda found: abs(sum(found) - total) < TOLERANCE)


def test_a_vm_has_its_reservation_among_vms(nioc: Net) -> None:
    """Of 160 Mbit/s that VMs have reserved 150 are one VM's, whatever the other's shares."""
    nioc.apply(
        controlled(
            "virtualMachine: {reservation: 160Mbit}",
            a="{shares: low, reservation: 150Mbit}",
            b="{shares: high}",
        )
    )
    reserved = 150 / 400 - TOLERANCE
    measured(nioc, (VM_A, VM_B), lambda found: found[0] > reserved and sum(found) > 0.9)
    nioc.apply(controlled("virtualMachine: {}", a="{limit: 80Mbit}", b="{shares: low}"))
    expect(nioc, {VM_A: 0.2, VM_B: 0.8})


def test_what_is_guaranteed_on_the_nic_itself() -> None:
    """QoS of a standard switch's uplink: guaranteed 75 and 25 %, and at most 50 % for one."""
    text = controlled("")
    begin, _, rest = text.partition("distributed_switches")
    rest = rest[rest.index("hosts:") :].replace(", uplink: DSwitch/uplink1", ", qos: {QOS}")
    rest = rest.replace(
        "    vmks:", "    vswitches: {vSwitch0: {uplinks: [vmnic0], portgroups:"
        " {Hosts: {}, VM-Network: {}}}}\n    vmks:",
    )  # fmt: skip
    text = (begin + rest).replace("controlled", "guaranteed")
    even = "vmotion: {guarantee: 75%}, management: {guarantee: 25%}"
    with standing(text.replace("QOS", even)) as net:
        expect(net, {VMOTION: 0.75, MANAGEMENT: 0.25})
        net.apply(text.replace("QOS", "vmotion: {guarantee: 10%, limit: 50%}"))
        expect(net, {VMOTION: 0.5})


QUEUED = """\
name: queued
scale: 1/4
switches:
  "tor-[a,b]":
    qos: {by: BY, queues: [{values: [0, 1], weight: 1}, {values: VALUE, weight: 3}]}
links: [{between: [tor-a, tor-b], rate: 400Mbit}]
distributed_switches:
  DSwitch:
    uplinks: [uplink1]
    portgroups:
      vMotion: {vlan: 20, marking: {cos: 4, dscp: 26}}
      Management: {vlan: 5, marking: {cos: 1}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics: {vmnic0: {switch: "tor-[a,b]", rate: 2Gbit, uplink: DSwitch/uplink1}}
    vmks:
      vmk0: {portgroup: Management, ip: "192.168.5.[11-12]/24", services: [management]}
      vmk1: {portgroup: vMotion, ip: "192.168.6.[11-12]/24", services: [vmotion]}
"""


@pytest.mark.parametrize(("by", "value"), [("cos", 4), ("dscp", 26)])
def test_a_physical_switch_queues_by_marks(by: str, value: int) -> None:
    """The trunk is the narrow place; marked at the hosts, the two share it 3:1."""
    with standing(QUEUED.replace("BY", by).replace("VALUE", str(value))) as net:
        expect(net, {VMOTION: 0.75, MANAGEMENT: 0.25})


# ---------------------------------------------------------------- traffic shaping

AVERAGE, PEAK, BURST = 40_000_000, 160_000_000, 512 * 1024
SHAPING = "{average: 40Mbit, peak: 160Mbit, burst: 512KiB}"
SHAPED = f"""\
name: shaped
switches: {{tor: {{}}}}
datastores: {{shared01: {{hosts: "esx[01-02]"}}}}
distributed_switches:
  DSwitch:
    uplinks: [uplink1]
    portgroups:
      Sends: {{shaping: {{egress: {SHAPING}}}}}
      Receives: {{shaping: {{ingress: {SHAPING}}}}}
      Free: {{}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 4}}
    memory: 1GiB
    nics:
      vmnic0: {{switch: tor, rate: 1Gbit, uplink: DSwitch/uplink1}}
      vmnic1: {{switch: tor, rate: 1Gbit}}
    vswitches:
      vSwitch1: {{uplinks: [vmnic1], portgroups: {{Standard: {{shaping: {{egress: {SHAPING}}}}}}}}}
    vmks:
      vmk0: {{portgroup: Free, ip: "192.168.5.[10,20]/24"}}
      vmk1: {{portgroup: Sends, ip: "192.168.5.[11,21]/24"}}
      vmk2: {{portgroup: Receives, ip: "192.168.5.[12,22]/24"}}
      vmk3: {{portgroup: Standard, ip: "192.168.5.[13,23]/24"}}
"""


@pytest.fixture(scope="module")
def shaped() -> Iterator[Net]:
    with standing(SHAPED) as net:
        yield net


WAYS = {
    "sent, on a distributed switch": ("esx01/vmk1", "esx02/vmk0"),
    "received, on a distributed switch": ("esx01/vmk0", "esx02/vmk2"),
    "sent, on a standard switch": ("esx01/vmk3", "esx02/vmk0"),
}


def burst(net: Net, source: str, destination: str) -> tuple[float, float]:
    """800 frames at once, timed where they arrive: the rate of a burst, and of what follows."""
    macs = net.macs[source], net.macs[destination]
    size, count = 1500, 800
    net.ping(source, destination, 2)
    with net.hear(destination, settle_s=0.5) as heard:
        net.send(source, *[frame(macs[0], "burst", to=macs[1], size=size)] * count)
    came = [one.unix_ns for one in heard.at(destination, outgoing=False) if one.source == macs[0]]
    assert len(came) == count
    assert all(a <= b for a, b in pairwise(came))
    # While tokens of the average come in too, a burst is a little longer than its size.
    longer = BURST / (1 - AVERAGE / PEAK)
    within = int(0.8 * longer / size)
    after = int(1.2 * longer / size)
    return (
        within * size * 8e9 / (came[within] - came[0]),
        (count - 1 - after) * size * 8e9 / (came[-1] - came[after]),
    )


@pytest.mark.parametrize("way", list(WAYS))
def test_a_burst_passes_at_the_peak_and_then_the_average(shaped: Net, way: str) -> None:
    found = []
    for _ in range(6):  # a busy machine lets some go late
        peak_bps, average_bps = burst(shaped, *WAYS[way])
        found.append((peak_bps, average_bps))
        if abs(average_bps / AVERAGE - 1) < 0.1 and abs(peak_bps / PEAK - 1) < 0.3:
            return
        time.sleep(0.2)  # the burst is had again
    pytest.fail(f"{found}")


@pytest.mark.parametrize(
    ("source", "destination"),
    [("esx01/vmk0", "esx02/vmk1"), ("esx01/vmk2", "esx02/vmk0"), ("esx01/vmk0", "esx02/vmk3")],
)
def test_the_other_direction_is_free(shaped: Net, source: str, destination: str) -> None:
    macs = shaped.macs[source], shaped.macs[destination]
    shaped.ping(source, destination, 2)
    with shaped.hear(destination, settle_s=0.3) as heard:
        shaped.send(source, *[frame(macs[0], "burst", to=macs[1], size=1500)] * 800)
    came = [one.unix_ns for one in heard.at(destination, outgoing=False) if one.source == macs[0]]
    assert len(came) == 800
    assert came[-1] - came[0] < 100 * MS  # 1 Gbit/s does it in 10
