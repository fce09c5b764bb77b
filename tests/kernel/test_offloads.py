"""Offloads as they show on the wire: how long frames are, and who fills in their checksums."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from testbed.errors import KernelError
from testbed.kernel import builder, netns, readback
from testbed.kernel.alteration import alter
from testbed.kernel.undo import remove
from testbed.plan.policies import Offloads
from testbed.plan.steps import Address, Bridge, End, Netns, Veth

pytestmark = pytest.mark.root

NO_IPV6 = ("net/ipv6/conf/default/disable_ipv6", "1")
A, B = "tb-off.a", "tb-off.b"
MTU = 1500
HEADER = 14
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_CSUMNOTREADY = 263, 8, 8  # linux/if_packet.h
OFF = Offloads(A, "vmnic0", f"link {A}/vmnic0", segmentation=False)


def base():
    """A sender behind a switch whose uplink is wired to the receiver."""
    uplink = Veth(End(A, "vmnic0", MTU, "", None, "sw"), End(B, "eth0", MTU, ""))
    return [
        Netns(A, "a", "host", (NO_IPV6,)),
        Netns(B, "b", "host", (NO_IPV6,)),
        Bridge(A, "sw", MTU, ""),
        uplink,
        Veth(End(A, "vmk", MTU, ""), End(A, "vmk-port", MTU, "", None, "sw")),
        Address(A, "vmk", "10.0.0.1/24", ""),
        Address(B, "eth0", "10.0.0.2/24", ""),
    ]


@contextmanager
def built(steps):
    builder.build(steps)
    try:
        yield
    finally:
        remove(steps)


def received():
    """Lengths of what reaches the receiver of 2 MB of TCP, and how many lack a checksum."""
    lengths, unfinished = [], 0
    with ExitStack() as undo:
        with netns.inside(B):
            capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            undo.enter_context(capture)
            listener = undo.enter_context(socket.create_server(("10.0.0.2", 5001)))
        capture.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        capture.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
        capture.bind(("eth0", 0x0800))
        with netns.inside(A):
            sender = undo.enter_context(socket.socket())
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        sender.connect(("10.0.0.2", 5001))
        receiver = undo.enter_context(listener.accept()[0])
        thread = threading.Thread(target=sender.sendall, args=(bytes(2 << 20),))
        thread.start()
        left = 2 << 20
        while left:
            left -= len(receiver.recv(1 << 20))
        thread.join()
        capture.settimeout(0)
        while True:
            try:
                data, ancillary, _, address = capture.recvmsg(1 << 17, 100)
            except BlockingIOError:
                return lengths, unfinished
            if address[2] == socket.PACKET_OUTGOING:
                continue
            lengths.append(len(data))
            ((_, _, auxiliary),) = ancillary
            unfinished += bool(struct.unpack_from("=I", auxiliary)[0] & TP_STATUS_CSUMNOTREADY)


def ethtool(dev="vmnic0", where=A):
    command = ["ip", "netns", "exec", where, "ethtool", "-k", dev]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(re.findall(r"^\s*([\w-]+): (on|off)", done.stdout, re.MULTILINE))


def test_without_segmentation_no_frame_is_longer_than_the_mtu():
    with built(base()):
        lengths, unfinished = received()
        assert max(lengths) > 10 * MTU
        assert unfinished > 0.9 * len(lengths)
        builder.build([OFF])
        lengths, _ = received()
        assert max(lengths) == MTU + HEADER
        assert len(lengths) >= (2 << 20) // (MTU - 52)
        remove([OFF])
        lengths, _ = received()
        assert max(lengths) > 10 * MTU


def test_without_checksums_the_kernel_fills_them_in_and_cuts_as_well():
    step = replace(OFF, segmentation=True, checksum=False)
    with built([*base(), step]):
        readback.verify([step])
        lengths, unfinished = received()
        assert unfinished == 0
        assert max(lengths) == MTU + HEADER


@pytest.mark.needs_program("ethtool")
def test_offloads_are_set_read_back_altered_and_taken_back():
    with built(base()):
        before = ethtool()
        builder.build([OFF])
        readback.verify([OFF])
        assert {value for name, value in ethtool().items() if "tcp" in name} == {"off"}
        assert ethtool()["tx-checksum-ip-generic"] == "on"
        both = replace(OFF, checksum=False)
        alter(OFF, both)
        readback.verify([both])
        with pytest.raises(KernelError, match="tx-checksum-ip-generic of vmnic0: wanted on"):
            readback.verify([OFF])
        alter(both, replace(OFF, segmentation=True))
        assert ethtool() == before
        alter(OFF, both)
        remove([both])
        assert ethtool() == before
        remove([both])  # once more harms nothing


def test_a_link_that_is_missing_is_named():
    with built(base()), pytest.raises(KernelError, match=r"vmnic9 in tb-off\.a: No such device"):
        builder.build([replace(OFF, dev="vmnic9")])
