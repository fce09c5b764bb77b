"""ESXi's tools in a lab with VLANs, a team of two uplinks and Network I/O Control."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Dot1Q
from scapy.utils import PcapNgReader

from testbed import topology as topologies
from testbed.lab.down import down
from testbed.lab.up import up
from tests.end_to_end.labs import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scapy.packet import Packet

pytestmark = [pytest.mark.root, pytest.mark.needs_program("ip")]

LAB = "tools-live"
TEXT = f"""\
name: {LAB}
switches: {{"tor-[a,b]": {{mtu: 9000}}}}
links: [{{between: [tor-a, tor-b], vlans: [10, 20]}}]
routers:
  core:
    interfaces:
      tor-a: {{vlan: 10, ip: 192.168.10.1/24}}
      tor-b: {{vlan: 20, ip: 192.168.20.1/24}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1, uplink2]
    nioc: {{vmotion: {{shares: high}}, management: {{shares: normal}}}}
    portgroups:
      Management: {{vlan: 10, teaming: {{active: [uplink1], standby: [uplink2]}}}}
      vMotion:
        vlan: 20
        teaming: {{active: [uplink2], standby: [uplink1]}}
        marking: {{cos: 4, dscp: 26}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 4}}
    memory: 1GiB
    nics:
      vmnic0:
        {{switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink1, vlans: [10, 20]}}
      vmnic1:
        {{switch: "tor-[a,b]", rate: 1Gbit, mtu: 9000, uplink: DSwitch/uplink2, vlans: [10, 20]}}
    vmks:
      vmk0:
        portgroup: Management
        ip: "192.168.10.[11-12]/24"
        gateway: 192.168.10.1
        services: [management]
      vmk1:
        portgroup: vMotion
        ip: "192.168.20.[11-12]/24"
        gateway: 192.168.20.1
        services: [vmotion]
        mtu: 9000
        netstack: vmotion
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[None]:
    try:
        up(topologies.loads(TEXT, f"{LAB}.yaml"))
        run("vmkping", "esx01", "esx02/vmk1", "-S", "vmotion", "-c", "1", check=False)
        yield
    finally:
        down(LAB)


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "testbed", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("lab")
def test_vmkping_speaks_as_on_esxi() -> None:
    shown = run("vmkping", "esx01", "esx02/vmk1", "-I", "vmk1", "-d", "-s", "8972", "-i", "0.1")
    lines = shown.stdout.splitlines()
    assert lines[0] == "PING esx02/vmk1 (192.168.20.12): 8972 data bytes"
    assert lines[1].startswith("8980 bytes from 192.168.20.12: icmp_seq=0 ttl=64 time=")
    assert "3 packets transmitted, 3 packets received, 0% packet loss" in lines
    searched = run("vmkping", "esx01", "esx02/vmk1", "-I", "vmk1", "-c", "1", "--find-mtu").stdout
    assert "unfragmented: 9000 bytes" in searched  # not what the echoes before it have
    failed = run("vmkping", "esx01", "esx02/vmk1", "-S", "vmotion", "-d", "-s", "8973", check=False)
    assert failed.returncode == 1
    assert "sendto() failed (Message too long): the MTU of vmk1 of esx01 is 9000" in failed.stderr


@pytest.mark.usefixtures("lab")
def test_two_are_measured_at_once_by_a_port_each() -> None:
    """What shares make of two flows is seen only then."""
    words = ("iperf", "esx01/vmk1", "esx02/vmk1", "--time", "1")
    other = started(*words, "--port", "5202")
    run(*words)
    _, said = other.communicate(timeout=30)
    assert other.returncode == 0, said


@pytest.mark.usefixtures("lab")
def test_a_path_leads_over_the_router_by_its_name() -> None:
    # From the management network into vMotion's, whose stack answers by a gateway of its own.
    shown = run("traceroute", "esx01", "esx02/vmk1", "-I", "vmk0", "-q", "1")
    assert [line.split()[:3] for line in shown.stdout.splitlines()[1:]] == [
        ["1", "core", "(192.168.10.1)"],
        ["2", "esx02/vmk1", "(192.168.20.12)"],
    ]


