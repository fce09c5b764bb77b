"""Pages that aren't there: who touches one waits, gets what was put in, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from testbed.errors import MigrationError
from testbed.guest import layout
from testbed.guest.machine import Guest
from testbed.guest.memory import PAGE_BYTES, GuestMemory
from testbed.guest.missing import MissingPages
from testbed.guest.specification import GuestSpec
from testbed.guest.userfaultfd import open_userfaultfd
from testbed.guest.workloads import Writer

pytestmark = [pytest.mark.root, pytest.mark.needs_feature("pagemap_scan")]

MIB = 1 << 20
FIRST = layout.first_data_page(3)
READ, WRITE = 0, 1
COMMAND, ANSWER = struct.Struct("qqq"), struct.Struct("q")


class Vcpus:
    """Processes that read or write a word of a page when told, as vCPUs of one guest."""

    def __init__(self, size_bytes=8 * MIB, count=3):
        with ExitStack() as undo:
            self.memory = memory = undo.enter_context(GuestMemory("vm", size_bytes))
            self.spec = GuestSpec("vm", size_bytes, count)
            self.tracking, self.missing_pages = "pagemap", 0
            self.userfaultfds, self.pids, self.sockets = (), [], []
            for _ in range(count):
                mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.enter_context(mine)
                with its:
                    if not (pid := os.fork()):
                        self._live(its, memory)
                undo.callback(os.waitpid, pid, 0)
                undo.callback(os.kill, pid, signal.SIGKILL)
                _, fds, _, _ = socket.recv_fds(mine, 1, 1)
                undo.callback(os.close, fds[0])
                self.userfaultfds += (fds[0],)
                self.pids.append(pid)
                mine.settimeout(10)
                self.sockets.append(mine)
            self._undo = undo.pop_all()

    @staticmethod
    def _live(its, memory):
        try:
            fd = open_userfaultfd()
            memory.populate()
            its.sendmsg([b"u"], [(1, 1, fd.to_bytes(4, "little"))])
            while told := its.recv(COMMAND.size):
                verb, page, value = COMMAND.unpack(told)
                if verb == WRITE:
                    memory.words[page, 1] = value
                its.send(ANSWER.pack(int(memory.words[page, 0])))
        finally:
            os._exit(0)

    def touch(self, vcpu, verb, page, value=0):
        self.sockets[vcpu].send(COMMAND.pack(verb, page, value))

    def found(self, vcpu):
        return ANSWER.unpack(self.sockets[vcpu].recv(ANSWER.size))[0]

    def waits(self, vcpu):
        """Whether it has not answered."""
        self.sockets[vcpu].setblocking(False)
        try:
            self.sockets[vcpu].recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.sockets[vcpu].settimeout(10)
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._undo.close()


@pytest.fixture
def vcpus():
    with Vcpus() as made:
        yield made


def content(page):
    made = np.zeros(512, np.uint64)
    made[0] = page + 1
    return made


def place(pages, numbers):
    room = np.concatenate([content(number) for number in numbers])
    pages.place(np.array(numbers), int(room.ctypes.data))


def faults(pages, vcpu):
    """Wait until the vCPU is known to wait for something."""
    before, deadline = pages.faults, time.monotonic() + 10
    new = []
    while pages.faults == before:
        assert time.monotonic() < deadline
        new += pages.faults_of(vcpu)
    return new


def test_all_who_wait_for_a_page_get_it_at_once(vcpus):
    """Reads and writes of several vCPUs; whichever came first, each sees the page, or it waits."""
    pages = MissingPages(vcpus)
    holes = np.arange(FIRST, FIRST + 300, 2)
    vcpus.memory.words[:, 0] = 7
    pages.install(holes)
    assert pages.left == vcpus.missing_pages == len(holes)
    random = np.random.default_rng(1)
    for page in holes.tolist():
        vcpus.touch(0, READ, page + 1)  # its neighbour is there
        assert vcpus.found(0) == 7
        order = random.permutation(3)[: random.integers(4)].tolist()
        for vcpu in order:
            vcpus.touch(vcpu, int(random.integers(2)), page, 5)
        told = [new for vcpu in order for new in faults(pages, vcpu)]
        assert told == [page] * bool(order)  # once
        assert all(vcpus.waits(vcpu) for vcpu in order)
        place(pages, [page])
        assert [vcpus.found(vcpu) for vcpu in order] == [page + 1] * len(order)
    assert pages.left == 0
    assert len(pages.waits_ns) == len([1 for _ in pages.waits_ns if _ > 0]) > 50
    pages.remove()
    assert vcpus.missing_pages == 0


def test_no_wake_up_is_lost(vcpus):
    """vCPUs touch pages just as these come: all of them go on."""
    pages = MissingPages(vcpus)
    holes = np.arange(FIRST, FIRST + 900)
    pages.install(holes)
    for first in range(0, 900, 3):
        numbers = holes[first : first + 3].tolist()
        for vcpu in range(3):
            vcpus.touch(vcpu, WRITE, numbers[first // 3 % 3], vcpu)
        place(pages, numbers)
        deadline = time.monotonic() + 10
        for vcpu in range(3):
            while vcpus.waits(vcpu):
                assert time.monotonic() < deadline
                assert pages.faults_of(vcpu) == []  # it is there: the vCPU is only woken
            assert vcpus.found(vcpu) == numbers[first // 3 % 3] + 1
    pages.remove()


def test_a_page_that_comes_twice_is_left_as_it_is(vcpus):
    pages = MissingPages(vcpus)
    pages.install(np.arange(FIRST, FIRST + 4))
    place(pages, [FIRST, FIRST + 2])
    vcpus.touch(1, WRITE, FIRST, 9)
    vcpus.found(1)
    place(pages, [FIRST, FIRST + 1, FIRST + 2, FIRST + 3])
    assert (pages.duplicates, pages.left) == (2, 0)
    assert vcpus.memory.words[FIRST, :2].tolist() == [FIRST + 1, 9]
    assert vcpus.memory.words[FIRST + 1 : FIRST + 4, 0].tolist() == [
        FIRST + 2,
        FIRST + 3,
        FIRST + 4,
    ]


def test_what_is_expected_before_the_stun_is_missing_after_it(vcpus):
    pages = MissingPages(vcpus)
    pages.expect(np.array([FIRST, FIRST + 9]))
    with pytest.raises(MigrationError, match="2 pages of vm were expected to be missing, 1 are"):
        pages.install(np.array([FIRST]))
    pages.install(np.array([FIRST, FIRST + 5, FIRST + 9]))
    assert pages.missing().tolist() == [FIRST, FIRST + 5, FIRST + 9]
    with pytest.raises(ValueError, match="3 pages are missing"):
        pages.remove()


def test_a_page_that_another_process_made_is_noticed(vcpus):
    """The VMX itself touches a hole: a page of zeros, which must not pass for the guest's."""
    pages = MissingPages(vcpus)
    pages.install(np.array([FIRST]))
    assert vcpus.memory.words[FIRST, 0] == 0
    with pytest.raises(MigrationError, match="touched by another than its vCPUs"):
        place(pages, [FIRST])


