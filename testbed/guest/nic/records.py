"""What the NIC process and vCPU 0 tell each other, and where in the NIC pages.

Each connection begins with OPENED and ends with one CLOSE of the vCPU's, whoever closed it
first; only then is its number given to another. What a connection may have under way towards
its socket is bounded: SENT says how much of it the socket has taken.
"""

from __future__ import annotations

from typing import NamedTuple

from testbed.guest.nic.rings import POSITION_WORDS, Ring
from testbed.guest.specification import SMALL_PAGE_BYTES

CONNECTIONS = 64
CONNECTION_BYTES = 128
RING_PAGES = 16

# From the NIC process. OPENED: connection, payload the service (4 bytes, little-endian), which is
# the local port, or DIALLED and the workload's number if the VM opened it. DATA: what arrived.
# ENDED: the peer sends no more. LOST: the connection is gone. SENT: payload the number of bytes
# that the socket has taken (8 bytes, little-endian). ECHO: an echo request.
# From vCPU 0. DATA: what to send. CLOSE: after what was to be sent. ECHO: an echo reply.
# An ECHO is an envelope of `ENVELOPE_BYTES`, which the reply has unchanged, and an ICMP message.
OPENED, DATA, ENDED, LOST, SENT, ECHO, CLOSE = range(1, 8)
ENVELOPE_BYTES = 40

DIALLED = 1 << 16
NO_EPOCH = 0


class NicPages(NamedTuple):
    """The NIC pages' parts.

    `epoch` is one word, not 0 once vCPU 0 has begun, other for every start of the workloads:
    connections of another epoch are none of this guest's. `table` are `CONNECTIONS` times
    `CONNECTION_BYTES`, vCPU 0's own. `received` is put by the NIC process, `to_send` by vCPU 0.
    """

    epoch: memoryview
    table: memoryview
    received: Ring
    to_send: Ring


def divide(pages: memoryview) -> NicPages:
    """The parts of the NIC pages (`layout.nic_bytes`)."""
    words = pages[:SMALL_PAGE_BYTES].cast("q")
    table_end = SMALL_PAGE_BYTES + CONNECTIONS * CONNECTION_BYTES
    ring_bytes = RING_PAGES * SMALL_PAGE_BYTES
    rings = [
        Ring(
            words[number * POSITION_WORDS : (number + 1) * POSITION_WORDS],
            pages[table_end + number * ring_bytes : table_end + (number + 1) * ring_bytes],
        )
        for number in (0, 1)
    ]
    return NicPages(
        words[2 * POSITION_WORDS : 2 * POSITION_WORDS + 1],
        pages[SMALL_PAGE_BYTES:table_end],
        *rings,
    )
