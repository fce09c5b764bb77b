"""What a capture keeps and leaves out, and its file, against scapy's own packets and reader."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgReader, RawPcapNgReader

from testbed.errors import InputError
from testbed.measure.capture_filter import CaptureFilter, dissect, parse
from testbed.measure.pcapng import Interface, PcapngWriter

macs = st.sampled_from(["00:50:56:00:00:01", "00:50:56:00:00:02", "02:00:00:00:00:03"])
ipv4 = st.sampled_from(["192.168.20.11", "192.168.20.12", "192.168.30.1", "10.0.0.1"])
ipv6 = st.sampled_from(["fd00:20::11", "fd00:20::12", "fd00:30::1"])
ports = st.sampled_from([8000, 902, 53, 40000])


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    packet = Ether(src=draw(macs), dst=draw(macs))
    if draw(st.booleans()):
        packet /= Dot1Q(vlan=draw(st.sampled_from([1, 10, 20])), prio=draw(st.integers(0, 7)))
        if draw(st.booleans()):
            packet /= Dot1Q(vlan=30)
    kind = draw(st.sampled_from(["arp", "ipv4", "ipv6"]))
    if kind == "arp":
        return packet / ARP(psrc=draw(ipv4), pdst=draw(ipv4))
    if kind == "ipv4":
        packet /= IP(
            src=draw(ipv4), dst=draw(ipv4), options=draw(st.sampled_from([[], [b"\x01" * 4]]))
        )
    else:
        packet /= IPv6(src=draw(ipv6), dst=draw(ipv6))
        if draw(st.booleans()):
            packet /= IPv6ExtHdrHopByHop()
    above = draw(st.sampled_from(["tcp", "udp", "icmp"]))
    if above == "icmp":
        return packet / ICMP() if kind == "ipv4" else packet / Raw(b"payload")
    transport = TCP if above == "tcp" else UDP
    return packet / transport(sport=draw(ports), dport=draw(ports)) / Raw(b"12345")


filters = st.fixed_dictionaries(
    {},
    optional={
        "srcip": ipv4 | ipv6 | st.sampled_from(["192.168.20.0/24", "fd00:20::/64"]),
        "dstip": ipv4 | ipv6,
        "ip": ipv4,
        "mac": macs,
        "srcmac": macs,
        "dstmac": macs,
        "vlan": st.sampled_from([0, 10, 20, 30]),
        "ethtype": st.sampled_from(["0x0806", "arp", "ipv4", 0x86DD]),
        "proto": st.sampled_from(["tcp", "0x11", 6, "icmp"]),
        "tcpport": ports,
        "srcport": ports,
        "dstport": ports,
    },
)


def expected(packet: Packet, wanted: dict[str, Any]) -> bool:
    """The same question, answered from scapy's decoding alone."""
    from ipaddress import ip_address, ip_network

    packet = Ether(packet.build())
    ip = packet.getlayer(IP) or packet.getlayer(IPv6)
    transport = packet.getlayer(TCP) or packet.getlayer(UDP)
    innermost = packet
    while innermost.payload.__class__ is Dot1Q:
        innermost = innermost.payload
    protocol = None
    if ip is not None:
        protocol = ip.proto if IP in packet else ip.nh
        if IPv6ExtHdrHopByHop in packet:
            protocol = packet[IPv6ExtHdrHopByHop].nh

    def inside(address: str, network: str) -> bool:
        return ip_address(address) in ip_network(network)

    types = {"0x0806": 0x806, "arp": 0x806, "ipv4": 0x800, 0x86DD: 0x86DD}
    numbers = {"tcp": 6, "0x11": 17, 6: 6, "icmp": 1}
    checks = {
        "srcip": lambda v: ip is not None and inside(ip.src, v),
        "dstip": lambda v: ip is not None and inside(ip.dst, v),
        "ip": lambda v: ip is not None and (inside(ip.src, v) or inside(ip.dst, v)),
        "mac": lambda v: v in (packet.src, packet.dst),
        "srcmac": lambda v: v == packet.src,
        "dstmac": lambda v: v == packet.dst,
        "vlan": lambda v: v == (packet[Dot1Q].vlan if Dot1Q in packet else 0),
        "ethtype": lambda v: innermost.type == types[v],
        "proto": lambda v: protocol == numbers[v],
        "tcpport": lambda v: TCP in packet and v in (packet[TCP].sport, packet[TCP].dport),
        "srcport": lambda v: transport is not None and transport.sport == v,
        "dstport": lambda v: transport is not None and transport.dport == v,
    }
    return all(checks[name](value) for name, value in wanted.items())


@given(packets(), filters)
def test_a_filter_agrees_with_scapy(packet: Packet, wanted: dict[str, Any]) -> None:
    assert parse(wanted).matches(packet.build()) is expected(packet, wanted)