@pytest.mark.usefixtures("lab")
def test_nc_tries_a_port_and_listens_on_one() -> None:
    refused = run("nc", "esx01", "esx02/vmk1", "8000", "-s", "vmk1", "-z", check=False)
    assert refused.returncode == 1
    assert "Connection refused" in refused.stderr
    with started("nc", "esx02", "-l", "8000", "-w", "20s") as server:
        try:
            assert server.stderr is not None
            assert server.stderr.readline() == "Listening on any address 8000\n"
            shown = run("nc", "esx01", "192.168.20.12", "8000", "-s", "vmk1", "-z")
            assert server.wait(20) == 0
        finally:
            server.kill()
    assert shown.stdout == "Connection to 192.168.20.12 8000 port [tcp/*] succeeded!\n"


@pytest.mark.usefixtures("lab")
def test_net_stats_lists_the_ports() -> None:
    lines = run("net-stats", "esx01", "-l").stdout.splitlines()
    assert lines[0] == (
        "PortNum          Type SubType SwitchName       MACAddress         ClientName"
    )
    assert [(line.split()[1], line.split()[-1]) for line in lines[1:]] == [
        ("4", "vmnic0"),
        ("4", "vmnic1"),
        ("3", "vmk0"),
        ("3", "vmk1"),
    ]


