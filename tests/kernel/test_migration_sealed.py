"""Encrypted vMotion: the guest moves as it does in plain, and the wire shows nothing of it."""

from __future__ import annotations

import socket
from dataclasses import replace

import numpy as np
import pytest

from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Writer
from testbed.migration.specification import StreamSpec
from tests.kernel import migration_pair
from tests.kernel.migration_pair import A, B, destination, joined, memory_of, source, starting

pytestmark = pytest.mark.root

MIB = 1 << 20
GUEST = GuestSpec("vm", 16 * MIB, 2, (Writer("uniform", 4 * 10**6, 8 * MIB),), seed=11)
ETH_P_IP = 0x0800


@pytest.fixture(scope="module")
def namespaces():
    with joined() as names:
        yield names


@pytest.fixture
def start(namespaces):
    with starting(namespaces) as at:
        yield at


def moved(start, *, encrypted, count=1):
    """The guest moves, verified while both ends stand still; what a stranger saw of the wire."""
    spec = migration_pair.specification(
        guest=GUEST,
        switchover_goal_ns=500_000_000,
        verify=True,
        encrypted=encrypted,
        streams=(StreamSpec(A, B),) * count,
    )

    def listens(tell, told):
        seen = bytearray()
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, 33, 64 * MIB)  # SO_RCVBUFFORCE
            sock.bind(("eth0", ETH_P_IP))
            tell("ready")
            told.recv(10)
            sock.settimeout(0.2)
            try:
                while True:
                    seen += sock.recv(1 << 17)
            except TimeoutError:
                tell([len(seen), [mark in seen for mark in marks]])

    there, here = start(1, destination(spec)), start(0, source(spec))
    _, there_fd = there.told()
    _, here_fd = here.told()
    # What the guest had in its memory at first, in places that hardly all are written over.
    pages = memory_of(here.pid, here_fd)[-512::16]
    marks = [page[256:264].tobytes() for page in pages if page[256:264].all()]
    assert len(marks) > 16
    stranger = start(1, listens)
    assert stranger.told() == "ready"
    here.go()
    assert there.told() == "held"
    ours, theirs = memory_of(here.pid, here_fd), memory_of(there.pid, there_fd)
    assert int((ours != theirs).any(axis=1).sum()) == 0
    stranger.go()
    there.go()
    report, *_ = here.told()
    there.told()
    return report, *stranger.told()


def test_a_guest_moves_over_encrypted_streams_and_the_wire_shows_nothing(start):
    report, seen_bytes, found = moved(start, encrypted=True, count=2)
    assert len(report.streams) == 2
    assert seen_bytes > GUEST.memory_bytes // 10
    assert found.count(True) == 0
    records = GUEST.memory_bytes // (1 << 18)
    sent = sum(stream.bytes for stream in report.streams)
    assert sent > sum(it.wire_bytes for it in report.iterations) + records * 20


def test_the_same_in_plain_shows_it(start):
    """So the stranger of the other test looks at the right place."""
    _, _, found = moved(start, encrypted=False)
    assert np.mean(found) > 0.1


@pytest.mark.needs_feature("pagemap_scan")
def test_pages_that_come_after_resume_are_sealed_too(start, tmp_path):
    spec = migration_pair.specification(
        guest=replace(GUEST, workloads=(Writer("uniform", 100 * 10**6, 8 * MIB),)),
        encrypted=True,
        remaining_pages="after resume",
        resume_file=str(tmp_path / "vm.resume"),
        switchover_goal_ns=10**9,
        streams=(StreamSpec(A, B),) * 2,
    )
    there, here = start(1, destination(spec)), start(0, source(spec))
    there.told()
    here.told()
    here.go()
    report, *_ = here.told(60)
    there.told()
    assert report.post_copy.pages_missing > 0
    assert not report.post_copy.file_used
