"""Netlink messages: what is patched into a template reads as pyroute2 decodes it."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.kernel import htb, messages, routing
from testbed.kernel.netlink import attributes
from testbed.kernel.port import rarp_frame
from testbed.plan.policies import Shape, TrafficClass
from testbed.plan.steps import Address, End, Route, Veth

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=15)
MTUS = st.integers(68, 65535)
INDEXES = st.integers(2, 2**31 - 1)


def decoded(kind, data):
    message = kind(bytes(data))
    message.decode()
    return message


@given(
    NAMES,
    NAMES,
    MTUS,
    MTUS,
    INDEXES,
    INDEXES,
    st.integers(3, 10**6),
    st.binary(min_size=6, max_size=6),
)
def test_a_veth_is_encoded_with_both_its_ends(near, far, mtu, far_mtu, index, peer, fd, raw_mac):  # noqa: PLR0917
    mac = raw_mac.hex(":")
    wire = Veth(End("ns-a", near, mtu, "x", mac=mac), End("ns-b", far, far_mtu, "y"))
    data = messages.create_veth(wire, index, peer, fd)
    message = decoded(ifinfmsg, data)
    assert len(data) == struct.unpack_from("=I", data)[0]
    assert message["index"] == index
    assert message.get_attr("IFLA_IFNAME").rstrip("\0") == near
    assert message.get_attr("IFLA_MTU") == mtu
    assert message.get_attr("IFLA_ADDRESS") == mac
    other = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert other["index"] == peer
    assert other.get_attr("IFLA_IFNAME").rstrip("\0") == far
    assert other.get_attr("IFLA_MTU") == far_mtu
    assert other.get_attr("IFLA_NET_NS_FD") == fd


@given(st.text(min_size=1, max_size=60), MTUS, INDEXES)
def test_an_alias_of_any_length_goes_last(alias, mtu, index):
    alias = alias.replace("\0", "")
    data = messages.configure(index, mtu, 7, alias)
    assert len(data) == struct.unpack_from("=I", data)[0]
    assert len(data) % 4 == 0
    message = decoded(ifinfmsg, data)
    assert (message.get_attr("IFLA_MTU"), message.get_attr("IFLA_MASTER")) == (mtu, 7)
    assert message.get_attr("IFLA_IFALIAS") == alias


@given(st.ip_addresses(), st.data(), INDEXES)
def test_addresses_of_both_families(address, data, index):
    prefix = data.draw(st.integers(0, address.max_prefixlen))
    step = Address("ns", "vmk1", f"{address}/{prefix}", "")
    message = decoded(ifaddrmsg, routing.address(step, index))
    assert ip_address(message.get_attr("IFA_LOCAL")) == address
    assert message["prefixlen"] == prefix
    assert message["index"] == index
    assert bool(message["flags"] & 0x02) == (address.version == 6)  # no duplicate detection


@pytest.mark.parametrize(
    ("destination", "via", "length", "scope"),
    [("default", "10.0.0.1", 0, 0), ("10.1.0.0/16", None, 16, 253), ("10.1.2.3", None, 32, 253)],
)
def test_routes(destination, via, length, scope):
    step = Route("ns", destination, "vmk1", 1001, "", 4, via, "10.0.0.7")
    message = decoded(rtmsg, routing.route(step, 9))
    assert (message["dst_len"], message["scope"]) == (length, scope)
    assert message.get_attr("RTA_TABLE") == 1001
    assert message.get_attr("RTA_GATEWAY") == via
    assert message.get_attr("RTA_PREFSRC") == "10.0.0.7"


@given(st.integers(1000, 400 * 10**9), st.integers(16 * 1024, 1 << 20))
def test_a_burst_in_ticks_is_the_burst_to_one_tick(rate, burst_bytes):
    ticks = htb.burst_ticks(burst_bytes, rate)
    if ticks < 2**32 - 1:
        back = ticks * htb.TICK_NS * rate / 1e9
        assert burst_bytes - 1e-6 * burst_bytes <= back
        assert back <= burst_bytes + htb.TICK_NS * rate / 1e9 + 1


RATES = st.integers(1, 2**40)


@given(RATES, RATES)
def test_rates_beyond_32_bits_are_carried_whole(rate, ceil):
    step = Shape("ns", "vmnic0", rate * 8, 1500, rate, 65536, "", ceil_bytes_per_s=ceil)
    _, data = htb.shape(step, 3)
    options = decoded(tcmsg, data).get_attr("TCA_OPTIONS")
    assert options.get_attr("TCA_HTB_RATE64") == rate
    assert options.get_attr("TCA_HTB_CEIL64") == ceil
    assert options.get_attr("TCA_HTB_PARMS")["rate"] == min(rate, 2**32 - 1)
    assert options.get_attr("TCA_HTB_PARMS")["ceil"] == min(ceil, 2**32 - 1)


def test_classes_are_made_under_the_root_and_a_second_qdisc_in_the_default_class():
    rate = 12_500_000
    one = TrafficClass(10, "vms", 2 * rate, 8 * rate, 131072, 40_000)
    default = TrafficClass(12, "vm2", rate, 4 * rate, 65536, 20_000)
    step = Shape("ns", "vmnic0", 8 * 10**8, 1500, 8 * rate, 65536, "", None, (one, default), 12)
    head, *classes = [decoded(tcmsg, data) for data in htb.shape(step, 3)]
    assert head.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_INIT")["defcls"] == 12
    numbers = [(one["parent"] & 0xFFFF, one["handle"] & 0xFFFF) for one in classes]
    assert numbers == [(0, 1), (1, 10), (1, 12)]
    assert {one["handle"] >> 16 for one in classes} == {1}
    parameters = classes[2].get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")
    assert (parameters["rate"], parameters["ceil"], parameters["quantum"]) == (
        rate,
        4 * rate,
        65536,
    )
    assert parameters["buffer"] == htb.burst_ticks(20_000, rate)
    assert parameters["cbuffer"] == htb.burst_ticks(20_000, 4 * rate)
    inside = (TrafficClass(0x8000, "others", rate, rate, 65536, 20_000, major=2),)
    *_, lower, root, other = [
        decoded(tcmsg, data) for data in htb.shape(replace(step, classes=step.classes + inside), 3)
    ]
    assert (lower["parent"], lower["handle"]) == (0x1000C, 0x20000)
    assert lower.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_INIT")["defcls"] == 0x8000
    assert (root["parent"], root["handle"], other["parent"]) == (0x20000, 0x20001, 0x20001)


@pytest.mark.parametrize(("peak_bps", "cburst_bytes"), [(10**9, 125_000), (10**6, 1514)])
def test_a_peak_holds_to_within_a_millisecond_or_a_frame(peak_bps, cburst_bytes):
    peak = peak_bps // 8
    step = Shape("ns", "vmnic0", peak_bps // 2, 1500, peak // 2, 10**6, "", ceil_bytes_per_s=peak)
    (one,) = htb.classes_of(step)
    assert (one.burst_bytes, one.cburst_bytes) == (10**6, cburst_bytes)


@given(st.booleans(), st.booleans(), st.booleans(), INDEXES)
def test_a_ports_policy_is_encoded_flag_by_flag(isolated, learning, flooding, index):
    end = End("ns", "vmnic0", 1500, "", isolated=isolated, learning=learning, flooding=flooding)
    data = messages.port_policy(index, end)
    message = decoded(ifinfmsg, data)
    assert (message["family"], message["index"]) == (7, index)
    port = data[36:]  # past the headers, within IFLA_PROTINFO
    assert {kind: port[at] for kind, at, _ in attributes(port, 0, len(port))} == {
        33: isolated,
        8: learning,
        9: flooding,
    }


def test_random_macs_are_local_unicast_and_differ():
    macs = {messages.packed_mac(None) for _ in range(100)}
    assert len(macs) == 100
    assert all(mac[0] & 0x03 == 0x02 for mac in macs)


def test_a_rarp_frame_names_its_sender_four_times_over():
    scapy = pytest.importorskip("scapy.layers.l2")
    frame = scapy.Ether(rarp_frame("00:50:56:00:00:2a"))
    assert len(bytes(frame)) == 60
    assert (frame.dst, frame.src, frame.type) == ("ff:ff:ff:ff:ff:ff", "00:50:56:00:00:2a", 0x8035)
    body = scapy.ARP(bytes(frame.payload))
    assert body.op == 3
    assert body.hwsrc == body.hwdst == "00:50:56:00:00:2a"
