"""LLDP frames as another implementation reads them, and whatever comes instead of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.measure.lldp import Neighbour, decode, encode

MAC = bytes.fromhex("0250560000aa")


def test_scapy_reads_what_a_port_says() -> None:
    lldp = pytest.importorskip("scapy.contrib.lldp")
    from scapy.layers.l2 import Ether

    frame = Ether(encode(Neighbour("tor-a", "esx01-vmnic0", 9000, (10, 20)), MAC))
    assert frame.dst == "01:80:c2:00:00:0e"
    assert frame[lldp.LLDPDUSystemName].system_name == b"tor-a"
    assert frame[lldp.LLDPDUPortID].id == b"esx01-vmnic0"
    assert frame[lldp.LLDPDUTimeToLive].ttl == 120


@given(
    switch=st.text("abc-01", min_size=1, max_size=20),
    port=st.text("abc-01", min_size=1, max_size=20),
    mtu=st.integers(68, 65517),
    vlans=st.lists(st.integers(1, 4094), max_size=60),
)
def test_what_is_told_is_heard(switch: str, port: str, mtu: int, vlans: list[int]) -> None:
    told = Neighbour(switch, port, mtu, tuple(vlans))
    assert decode(encode(told, MAC)) == told


@given(st.binary(max_size=300))
def test_no_frame_breaks_the_reader(data: bytes) -> None:
    decode(MAC + MAC + b"\x88\xcc" + data)


def test_a_frame_that_is_cut_short_says_nothing() -> None:
    whole = encode(Neighbour("tor-a", "p1", 1500), MAC)
    assert decode(whole[:-12]) is None
