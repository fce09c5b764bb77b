"""The network of a lab: each vmk sends for itself, jumbo frames pass end to end, rates hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed import topology as topologies
from testbed.errors import MeasurementError
from testbed.kernel import netns
from testbed.lab.down import down
from testbed.lab.status import lab_status
from testbed.lab.up import up
from testbed.measure.endpoint import Endpoint
from testbed.measure.iperf import measure as iperf
from testbed.measure.iperf_result import IperfTest
from testbed.measure.ping import PingTest
from testbed.measure.ping import measure as ping
from testbed.measure.theory import tcp_goodput_bps

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

LAB = "twin-vmks"
TEXT = f"""\
name: {LAB}
switches: {{"tor-[a,b]": {{mtu: 9000}}}}
links: [{{between: [tor-a, tor-b], rate: 500Mbit}}]
distributed_switches:
  DSwitch: {{mtu: 9000, uplinks: [uplink1], portgroups: {{vMotion: {{}}}}}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 4}}
    memory: 1GiB
    nics: {{vmnic0: {{switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks:
      vmk1: {{portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
      vmk2:
        portgroup: vMotion
        ip: ["192.168.20.[21-22]/24", "fd00:20::[21-22]/64"]
        services: [vmotion]
        mtu: 9000
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[None]:
    try:
        up(topologies.loads(TEXT, "twin-vmks.yaml"))
        yield
    finally:
        down(LAB)


def host(number: int, address: str) -> Endpoint:
    """Bound to an address, not to a device: the routing has to find the adapter."""
    return Endpoint(netns.path_of(f"tb.{LAB}.esx{number:02}"), address)


def packets() -> dict[str, int]:
    """Packets sent so far by each vmk."""
    links = lab_status(LAB)["links"]
    return {
        f"{link['node']}/{link['name']}": link["tx_packets"]
        for link in links
        if link["name"] in ("vmk1", "vmk2")
    }


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("ours", "theirs", "vmk"),
    [
        ("192.168.20.11", "192.168.20.12", "vmk1"),
        ("192.168.20.21", "192.168.20.22", "vmk2"),
        ("fd00:20::21", "fd00:20::22", "vmk2"),
    ],
)
def test_a_vmk_sends_and_answers_for_itself(ours: str, theirs: str, vmk: str) -> None:
    before = packets()
    result = ping(host(1, ours), host(2, theirs), PingTest(count=50, interval_ns=5_000_000))
    assert result.received == 50
    sent = {name: count - before[name] for name, count in packets().items()}
    for name, count in sent.items():
        if name.endswith(vmk):
            assert count >= 50, sent
        else:
            assert count < 10, sent  # a neighbour's question or two


@pytest.mark.usefixtures("lab")
def test_jumbo_frames_pass_end_to_end_and_no_larger_ones() -> None:
    ends = host(1, "192.168.20.11"), host(2, "192.168.20.12")
    fits = PingTest(count=3, interval_ns=10_000_000, payload_bytes=8972, dont_fragment=True)
    assert ping(*ends, fits).received == 3
    with pytest.raises(MeasurementError, match="9000"):
        ping(*ends, PingTest(count=1, payload_bytes=8973, dont_fragment=True))


@pytest.mark.usefixtures("lab")
def test_the_slowest_link_of_the_path_decides() -> None:
    theory = tcp_goodput_bps(500_000_000, 9000)
    for _ in range(5):  # a busy machine can only take away; too much would be too much in each
        ends = host(1, "192.168.20.11"), host(2, "192.168.20.12")
        found = iperf(*ends, IperfTest(duration_s=2)).received_bps
        assert found < 1.01 * theory
        if found > 0.5 * theory:
            return
    pytest.fail(f"{found / 1e6:.1f} Mbit/s of {theory / 1e6:.1f}")
