"""Searching for an MTU, judging answers, piping a connection: without a network."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.measure import netcat
from testbed.measure.icmp import received_ttl
from testbed.measure.path_mtu import largest
from testbed.measure.socket_errors import ORIGIN_ICMP, ORIGIN_ICMP6, SocketError
from testbed.measure.traceroute import Hop, Probe, TraceTest, judge


@given(st.integers(16, 9000), st.integers(0, 9000), st.integers(0, 9001))
def test_the_largest_that_passes_is_found_in_few_steps(least: int, more: int, limit: int) -> None:
    most, asked = least + more, []

    def passes(size: int) -> bool:
        asked.append(size)
        return size <= limit

    assert largest(passes, least, most) == (min(limit, most) if limit >= least else None)
    assert len(asked) <= 15
    assert all(least <= size <= most for size in asked)


@pytest.mark.parametrize(
    ("version", "answer", "expected"),
    [
        (4, (ORIGIN_ICMP, 11, 0), Probe("10.0.0.1", 5)),
        (4, (ORIGIN_ICMP, 3, 3), Probe("10.0.0.1", 5, arrived=True)),
        (4, (ORIGIN_ICMP, 3, 1), Probe("10.0.0.1", 5, "!H")),
        (4, (ORIGIN_ICMP, 3, 13), Probe("10.0.0.1", 5, "!X")),
        (6, (ORIGIN_ICMP6, 3, 0), Probe("10.0.0.1", 5)),
        (6, (ORIGIN_ICMP6, 1, 4), Probe("10.0.0.1", 5, arrived=True)),
        (6, (ORIGIN_ICMP6, 1, 0), Probe("10.0.0.1", 5, "!N")),
    ],
)
def test_an_answer_is_judged_as_traceroute_does(
    version: int, answer: tuple[int, int, int], expected: Probe
) -> None:
    origin, kind, code = answer
    error = SocketError(errno.EHOSTUNREACH, 0, origin, kind, code, offender="10.0.0.1", at_ns=1005)
    assert judge(version, error, 1000) == expected
    assert Hop(1, (expected,)).last is (expected.arrived or bool(expected.mark))


@pytest.mark.parametrize("bad", [{"most_hops": 0}, {"probes": 11}, {"timeout_ns": 1}])
def test_numbers_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give"):
        TraceTest(**bad)


def test_the_ttl_is_the_header_s_or_told_beside_it() -> None:
    assert received_ttl(4, bytes(8) + b"\x3f" + bytes(20), []) == 63
    hop_limit = (socket.IPPROTO_IPV6, 52, (61).to_bytes(4, "little"))
    assert received_ttl(6, b"", [(socket.SOL_SOCKET, 52, b"\0" * 4), hop_limit]) == 61
    assert received_ttl(6, b"", []) is None


@given(st.binary(max_size=300_000), st.binary(max_size=300_000))
def test_a_connection_is_piped_whole_both_ways(ours: bytes, theirs: bytes) -> None:
    near, far = socket.socketpair()
    source, sink = os.memfd_create("source"), os.memfd_create("sink")
    os.write(source, ours)
    os.lseek(source, 0, os.SEEK_SET)
    heard = bytearray()

    def other_side() -> None:
        while part := far.recv(1 << 16):
            heard.extend(part)
        far.sendall(theirs)
        far.close()

    thread = threading.Thread(target=other_side)
    thread.start()
    with near:
        assert netcat.exchange(near, source, sink) == (len(ours), len(theirs))
    thread.join()
    assert bytes(heard) == ours
    assert os.pread(sink, 1 << 20, 0) == theirs
    os.close(source)
    os.close(sink)


def test_a_silent_connection_ends_in_its_time() -> None:
    near, far = socket.socketpair()
    quiet = os.pipe()
    with near, far:
        assert netcat.exchange(near, quiet[0], 1, idle_ns=20_000_000) == (0, 0)
    for end in quiet:
        os.close(end)
