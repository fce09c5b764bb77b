from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError, MeasurementError
from testbed.measure.icmp import HEADER, decode_reply, encode_request, internet_checksum
from testbed.measure.ping import PingTest
from testbed.measure.ping_result import quantile, summarize

MS = 10**6
TOKEN = b"12345678"


def test_a_message_with_its_checksum_sums_to_zero() -> None:
    request = encode_request(4, 77, 3, TOKEN, 57)
    assert internet_checksum(request) == 0
    assert len(request) == HEADER.size + 57


def test_the_checksum_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@given(st.integers(0, 2**64 - 1), st.integers(16, 2000), st.sampled_from([4, 6]))
def test_a_reply_is_known_by_token_and_number_beyond_16_bits(
    number: int, size: int, version: int
) -> None:
    request = encode_request(version, 1, number, TOKEN, size)
    reply = struct.pack("!B", 0 if version == 4 else 129) + request[1:]
    packet = (b"\x45" + bytes(19) if version == 4 else b"") + reply
    assert decode_reply(version, packet, TOKEN) == number
    assert decode_reply(version, packet, b"somebody") is None
    assert decode_reply(version, packet[:-size], TOKEN) is None


def test_late_lost_and_duplicate_answers_are_told_apart() -> None:
    sent = [0, 10 * MS, 20 * MS, 30 * MS]
    arrivals = [(0, 1 * MS), (0, 2 * MS), (2, 520 * MS), (3, 33 * MS)]
    result = summarize("ping", sent, arrivals, 100 * MS, {})
    assert (result.sent, result.received, result.late, result.lost) == (4, 2, 1, 1)
    assert result.duplicates == 1
    assert result.lost_at_ns == (10 * MS,)
    assert result.rtt.values == (1.0 * MS, 500.0 * MS, 3.0 * MS)
    assert (result.minimum_ns, result.median_ns, result.maximum_ns) == (MS, 3 * MS, 500 * MS)


def test_an_outage_is_the_longest_time_without_an_answer() -> None:
    sent = [number * 10 * MS for number in range(10)]
    arrivals = [(number, sent[number] + MS) for number in (0, 1, 3, 7, 8, 9)]
    assert summarize("ping", sent, arrivals, MS, {}).outage_ns == 40 * MS  # from 31 to 71 ms
    cut = summarize("ping", sent, arrivals[:3], MS, {})
    assert cut.outage_ns == 59 * MS  # from 31 ms to the last echo, at 90 ms
    held = [(number, max(sent[number], 65 * MS) + MS) for number in range(10) if number not in {1}]
    assert summarize("ping", sent, held, MS, {}).outage_ns == 66 * MS  # kept, then all at once


def test_silence_is_an_error_that_names_what_the_network_said() -> None:
    with pytest.raises(MeasurementError, match=r"none of 2 echoes.*No route to host .2 times"):
        summarize("ping", [0, 1], [], MS, {"No route to host": 2})


@given(st.lists(st.floats(0, 1e9), min_size=1), st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_a_value_that_enough_others_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = quantile(values, share)
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@pytest.mark.parametrize(
    "bad", [{"count": 0}, {"interval_ns": MS - 1}, {"payload_bytes": 15}, {"payload_bytes": 65001}]
)
def test_numbers_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give"):
        PingTest(**bad)
