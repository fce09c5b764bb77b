"""How large packets are: MTU and narrow hops, and what a NIC's offloads and rings do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.errors import MeasurementError
from tests.end_to_end.labs import run
from tests.end_to_end.wires import Flow, Net, frame, standing

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.root

TEXT = """\
name: sized
switches: {"tor-[a,b]": {mtu: 9000}}
links: [{between: [tor-a, tor-b], rate: 1Gbit}]
distributed_switches:
  DSwitch: {mtu: 9000, uplinks: [uplink1], portgroups: {vMotion: {vlan: 20}}}
  Slow: {uplinks: [uplink1], portgroups: {Small: {vlan: 5}}}
hosts:
  "esx[01-02]":
    cpu: {cores: 4}
    memory: 1GiB
    nics:
      vmnic0: {switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}
      vmnic1: {switch: "tor-[a,b]", rate: 1Gbit, uplink: Slow/uplink1EXTRA}
    vmks:
      vmk0: {portgroup: Small, ip: "192.168.5.[11-12]/24", services: [management]}
      vmk1: {portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}
"""
ENDS = ("esx01/vmk1", "esx02/vmk1")
SMALL = ("esx01/vmk0", "esx02/vmk0")


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with standing(TEXT.replace("EXTRA", "")) as found:
        yield found


def vmkping(payload_bytes: int) -> subprocess.CompletedProcess[str]:
    """`testbed vmkping -d -s`, as a user tries it."""
    return run("vmkping", "esx01", "esx02/vmk1", "--lab", "sized", "-I", "vmk1", "-d", "-c", "2",
               "-i", "0.05", "-W", "0.3", "-s", str(payload_bytes), check=False)  # fmt: skip


def test_jumbo_frames_pass_until_a_hop_gets_narrow(net: Net) -> None:
    """The hop says nothing: echoes vanish, TCP opens a connection and then stands still."""

    def passes(payload_bytes: int) -> bool:
        return net.reaches(*ENDS, payload_bytes=payload_bytes, dont_fragment=True)

    assert passes(8972)
    assert "Message too long" in vmkping(8973).stderr
    net.link("tor-a", "tor-b", mtu=1500)
    try:
        lost = vmkping(8972)
        assert lost.returncode == 1
        assert "a hop on the way has a smaller MTU" in lost.stderr
        assert not passes(1473)
        assert passes(1472)
        assert black_holed(net)
        # Those whose MTU fits don't notice, though the kernel joins their segments on the way.
        assert net.bps(*SMALL, duration_s=1) > 0.1 * 941e6  # a busy machine takes most of it
    finally:
        net.link("tor-a", "tor-b", mtu=9000)
    assert vmkping(8972).returncode == 0


def black_holed(net: Net) -> bool:
    """Whether next to nothing of TCP arrives."""
    try:
        return net.together(Flow(*ENDS), duration_s=1, omit_s=0)[0] < 0.01 * 990e6
    except MeasurementError:  # nothing at all, or not even the result
        return True


@pytest.mark.parametrize(
    ("offloads", "trains_sent", "trains_received"),
    [
        ("", True, True),
        ("{lro: off}", True, False),
        ("{tso: off, checksum: off}", False, None),  # what isn't sent may still be joined
    ],
)
def test_offloads_are_seen_on_the_wire(
    offloads: str, trains_sent: bool, trains_received: bool | None
) -> None:
    """A frame longer than the MTU is a train of segments that a NIC cuts or has joined."""
    text = TEXT.replace("EXTRA", f", offloads: {offloads}" if offloads else "")
    cable, adapter = "tor-a/esx01-vmnic1", "esx02/vmk0"
    with standing(text.replace("sized", "offloaded")) as net:
        with net.hear(cable, adapter) as heard:
            net.together(Flow(*SMALL), duration_s=1, omit_s=0)
        longest = {
            where: max(
                one.length
                for one in heard.at(where, outgoing=False)
                if one.source == net.macs["esx01/vmk0"]
            )
            for where in (cable, adapter)
        }
        assert (longest[cable] > 1500 + 14 + 4) == trains_sent
        if trains_received is not None:
            assert (longest[adapter] > 1500 + 14) == trains_received


@pytest.mark.parametrize(("ring", "most"), [("", 1000), (", rings: {tx: 64}", 64)])
def test_a_ring_holds_so_many_frames(ring: str, most: int) -> None:
    """600 full frames at once into 10 Mbit/s: what the ring doesn't hold is lost."""
    text = TEXT.replace("EXTRA", ring).replace(
        "rate: 1Gbit, uplink: Slow", "rate: 10Mbit, uplink: Slow"
    )
    with standing(text.replace("sized", "ringed")) as net:
        net.ping(*SMALL, 2)
        sent = frame(net.macs[SMALL[0]], "many", to=net.macs[SMALL[1]], size=1514)
        with net.hear(SMALL[1], settle_s=1.5) as heard:
            net.send(SMALL[0], *[sent] * 600)
        came = heard.copies(sent)[SMALL[1]]
        burst = 16 * 1024 // 1514  # passes at once, beside what the link carries meanwhile
        assert came == 600 if most >= 600 else most <= came < most + burst + 60, came