@given(st.binary(max_size=80), filters)
def test_any_bytes_are_judged_without_an_error(data: bytes, wanted: dict[str, Any]) -> None:
    parse(wanted).matches(data)


@given(packets(), st.data())
def test_a_frame_cut_short_is_judged_without_an_error(packet: Packet, data: st.DataObject) -> None:
    frame = packet.build()
    dissect(memoryview(frame)[: data.draw(st.integers(0, len(frame)))])


def test_the_outermost_tag_counts() -> None:
    frame = (Ether() / Dot1AD(vlan=100) / Dot1Q(vlan=20) / IP() / UDP()).build()
    assert parse({"vlan": 100}).matches(frame)
    assert not parse({"vlan": 20}).matches(frame)
    assert parse({"vlan": 100, "proto": "udp"}).matches(frame)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (
            IP(flags="MF") / UDP(sport=5, dport=6),
            IP(frag=100, proto=17) / Raw(b"\0\5\0\6" * 4),
        ),
        (
            IPv6() / IPv6ExtHdrFragment(offset=0, m=1, nh=17) / UDP(sport=5, dport=6),
            IPv6() / IPv6ExtHdrFragment(offset=100, nh=17) / Raw(b"\0\5\0\6" * 4),
        ),
    ],
    ids=["ipv4", "ipv6"],
)
def test_later_fragments_have_no_ports(first: Packet, later: Packet) -> None:
    by_port, by_protocol = parse({"srcport": 5}), parse({"proto": "udp"})
    assert by_port.matches((Ether() / first).build())
    assert not by_port.matches((Ether() / later).build())
    assert by_protocol.matches((Ether() / later).build())


def test_no_options_let_everything_pass() -> None:
    assert parse({"srcip": None}).everything
    assert CaptureFilter().matches(bytes(14))
    assert not parse({"vlan": 0}).everything


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("srcip", "192.168.20"),
        ("ip", "esx01"),
        ("mac", "00:50:56:00:00"),
        ("vlan", 4096),
        ("ethtype", "0x10000"),
        ("ethtype", "ipx"),
        ("proto", 256),
        ("tcpport", -1),
        ("dstport", "http"),
    ],
)
def test_what_an_option_does_not_take_is_refused(option: str, value: str | int) -> None:
    with pytest.raises(InputError, match=f"--{option} {value}: give"):
        parse({option: value})


# ---------------------------------------------------------------- the file

frames = st.lists(
    st.tuples(st.integers(0, 2**62), st.binary(max_size=70), st.sampled_from(["in", "out", None])),
    max_size=5,
)


def written(packets: list[tuple[int, bytes, Any]], **interface: Any) -> io.BytesIO:
    file = io.BytesIO()
    writer = PcapngWriter(file, "testbed test")
    number = writer.add_interface(Interface("esx01/vmnic0", **interface))
    for unix_ns, frame, direction in packets:
        writer.packet(number, unix_ns, frame, length=len(frame) + 1000, direction=direction)
    writer.statistics(number, 0, len(packets), 3)
    file.seek(0)
    return file


@given(frames)
def test_scapy_reads_every_frame_time_length_and_direction(
    packets: list[tuple[int, bytes, Any]],
) -> None:
    read = list(RawPcapNgReader(written(packets, snaplen_bytes=70)))
    assert [data for data, _ in read] == [frame for _, frame, _ in packets]
    for (_, about), (unix_ns, frame, direction) in zip(read, packets, strict=True):
        assert (about.tshigh << 32) + about.tslow == unix_ns
        assert about.tsresol == 10**9
        assert about.wirelen == len(frame) + 1000
        assert about.ifname == b"esx01/vmnic0"
        assert about.direction == {"in": 1, "out": 2, None: 0}[direction]


def test_a_tagged_frame_is_one_for_scapy_to_the_nanosecond() -> None:
    frame = (Ether() / Dot1Q(vlan=20, prio=4) / IP(tos=26 << 2) / UDP()).build()
    (found,) = PcapNgReader(written([(1_700_000_000_123_456_789, frame, "out")]))
    assert (found[Dot1Q].vlan, found[Dot1Q].prio, found[IP].tos >> 2) == (20, 4, 26)
    assert int(found.time * 10**9) == 1_700_000_000_123_456_789


def test_blocks_are_whole_and_end_where_they_say() -> None:
    """Every reader skips blocks and options it doesn't know by their lengths."""
    data = written([(1, b"abc", "in")], description="the uplink", filter_text="vlan 20").getvalue()
    at, kinds = 0, []
    while at < len(data):
        kind, length = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4))
        assert length % 4 == 0
        assert int.from_bytes(data[at + length - 4 : at + length], "little") == length
        kinds.append(kind)
        at += length
    assert kinds == [0x0A0D0D0A, 1, 6, 5]
