"""Ports whose VLANs are eBPF programs talk with Linux's own: 8021q devices, a VLAN-aware bridge.

A virtual machine is on a port of a virtual switch; its uplink leads to the other side.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from testbed.errors import MeasurementError
from testbed.kernel import builder, netns
from testbed.kernel.undo import remove
from testbed.measure import ping
from testbed.measure.endpoint import Endpoint
from testbed.measure.ping import PingTest
from testbed.plan.policies import Chain
from testbed.plan.stages import Carry, Marking, MarkRule, Tag, Untag
from testbed.plan.steps import Address, Bridge, End, Netns, Veth

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.plan.stages import Stage
    from testbed.plan.steps import KernelStep

pytestmark = [pytest.mark.root, pytest.mark.needs_feature("8021q")]
MS = 10**6
SYSCTLS = (
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv4/conf/all/arp_ignore", "1"),  # an address is that of its own device
)
VM, HOST, FAR = "tb-ref-vm", "tb-ref-host", "tb-ref-far"
ACCESS = ((Tag(7),), (Untag(7),))
TRUNK = Carry(((7, 9),))
SOL_PACKET, PACKET_AUXDATA, TAG_VALID = 263, 8, 0x10  # linux/if_packet.h
MEGABYTE = bytes(range(256)) * 4096


def switch(port: tuple[tuple[Stage, ...], tuple[Stage, ...]], uplink: Carry) -> list[KernelStep]:
    """A virtual machine's port with these stages in and out, and an uplink that is a trunk."""
    steps: list[KernelStep] = [Netns(name, name, "host", SYSCTLS) for name in (VM, HOST, FAR)]
    steps.append(Bridge(HOST, "vSwitch0", 1500, "vSwitch0"))
    wire = Veth(End(VM, "eth0", 1500, "eth0"), End(HOST, "vm", 1500, "vm", master="vSwitch0"))
    cable = Veth(End(HOST, "vmnic0", 1500, "vmnic0", master="vSwitch0"), End(FAR, "eth0", 1500, ""))
    steps += [wire, cable, Address(VM, "eth0", "10.0.0.1/24", wire.key)]
    steps.append(Chain(HOST, "vm", wire.key, *port))
    steps.append(Chain(HOST, "vmnic0", cable.key, (uplink,), (uplink,)))
    return steps


def run(netns_name: str, *commands: str) -> None:
    for command in commands:
        line = ["ip", "-n", netns_name, *command.split()]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def vlan_device(netns_name: str, vid: int, address: str, options: str = "") -> None:
    name = f"eth0.{vid}"
    run(
        netns_name,
        f"link add link eth0 name {name} type vlan id {vid} {options}",
        f"address add {address} dev {name}",
        f"link set {name} up",
    )


@contextmanager
def built(steps: list[KernelStep]) -> Iterator[None]:
    builder.build(steps)
    try:
        yield
    finally:
        remove(steps)


def talks(a: str, address: str) -> bool:
    """Whether echoes from namespace `a` to `address` are answered: all, or none."""
    source, destination = Endpoint(f"/run/netns/{a}", "0.0.0.0"), Endpoint("", address)
    try:
        test = PingTest(count=5, interval_ns=10 * MS, timeout_ns=300 * MS)
        result = ping.measure(source, destination, test)
    except MeasurementError:
        return False
    assert result.received == 5
    return True


@contextmanager
def sniffer(netns_name: str, device: str) -> Iterator[socket.socket]:
    """A packet socket that is told of the tags that the kernel took off."""
    with netns.inside(netns_name):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    with opened:
        opened.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        opened.bind((device, 0x0003))
        opened.settimeout(5)
        yield opened


def tag_of_echo(opened: socket.socket, icmp_type: int) -> int | None:
    """The tag (PCP, VID) of the next echo request (8) or reply (0) here; None without one."""
    while True:
        frame, ancillary, _, _ = opened.recvmsg(2048, 256)
        if frame[12:14] != b"\x08\x00" or frame[23] != 1 or frame[34] != icmp_type:
            continue
        ((_, _, data),) = ancillary
        status = int.from_bytes(data[:4], "little")
        return int.from_bytes(data[16:18], "little") if status & TAG_VALID else None


