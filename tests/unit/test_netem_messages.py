"""netem's messages, byte by byte: this must hold where no kernel with netem is at hand."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.kernel.delay import netem

MS = 10**6
DELAYS = st.integers(0, 10**12)
INDEXES = st.integers(2, 2**31 - 1)
LIMITS = st.integers(1, 2**32 - 1)


def test_a_qdisc_is_what_the_kernel_s_header_says():
    # linux/rtnetlink.h and pkt_sched.h, written out by hand: 5 ms and 1 ms, in ticks of 64 ns
    # 78125 and 15625, at most 1000 packets, on link 9.
    data = netem.qdisc(9, 5 * MS, MS, 1000)
    want = struct.pack("=IHHII", len(data), 36, 0x1 | 0x4 | 0x100 | 0x400, 0, 0)  # RTM_NEWQDISC
    want += struct.pack("=BBHiIII", 0, 0, 0, 9, 0x20000, 0xFFFFFFFF, 0)  # tcmsg: 2: at the root
    want += struct.pack("=HH6sxx", 4 + 6, 1, b"netem\0")  # TCA_KIND
    want += struct.pack("=HH", 4 + 24 + 20 + 3 * 12, 2)  # TCA_OPTIONS
    want += struct.pack("=6I", 78125, 1000, 0, 0, 0, 15625)  # tc_netem_qopt
    want += struct.pack("=HHIiIi", 20, 6, 0xFFFFFFFF, 0, 0, 0)  # TCA_NETEM_RATE
    want += struct.pack("=HHQ", 12, 8, 1 << 60)  # TCA_NETEM_RATE64
    want += struct.pack("=HHq", 12, 10, 5_000_000)  # TCA_NETEM_LATENCY64
    want += struct.pack("=HHq", 12, 11, 1_000_000)  # TCA_NETEM_JITTER64
    assert bytes(data) == want


def test_the_rate_that_keeps_the_order_takes_no_time():
    # sch_netem.c: a packet takes its length x 10^9 / rate, in whole nanoseconds.
    longest_train_bytes = 512 * 1024  # BIG TCP
    assert longest_train_bytes * 10**9 // netem.ORDERED_RATE_BYTES_PER_S == 0


@given(INDEXES, DELAYS, DELAYS, LIMITS)
def test_what_is_asked_for_reads_back(index, delay, jitter, limit):
    data = bytes(netem.qdisc(index, delay, jitter, limit))
    fact = netem.parse(data, 16, len(data), index)
    assert fact == (delay, jitter, limit, netem.ORDERED_RATE_BYTES_PER_S, True)


def answer(options, kind=b"netem\0", index=9, parent=0xFFFFFFFF):
    body = struct.pack("=BBHiIII", 0, 0, 0, index, 0x20000, parent, 2)
    body += struct.pack("=HH", 4 + len(kind), 1) + kind + bytes(-len(kind) % 4)
    return body + struct.pack("=HH", 4 + len(options), 2) + options


QOPT = struct.pack("=6I", 78125, 1000, 0, 0, 0, 0)


def test_a_kernel_that_reports_only_the_old_fields_is_read():
    data = answer(QOPT)
    assert netem.parse(data, 0, len(data), 9) == (5 * MS, 0, 1000, 0, True)


@pytest.mark.parametrize(
    "options",
    [
        struct.pack("=6I", 78125, 1000, 1, 0, 0, 0),  # loss
        struct.pack("=6I", 78125, 1000, 0, 0, 1, 0),  # duplicates
        struct.pack("=6I", 78125, 1000, 0, 1, 0, 0) + struct.pack("=HHII", 12, 3, 1, 0),  # reorder
        QOPT + struct.pack("=HHII", 12, 4, 1, 0),  # corrupt
        QOPT + struct.pack("=HHHHIIII", 24, 5, 20, 2, 1, 1, 1, 1),  # a loss model
    ],
)
def test_one_that_does_harm_is_told(options):
    data = answer(options)
    fact = netem.parse(data, 0, len(data), 9)
    assert fact is not None
    assert not fact.harmless


@pytest.mark.parametrize(
    "other", [answer(QOPT, kind=b"htb\0"), answer(QOPT, index=8), answer(QOPT, parent=0x10000)]
)
def test_other_qdiscs_are_passed_over(other):
    assert netem.parse(other, 0, len(other), 9) is None


def test_a_qdisc_is_taken_away_at_its_root():
    data = netem.delete_qdisc(9)
    assert struct.unpack_from("=IHH", data) == (len(data), 37, 0x1 | 0x4)
    assert struct.unpack_from("=BBHiII", data, 16) == (0, 0, 0, 9, 0, 0xFFFFFFFF)
