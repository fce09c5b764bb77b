"""Synthetic pages on the wire, and how two memories are compared."""

from __future__ import annotations

import mmap
from contextlib import ExitStack

import numpy as np
import pytest

from testbed.errors import LabError
from testbed.guest.memory import GuestMemory
from testbed.guest.synthetic import SyntheticMemory
from testbed.lab.compare import compare
from testbed.migration.wire import GATHER_PAGES, NUMBER, RUN_PAGES, WireError
from testbed.migration.wire_pages import wire_pages

MIB = 1 << 20
REAL, PAGES = 100, 1000


@pytest.fixture
def pair():
    with (
        SyntheticMemory("a", PAGES * 4096, REAL) as source,
        SyntheticMemory("b", PAGES * 4096, REAL) as destination,
    ):
        source.fill(0, PAGES, 7)
        source.write(np.arange(50, 900, 3), 4, np.arange(50, 900, 3).astype(np.uint64))
        yield source, destination


def staged(pages, places):
    """What a send of these places would carry."""
    rows = pages._bytes
    return b"".join(rows[place * 4096 : place * 4096 + 4096] for place in places.tolist())


def compared(a, b):
    with ExitStack() as undo:
        return compare(*(undo.enter_context(mmap.mmap(memory.fd, 0)) for memory in (a, b)))


def copy(source, destination):
    """The first pass in runs, then every third page again in gathers."""
    ours, theirs = wire_pages(source), wire_pages(destination)
    for first in range(0, PAGES, RUN_PAGES):
        count = min(RUN_PAGES, PAGES - first)
        theirs.room(first, count)[:] = ours.run(first, count)
        theirs.arrived(np.arange(first, first + count, dtype=NUMBER))
    again = np.arange(0, PAGES, 3, dtype=NUMBER)
    for start in range(0, len(again), GATHER_PAGES):
        numbers = again[start : start + GATHER_PAGES]
        content = staged(ours, ours.stage(numbers))
        theirs.places(numbers)
        theirs.room(0, len(numbers))[:] = content
        theirs.arrived(numbers)


def test_a_copy_has_the_real_pages_and_every_version(pair):
    source, destination = pair
    copy(source, destination)
    found = compared(*pair)
    assert (found.pages, found.different, found.by) == (PAGES, [], "version")
    assert (source.words == destination.words).all()
    assert (destination.versions[REAL:] == source.versions[REAL:]).all()
    assert destination.versions[REAL:].max() == 2


def test_a_page_on_the_wire_begins_with_number_and_version_and_is_whole(pair):
    source, _ = pair
    ours = wire_pages(source)
    before = [np.frombuffer(bytes(ours.run(first, 200)), np.uint64) for first in (300, 300)]
    ours.run(0, 200)  # real pages pass through the same buffer
    after = np.frombuffer(bytes(ours.run(300, 200)), np.uint64)
    assert (before[0] == after).all()
    rows = after.reshape(200, 512)
    assert rows[:, 0].tolist() == list(range(300, 500))
    assert (rows[:, 1] == source.versions[300:500]).all()
    assert (rows[:, 2:] != 0).all()


def test_a_missed_write_is_found_by_version_or_content(pair):
    source, destination = pair
    copy(source, destination)
    source.write(np.array([70, 500, 999]), 3, np.array([9, 9, 9], np.uint64))
    assert compared(*pair).different == [70, 500, 999]


def test_pages_that_say_another_number_are_refused(pair):
    source, destination = pair
    ours, theirs = wire_pages(source), wire_pages(destination)
    theirs.room(300, 10)[:] = ours.run(301, 10)
    with pytest.raises(WireError, match="page 300 says that it is page 301"):
        theirs.arrived(np.arange(300, 310, dtype=NUMBER))
    assert not destination.versions[300:310].any()


def test_memories_of_different_kinds_or_sizes_are_not_compared(pair):
    source, _ = pair
    with GuestMemory("c", MIB) as real, GuestMemory("d", 2 * MIB) as larger:
        real.fill(0, 256, 1)
        for other in (source, larger):
            with pytest.raises(LabError, match="compare memories"):
                compared(real, other)
        assert compared(real, real).by == "content"
        with GuestMemory("e", MIB) as copied:
            copied.bytes[:] = real.bytes
            copied.words[[3, 255], 100] += np.uint64(1)
            assert compared(real, copied).different == [3, 255]