def test_a_vcpu_that_has_died_is_noticed(vcpus):
    pages = MissingPages(vcpus)
    pages.install(np.array([FIRST]))
    os.kill(vcpus.pids[0], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while vcpus.sockets[0].recv(1):  # its end is closed once its memory is gone
        assert time.monotonic() < deadline
    with pytest.raises(MigrationError, match="vCPU 0 of vm has died"):
        place(pages, [FIRST])


@pytest.mark.parametrize("page", [0, FIRST - 1, 8 * MIB // PAGE_BYTES])
def test_state_of_the_guest_can_not_be_missing(vcpus, page):
    with pytest.raises(MigrationError, match="can't be missing"):
        MissingPages(vcpus).expect(np.array([page]))


@pytest.mark.parametrize(
    ("changes", "tracking", "reason"),
    [
        ({"backing": "synthetic"}, "bytemap", "synthetic memory"),
        ({"resident_bytes": 4 * MIB}, "pagemap", "swap file"),
        ({"page_bytes": 2 * MIB}, "pagemap", "pages of 2 MiB"),
        ({}, "pagemap", "no userfaultfd"),
    ],
)
def test_what_can_not_run_without_its_pages_is_refused(changes, tracking, reason):
    spec = replace(GuestSpec("vm", 8 * MIB, 1), **changes)
    with pytest.raises(MigrationError, match=f"vm can't be resumed quickly: .*{reason}"):
        MissingPages(SimpleNamespace(spec=spec, tracking=tracking, memory=None, userfaultfds=()))


def test_a_guest_that_lacks_pages_is_not_tracked_and_dies_when_told():
    """Tracking would take the place of what makes vCPUs wait; one that waits can be ended."""
    spec = GuestSpec("vm", 8 * MIB, 2, (Writer("uniform", 10**8, 4 * MIB),), 3)
    with Guest.create_masked(spec) as guest:
        layout.initialise(guest.memory, 2)
        first = layout.first_data_page(2)
        pages = MissingPages(guest)
        pages.install(np.arange(first, guest.memory.page_count))
        guest.resume()
        for vcpu in range(2):
            assert len(faults(pages, vcpu)) == 1
        with pytest.raises(MigrationError, match="pages of vm are missing still"):
            guest.tracker()