def test_an_access_port_talks_with_a_vlan_device() -> None:
    with built(switch(ACCESS, TRUNK)):
        vlan_device(FAR, 7, "10.0.0.2/24")
        vlan_device(FAR, 8, "10.0.0.3/24")  # the trunk carries it, the port doesn't
        run(FAR, "address add 10.0.0.4/24 dev eth0")
        assert talks(VM, "10.0.0.2")
        assert not talks(VM, "10.0.0.3")
        assert not talks(VM, "10.0.0.4")


def test_a_trunk_passes_its_vlans_only() -> None:
    with built(switch(ACCESS, Carry(((8, 9),)))):
        vlan_device(FAR, 7, "10.0.0.2/24")
        assert not talks(VM, "10.0.0.2")


def test_priorities_cross_between_programs_and_vlan_devices() -> None:
    marked = ((Tag(7), Marking((MarkRule(cos=5),))), (Untag(7),))
    with built(switch(marked, TRUNK)), ExitStack() as stack:
        vlan_device(FAR, 7, "10.0.0.2/24", "egress-qos-map 0:3")
        far = stack.enter_context(sniffer(FAR, "eth0"))
        uplink = stack.enter_context(sniffer(HOST, "vmnic0"))
        vm = stack.enter_context(sniffer(VM, "eth0"))
        assert talks(VM, "10.0.0.2")
        assert tag_of_echo(far, 8) == 5 << 13 | 7
        assert tag_of_echo(uplink, 0) == 3 << 13 | 7
        assert tag_of_echo(vm, 0) is None


def receive(opened: socket.socket, size: int) -> bytes:
    opened.settimeout(10)
    got = bytearray()
    while len(got) < size and (more := opened.recv(1 << 16)):
        got += more
    return bytes(got)


def test_bulk_data_crosses_from_a_vlan_device() -> None:
    """Whole trains of segments (GSO), whose tags the programs take off and put on."""
    with built(switch(ACCESS, TRUNK)), ExitStack() as stack:
        vlan_device(FAR, 7, "10.0.0.2/24")
        with netns.inside(FAR):
            listening = stack.enter_context(socket.create_server(("10.0.0.2", 5001)))
        with netns.inside(VM):
            near = stack.enter_context(socket.create_connection(("10.0.0.2", 5001), 10))
        listening.settimeout(10)
        far = stack.enter_context(listening.accept()[0])
        for sender, receiver in ((near, far), (far, near)):
            thread = threading.Thread(target=sender.sendall, args=(MEGABYTE,))
            thread.start()
            got = receive(receiver, len(MEGABYTE))
            thread.join()
            assert got == MEGABYTE


def test_a_guest_that_tags_by_itself() -> None:
    """VLAN 4095, as vSphere has it: the guest's own 8021q device on a port that is a trunk."""
    with built(switch(((TRUNK,), (TRUNK,)), TRUNK)):
        for last, netns_name in enumerate((VM, FAR), 1):
            for vid in (7, 9, 11):
                vlan_device(netns_name, vid, f"10.0.{vid}.{last}/24")
        assert talks(VM, "10.0.7.2")
        assert talks(VM, "10.0.9.2")
        assert not talks(VM, "10.0.11.2")


@pytest.mark.needs_feature("vlan_filtering")
def test_a_vlan_aware_bridge_as_physical_switch() -> None:
    """Its trunk port takes the uplink's tags, its access port gives them to an end without any."""
    other = "tb-ref-other"
    with built([*switch(ACCESS, TRUNK), Netns(other, other, "host", SYSCTLS)]):
        run(
            FAR,
            "link add tor type bridge vlan_filtering 1 vlan_default_pvid 0 forward_delay 0",
            f"link add access type veth peer name eth0 netns {other}",
            "link set eth0 master tor up",
            "link set access master tor up",
            "link set tor up",
        )
        for address in ("10.0.0.2/24", "10.0.0.3/24"):
            run(other, f"address add {address} dev eth0")
        run(other, "link set eth0 up")

        def vlan(words: str) -> None:
            subprocess.run(["bridge", "-n", FAR, "vlan", *words.split()], check=True)

        vlan("add dev eth0 vid 7")
        vlan("add dev access vid 8 pvid untagged")
        assert not talks(VM, "10.0.0.2")
        vlan("delete dev access vid 8")
        vlan("add dev access vid 7 pvid untagged")
        assert talks(VM, "10.0.0.3")