def port(shown: dict[str, Any], host: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(p for p in shown["hosts"][host] if p["name"] == name)
    return found


def agree(shown: dict[str, Any], bits_per_s: float) -> bool:
    """Whether all see the same: one after another, so a busy machine may come in between."""
    vmotion = port(shown, "esx01", "vmnic1")["classes"]["vmotion"]["rates"]["bits_per_s"]
    received = port(shown, "esx02", "vmnic1")["rates"]["rx"]["bits_per_s"]
    sent = port(shown, "esx01", "vmk1")["rates"]["tx"]["bits_per_s"]
    return (
        bits_per_s > 50e6
        and vmotion == pytest.approx(bits_per_s, rel=0.03)
        and received == pytest.approx(bits_per_s, rel=0.1)
        and sent == pytest.approx(bits_per_s, rel=0.2)
    )


@pytest.mark.usefixtures("lab")
def test_rates_agree_from_port_to_uplink_to_class_to_the_other_host() -> None:
    with started("iperf", "esx01/vmk1", "esx02/vmk1", "--time", "30") as sender:
        try:
            deadline = time.monotonic() + 30
            while True:
                shown = json.loads(run("top", LAB, "--json", "-n", "1", "-d", "2s").stdout)
                uplink = port(shown, "esx01", "vmnic1")
                sent = uplink["rates"]["tx"]
                if agree(shown, sent["bits_per_s"]):
                    break
                assert time.monotonic() < deadline, shown
                assert sender.poll() is None, "the traffic was over before it was seen"
        finally:
            sender.kill()
    assert sent["packet_bytes"] == pytest.approx(9014, rel=0.02)  # MTU and Ethernet's header
    assert uplink["classes"]["management"]["rates"]["bits_per_s"] < 1e5
    vmk = port(shown, "esx01", "vmk1")
    assert (vmk["uplink"], port(shown, "esx01", "vmk0")["uplink"]) == ("vmnic1", "vmnic0")
    assert (vmk["mtu"], vmk["link_up"]) == (9000, True)


@pytest.mark.usefixtures("lab")
def test_the_uplink_shown_is_the_one_after_failover() -> None:
    def uplink() -> str:
        text = run("top", LAB, "-b", "-n", "1", "-d", "100ms", "--host", "esx02").stdout
        (line,) = (line for line in text.splitlines() if " vmk1 " in line)
        return line.split()[2]

    assert uplink() == "vmnic1"
    switch_port = f"ip -n tb.{LAB}.tor-b link set esx02-vmnic1"
    subprocess.run(f"{switch_port} down".split(), check=True)
    try:
        deadline = time.monotonic() + 10
        while uplink() != "vmnic0":
            assert time.monotonic() < deadline
        shown = json.loads(run("net-stats", "esx02", "-A", "-i", "100ms").stdout)
        assert port(shown, "esx02", "vmnic1")["link_up"] is False
    finally:
        subprocess.run(f"{switch_port} up".split(), check=True)


def echo_seen(file: Path, *arguments: str) -> tuple[Packet, Packet, str]:
    """The request and the answer of an echo in a capture, and which one is `in`."""
    command = ["pktcap", *arguments, "-o", str(file), "-c", "2", "--time", "20s", "--proto", "icmp"]
    with started(*command) as capture:
        try:
            assert capture.stderr is not None
            assert capture.stderr.readline().startswith("capturing at ")
            run("vmkping", "esx01", "esx02/vmk1", "-I", "vmk1", "-c", "1")
            assert capture.wait(30) == 0
        finally:
            capture.kill()
    with PcapNgReader(str(file)) as reader:
        packets = {packet[IP].src: packet for packet in reader}
    request, answer = packets["192.168.20.11"], packets["192.168.20.12"]
    return request, answer, "request" if request.direction == 1 else "answer"


def tag(packet: Packet) -> tuple[int, int] | None:
    return (packet[Dot1Q].vlan, packet[Dot1Q].prio) if Dot1Q in packet else None


@pytest.mark.usefixtures("lab")
def test_captures_show_what_the_iochain_does(tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    request, answer, incoming = echo_seen(file, "esx01/vmk1")
    assert (tag(request), tag(answer), incoming) == (None, None, "answer")
    request, answer, incoming = echo_seen(file, "esx01/vmk1", "--stage", "before")
    assert (tag(request), incoming) == (None, "request")
    assert tag(answer) == (20, 4)
    request, answer, incoming = echo_seen(file, "esx01/vmk1", "--stage", "after")
    assert (tag(request), incoming) == ((20, 4), "request")
    assert request[IP].tos >> 2 == 26
    assert tag(answer) is None
    request, answer, incoming = echo_seen(file, "esx01/vmnic1", "--vlan", "20")
    assert (tag(request), tag(answer), incoming) == ((20, 4), (20, 4), "answer")
    shown = run("pktcap", "-r", str(file)).stdout.splitlines()
    assert len(shown) == 2
    assert "Dot1Q / IP / ICMP 192.168.20.11 > 192.168.20.12 echo-request" in shown[0]
    links = subprocess.run(
        ["ip", "-n", f"tb.{LAB}.esx01", "-br", "link"], capture_output=True, text=True, check=True
    ).stdout
    assert "capture" not in links


@pytest.mark.usefixtures("lab")
def test_an_interrupted_capture_has_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pcapng"
    with started("pktcap", "esx01/vmk1", "--stage", "after", "-o", str(file)) as capture:
        try:
            assert capture.stderr is not None
            capture.stderr.readline()
            run("vmkping", "esx01", "esx02/vmk1", "-I", "vmk1", "-c", "1")
            os.kill(capture.pid, signal.SIGINT)
            assert capture.wait(20) == 0
            assert "dropped by the kernel" in capture.stderr.read()
        finally:
            capture.kill()
    assert "echo-reply" in run("pktcap", "-r", str(file)).stdout


@pytest.mark.usefixtures("lab")
def test_an_interrupted_vmkping_tells_what_it_has() -> None:
    with started("vmkping", "esx01", "esx02/vmk1", "-I", "vmk1", "-c", "1000") as pings:
        try:
            assert pings.stdout is not None
            while "icmp_seq=1 " not in (line := pings.stdout.readline()):
                assert line
            os.kill(pings.pid, signal.SIGINT)
            shown = pings.stdout.read()
            assert pings.wait(20) == 0
        finally:
            pings.kill()
    assert re.search(r"([2-9]) packets transmitted, \1 packets received, 0% packet loss", shown)


@pytest.mark.usefixtures("lab")
def test_the_live_view_ends_with_q() -> None:
    keyboard, terminal = pty.openpty()
    command = [sys.executable, "-m", "testbed", "top", LAB, "-d", "200ms"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    shown = b""
    with subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    ) as view:
        try:
            while shown.count(b"TEAM-PNIC") < 4:  # two hosts, twice
                assert select.select([keyboard], [], [], 20)[0], shown
                shown += os.read(keyboard, 1 << 16)
            os.write(keyboard, b"q")
            while view.poll() is None:
                if select.select([keyboard], [], [], 0.1)[0]:
                    os.read(keyboard, 1 << 16)
            assert view.returncode == 0
        finally:
            view.kill()
            os.close(keyboard)
            os.close(terminal)
    assert b"vmk1" in shown
