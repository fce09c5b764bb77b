"""Swapped pages on the way: what the ends tell each other, and whose the swap file is."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import KernelError, LabError
from testbed.guest.bytemap import BytemapTracker
from testbed.guest.memory import GuestMemory
from testbed.guest.swap import OvercommittedMemory
from testbed.guest.swap_file import SwapFile
from testbed.lab.compare_swapped import Opened, compare_overcommitted, is_overcommitted
from testbed.migration import bitmap, wire
from testbed.migration.receiver import Arrivals, Receiver
from testbed.migration.stream import PeerError, Stream
from testbed.migration.swap_bitmap import (
    Leaving,
    pack_slots,
    pack_swapped,
    take_back,
    take_over,
)
from testbed.migration.wire import Kind, WireError
from testbed.migration.wire_pages import OvercommittedPages

PAGE = 4096
PAGES, RESIDENT = 96, 64
SWAPPED = PAGES - RESIDENT


def memory(directory, *, arriving=False):
    sizes = PAGES * PAGE, RESIDENT * PAGE
    return OvercommittedMemory("vm", *sizes, str(directory), arriving=arriving)


class Line:
    """A stream to an end in this process: what is sent is there."""

    def __init__(self):
        self.bytes = bytearray()

    def send(self, *parts):
        for part in parts:
            self.bytes += part

    def receive(self, into):
        assert len(self.bytes) >= len(into)
        into[:] = self.bytes[: len(into)]
        del self.bytes[: len(into)]

    def frames(self, take):
        while self.bytes:
            header = bytearray(wire.HEADER_BYTES)
            self.receive(header)
            take(wire.unpack(header), self)


def resident(memory):
    return os.fstat(memory.fd).st_blocks * 512 // PAGE


def content(memory):
    """All of its words, wherever they are; it stays as it is."""
    with os.fdopen(os.dup(memory.fd), "rb", buffering=0) as file:
        rows = np.frombuffer(bytearray(os.pread(file.fileno(), PAGES * PAGE, 0)), np.uint64)
    rows, slots = rows.reshape(PAGES, -1), memory.table()
    out = np.flatnonzero(slots)
    rows[out] = memory._file[slots[out] - 1]
    return rows


# ---------------------------------------------------------------- nothing is lost on the way


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_in_and_goes_out_meanwhile_all_words_arrive(tmp_path, seed):
    """The guest goes on before, between and after any two steps of the source."""
    random = np.random.default_rng(seed)
    with memory(tmp_path) as source, memory(tmp_path, arriving=True) as there:
        source.fill(0, PAGES, 5)
        source.written = np.zeros(PAGES, np.uint8)
        tracker = BytemapTracker(source.written)

        def goes_on():
            for _ in range(random.integers(4)):
                pages = random.choice(np.arange(4, PAGES), random.integers(1, 12))
                if random.random() < 0.5:
                    source.read(pages, 3)
                else:
                    source.write(pages, 7, random.integers(1 << 60, size=len(pages)).view("u8"))
                    source.written[pages] = 1

        line, leaving, arrivals = Line(), Leaving(source, compacted=seed % 2 == 0), Arrivals(there)
        out, into = OvercommittedPages(source), OvercommittedPages(there)
        before = most = resident(source)

        def sent(pages):
            nonlocal most
            line.frames(arrivals.swap.receive)
            for part in np.array_split(pages.astype(wire.NUMBER), 5):
                goes_on()
                places = out.stage(part)
                into._rows[places] = out._rows[places]
                into.arrived(part)
                arrivals.stamps[part] = 1
            most = max(most, resident(there))

        tracker.install()
        goes_on()
        pages = leaving.first()
        for _ in range(4):
            goes_on()
            leaving.tell(line)
            sent(pages)
            goes_on()
            found = tracker.collect()
            goes_on()
            pages = leaving.sendable(found)
        goes_on()
        stopped = content(source)  # from here on it stands still
        last = leaving.last(np.union1d(pages, tracker.collect()), line)
        line.frames(arrivals.swap.receive)
        for part in np.array_split(last.astype(wire.NUMBER), 3):
            places = out.stage(part)
            into._rows[places] = out._rows[places]
            into.arrived(part)
            arrivals.stamps[part] = 1
        arrivals.check(0, len(last))
        assert (content(there) == stopped).all()
        assert (there.table() == source.table()).all()
        assert resident(there) == np.count_nonzero(there.table() == 0)
        assert most <= before + 3 * 12  # it never held much more than the source
        assert leaving.swapped_pages == np.count_nonzero(source.table())


def test_a_page_that_goes_out_and_comes_in_between_two_looks_is_sent_again(tmp_path):
    """What was read of it meanwhile was a hole; only that its coming in is noted saves it."""
    with memory(tmp_path) as source:
        source.fill(0, PAGES, 5)
        source.written = np.zeros(PAGES, np.uint8)
        tracker, leaving, pages = BytemapTracker(source.written), None, OvercommittedPages(source)
        source.read(np.array([10]), 0)
        tracker.install()
        leaving = Leaving(source, compacted=True)
        assert 10 in leaving.first()
        source.read(np.array([70]), 0)  # 10 goes for it
        blocks = resident(source)
        assert not pages._rows[pages.stage(np.array([10], wire.NUMBER))].any()
        assert pages.zero(np.array([10], wire.NUMBER)).all()
        assert resident(source) == blocks  # reading a hole has not filled it
        source.read(np.array([10]), 0)
        found = tracker.collect()
        assert 10 in found
        assert 10 in leaving.sendable(found)


def test_a_page_found_out_is_sent_when_it_is_in_though_its_note_was_taken_before(tmp_path):
    with memory(tmp_path) as source:
        leaving, nothing = Leaving(source, compacted=True), np.empty(0, np.int64)
        source.read(np.array([10]), 0)
        assert 10 in leaving.first()
        source.read(np.array([70]), 0)  # 10 goes for it
        assert leaving.sendable(nothing).tolist() == [70]
        source.read(np.array([10]), 0)
        assert leaving.sendable(nothing).tolist() == [10]
        assert not len(leaving.sendable(nothing))


def test_a_page_that_was_discarded_has_to_come_again(tmp_path):
    with memory(tmp_path), memory(tmp_path, arriving=True) as there:
        line, arrivals, slots = Line(), Arrivals(there), np.arange(1, SWAPPED + 1, dtype="u4")
        arrivals.stamps[:] = 1
        line.send(pack_swapped(np.array([3]), PAGES, compacted=True))
        out = np.arange(RESIDENT, PAGES)
        line.send(pack_swapped(out, PAGES, compacted=False), pack_slots(slots, 0))
        line.frames(arrivals.swap.receive)
        with pytest.raises(WireError, match="1 pages never came"):
            arrivals.check(0, 0)


# ---------------------------------------------------------------- frames


some_pages = st.sets(st.integers(0, PAGES - 1), max_size=SWAPPED).map(sorted)


@settings(max_examples=60, deadline=None)
@given(some_pages, st.booleans(), st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_what_is_told_of_the_file_arrives(tmp_path_factory, pages, compacted, swap_ins, shuffled):
    directory = tmp_path_factory.mktemp("swap")
    slots = shuffled.sample(range(1, SWAPPED + 1), len(pages))
    line = Line()
    with memory(directory), memory(directory, arriving=True) as there:
        arrivals = Arrivals(there)
        arrivals.stamps[:] = 1
        told = pack_swapped(np.array(pages, np.int64), PAGES, compacted=compacted)
        line.send(told, pack_slots(np.array(slots, np.uint32), swap_ins))
        line.frames(arrivals.swap.receive)
        expected = np.zeros(PAGES, np.uint32)
        expected[pages] = slots
        assert (there.table() == expected).all()
        assert there.swap_counters().swap_ins == swap_ins
        assert arrivals.swap.lacking() == 0


def framed(kind, count, value, body):
    return wire.pack(kind, count, value) + body


slot_frames = st.lists(st.integers(0, SWAPPED + 2), max_size=SWAPPED + 2).map(
    lambda slots: pack_slots(np.array(slots, np.uint32), 0)
)
swapped_frames = some_pages.map(
    lambda pages: pack_swapped(np.array(pages, np.int64), PAGES, compacted=len(pages) % 2 == 0)
)
odd_frames = st.builds(
    framed,
    st.sampled_from([Kind.SWAPPED, Kind.SLOTS]),
    st.integers(0, 3) | st.integers(0, 2**32 - 1),
    st.integers(-2, bitmap.most_bytes(PAGES) + 2) | st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=32),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(swapped_frames | slot_frames | odd_frames, max_size=4))
def test_anything_else_about_the_file_is_refused(tmp_path_factory, frames):
    directory = tmp_path_factory.mktemp("swap")
    near, far = socket.socketpair()
    with near, far, memory(directory), memory(directory, arriving=True) as there:
        near.sendall(b"".join(frames))
        near.shutdown(socket.SHUT_WR)
        arrivals = Arrivals(there)
        with pytest.raises((WireError, PeerError)):
            Receiver(Stream(far, 10**9), arrivals).copy()
        slots = there.table()
        taken = slots[slots != 0]
        assert len(np.unique(taken)) == len(taken)
        assert not len(taken) or taken.max() <= SWAPPED


def test_a_memory_without_a_file_is_told_of_none():
    near, far = socket.socketpair()
    with near, far, GuestMemory("vm", PAGES * PAGE) as plain:
        leaving = Leaving(plain, compacted=True)
        assert leaving.first() is None
        near.sendall(pack_swapped(np.array([3]), PAGES, compacted=True))
        with pytest.raises(WireError, match="SWAPPED during the copy"):
            Receiver(Stream(far, 10**9), Arrivals(plain)).copy()


def test_a_switchover_without_a_word_about_the_file_is_refused(tmp_path):
    with memory(tmp_path) as here:
        arrivals = Arrivals(here)
        arrivals.stamps[:] = 1
        with pytest.raises(WireError, match="nothing was told of the swap file"):
            arrivals.check(0, 0)


# ---------------------------------------------------------------- whose the file is


def test_the_file_goes_to_the_other_host_and_is_deleted_by_it(tmp_path):
    path = tmp_path / "vm.vswp"
    source = SwapFile(path, 4)
    source.rows[2] = 7
    there = SwapFile(path, 4, arriving=True)
    with pytest.raises(KernelError, match="another VM"):
        SwapFile(path, 4)
    source.release()
    there.take()
    there.keep()
    source.close()
    assert path.exists()
    assert (there.rows[2] == 7).all()
    there.close()
    assert not path.exists()


def test_one_that_only_may_have_it_does_not_delete_it(tmp_path):
    path = tmp_path / "vm.vswp"
    source = SwapFile(path, 4)
    there = SwapFile(path, 4, arriving=True)
    source.release()
    there.take()
    there.close()
    source.take()
    source.keep()
    source.close()
    assert not path.exists()


def test_a_file_that_is_not_the_sources_is_refused(tmp_path):
    path = tmp_path / "vm.vswp"
    with pytest.raises(KernelError, match="No such file") as missing:
        SwapFile(path, 4, arriving=True)
    assert "the same at both hosts" in missing.value.remedy
    source = SwapFile(path, 4)
    with pytest.raises(KernelError, match="16384 bytes instead of 20480"):
        SwapFile(path, 5, arriving=True)
    there = SwapFile(path, 4, arriving=True)
    source.close()
    with pytest.raises(KernelError, match="deleted"):
        there.take()
    there.close()


def test_nothing_goes_out_before_it_is_settled_and_what_was_owed_at_once(tmp_path):
    """What is owed goes into slots that held nothing: the source loses no word."""
    with memory(tmp_path) as source, memory(tmp_path, arriving=True) as there:
        source.fill(0, PAGES, 5)
        source.disown()
        source.read(np.array([70, 80, 90]), 0)
        source.disown()  # three slots are free now
        before = content(source)
        line, leaving, arrivals = Line(), Leaving(source, compacted=True), Arrivals(there)
        pages = leaving.first().astype(wire.NUMBER)
        there.words[pages] = source.words[pages]
        arrivals.stamps[pages] = 1
        leaving.last(np.empty(0, np.int64), line)
        line.frames(arrivals.swap.receive)
        arrivals.swap.lacking()
        source.hand_over()
        take_over(there)
        assert there.swap_counters().swapped_pages == SWAPPED
        assert resident(there) == RESIDENT
        assert (content(there) == before).all()
        for page in (75, 76, 77, 78):
            there.write(np.array([page]), 0, np.array([1], np.uint64))
        assert there.swap_counters().swapped_pages == SWAPPED - 4
        assert (content(source) == before).all()
        there.settle()
        there.read(np.array([75]), 0)
        there.read(np.array([79]), 0)
        assert there.swap_counters().swapped_pages >= SWAPPED - 1


def test_a_vm_is_not_taken_back_from_a_host_that_has_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("testbed.guest.swap_file._END_NS", 10**7)
    with memory(tmp_path) as source, memory(tmp_path, arriving=True) as there:
        source.hand_over()
        take_over(there)
        with pytest.raises(KernelError, match="another VM has it open"):
            take_back(source)


# ---------------------------------------------------------------- compared


@contextmanager
def two(directory):
    """Two guests alike, a part of each in the same file."""
    with memory(directory) as ours, memory(directory, arriving=True) as theirs:
        ours.fill(0, PAGES, 5)
        theirs.words[:RESIDENT] = ours.words[:RESIDENT]
        yield ours, theirs


def opened(memory):
    """As another process sees it."""
    count = memory.page_count
    status = os.fstat(memory._swap_file._fd)
    file_is = status.st_dev, status.st_ino
    return Opened(memory.fd, count, memory._slot, memory._file, file_is)


def test_pages_are_compared_wherever_they_are(tmp_path):
    with two(tmp_path) as (ours, theirs):
        blocks = resident(ours)
        assert compare_overcommitted(opened(ours), opened(theirs)) == (PAGES, [])
        theirs.words[3, 511] += np.uint64(1)
        theirs._slot[[80, 81]] = theirs._slot[[81, 80]]
        assert compare_overcommitted(opened(ours), opened(theirs)) == (PAGES, [3, 80, 81])
        assert resident(ours) == blocks
        theirs._slot[80] = SWAPPED + 1
        with pytest.raises(LabError, match="slot 33 of 32"):
            compare_overcommitted(opened(ours), opened(theirs))


def test_another_process_finds_memory_table_and_file(tmp_path):
    assert not is_overcommitted(os.getpid())
    with memory(tmp_path) as ours, ExitStack() as undo:
        ours.fill(0, PAGES, 5)
        assert is_overcommitted(os.getpid())
        seen = undo.enter_context(Opened.of(os.getpid(), ours.fd))
        assert (seen.content(0, PAGES) == content(ours)).all()
    with pytest.raises(LabError, match="no swap file"), Opened.of(os.getpid(), 0):
        pass
