"""A writer's batches: pure functions of their number, in its vCPU's own part of the pages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest import draws, layout
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.guest.tasks.allocate import AllocateTask
from testbed.guest.tasks.build import build, context
from testbed.guest.tasks.writer import PAGES_PER_BATCH, WriterTask, expected_distinct_pages
from testbed.guest.vcpu import BEAT_NS
from testbed.guest.workloads import Allocate, Writer

MIB = 1 << 20
KINDS = ["uniform", "sequential", "zipf"]


class State:
    """The leading pages of a memory, which are all that a task's pure functions see of it."""

    def __init__(self, spec):
        self.state = memoryview(bytearray(layout.first_data_page(spec.vcpus) * 4096))


def writer(spec, vcpu=0, number=0):
    return WriterTask(context(spec, number, vcpu, State(spec)), spec.workloads[number])


def guest(writer, memory_bytes=64 * MIB, vcpus=1, seed=0):
    return GuestSpec("vm", memory_bytes, vcpus, (writer,), seed)


writers = st.builds(
    Writer,
    kind=st.sampled_from(KINDS),
    dirty_rate_bytes_per_s=st.integers(1, 20 * 10**9),
    working_set_bytes=st.integers(40 * 4096, MIB),
    exponent=st.floats(0, 4),
)
specs = st.builds(
    guest,
    writers,
    memory_bytes=st.integers(1, 64).map(lambda n: n * MIB),
    vcpus=st.integers(1, 40),
    seed=st.integers(0, 2**63),
)


@given(specs, st.integers(0, 2**40), st.data())
def test_batches_stay_in_the_vcpus_own_pages(spec, batch, data):
    vcpu = data.draw(st.integers(0, spec.vcpus - 1))
    task = writer(spec, vcpu)
    pages = task.pages(batch)
    assert len(pages) == task.pages_per_batch <= PAGES_PER_BATCH
    assert task.first_page <= pages.min() <= pages.max() < task.first_page + task.page_count
    np.testing.assert_array_equal(pages, writer(spec, vcpu).pages(batch))


@given(specs)
def test_pace_is_the_rate_asked_of_all_vcpus(spec):
    task, rate = writer(spec), spec.workloads[0].dirty_rate_bytes_per_s
    got = task.pages_per_batch * 4096 / task.interval_ns * 1e9 * spec.vcpus
    assert got == pytest.approx(rate)
    # Below this a batch is one page; above it the beat of a batch is the vCPU's heartbeat.
    if rate / 4096 / spec.vcpus > 2000:
        assert task.interval_ns < 1.5 * BEAT_NS


def test_a_writer_keeps_its_pace_and_makes_up_little():
    spec = guest(Writer("sequential", 4096 * 1000, MIB))
    memory = GuestMemory("vm", spec.memory_bytes)
    with memory:
        ((given, task),) = build(spec, 0, memory)
        assert task.start(10**9) == 10**9
        due = [task.step(10**9 + n * 10**6) - 10**9 for n in range(5)]
        assert due == [10**6 * (n + 1) for n in range(5)]
        late = task.step(2 * 10**9)
        assert 1.9e9 < late < 2e9  # some is made up, not all of the second
        assert given.record[layout.BATCHES] == given.record[layout.PAGES_WRITTEN] == 6
        assert task.start(3 * 10**9) == 3 * 10**9  # nothing that was due in a stop
        del given, task


def test_sequential_batches_walk_the_pages_round_and_round():
    task = writer(guest(Writer("sequential", 10**9, 200 * 4096)))
    walk = np.concatenate([task.pages(k) for k in range(10)])
    np.testing.assert_array_equal(walk, task.first_page + np.arange(len(walk)) % task.page_count)


@pytest.mark.parametrize("vcpus", [1, 3])
@pytest.mark.parametrize(
    "work",
    [
        Writer("uniform", 10**9, 4096 * 4096),
        Writer("sequential", 10**9, 4096 * 4096),
        Writer("zipf", 10**9, 4096 * 4096),
        Writer("zipf", 10**9, 4096 * 4096, exponent=1.0),
        Writer("zipf", 10**9, 4096 * 4096, exponent=1.7),
        Writer("zipf", 10**9, 4096 * 4096, exponent=0.0),
    ],
    ids=lambda work: f"{work.kind} {work.exponent}" if isinstance(work, Writer) else str(work),
)
def test_as_many_distinct_pages_are_hit_as_expected(work, vcpus):
    spec = guest(work, vcpus=vcpus, seed=3)
    tasks = [writer(spec, vcpu) for vcpu in range(vcpus)]
    for batches in (3, 24, 200):
        writes = np.concatenate([task.pages(k) for task in tasks for k in range(batches)])
        expected = expected_distinct_pages(work, vcpus, 4096, len(writes))
        assert len(np.unique(writes)) == pytest.approx(expected, abs=1 + 3 * expected**0.5)


def test_vcpus_workloads_and_seeds_differ():
    work = Writer("uniform", 10**9, 16 * MIB)
    spec = replace(guest(work, vcpus=2, seed=3), workloads=(work, work))
    other = replace(spec, seed=4)
    tasks = [writer(spec), writer(spec, 1), writer(spec, 0, 1), writer(other)]
    offsets = {tuple(task.pages(5) - task.first_page) for task in tasks}
    assert len(offsets) == 4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(KINDS))
def test_a_batch_may_be_repeated(batch, kind):
    spec = guest(Writer(kind, 10**9, MIB // 2), MIB, seed=1)
    with GuestMemory("vm", spec.memory_bytes) as memory:
        task = writer(spec)
        task.write(memory, batch)
        once = memory.words.copy()
        assert once.any()
        task.write(memory, batch)
        assert (memory.words == once).all()
        task.write(memory, batch + 1)
        assert (memory.words != once).any()


@pytest.mark.parametrize("vcpus", [1, 3])
def test_allocation_fills_what_was_zero_once(vcpus):
    spec = GuestSpec("vm", 4 * MIB, vcpus, (Allocate(2 * MIB),))
    with GuestMemory("vm", spec.memory_bytes) as memory:
        for vcpu in range(vcpus):
            ((given, task),) = build(spec, vcpu, memory)
            due = task.start(0)
            while due < float("inf"):
                due = task.step(0)
            assert task.start(10**9) == float("inf")  # nor does it begin anew when it goes on
            assert given.record[layout.BYTES] == given.record[layout.PAGES_WRITTEN] * 4096
            del given, task
        first = layout.first_data_page(vcpus)
        full = memory.words.all(axis=1)
        assert full[first : first + 512].all()
        assert not memory.words[first + 512 :].any()
        assert len(np.unique(memory.words[first : first + 512, 0])) == 512


def test_allocation_keeps_to_its_rate():
    spec = GuestSpec("vm", 8 * MIB, 1, (Allocate(6 * MIB, 4096 * 10_000),))
    with GuestMemory("vm", spec.memory_bytes) as memory:
        ((given, task),) = build(spec, 0, memory)
        assert isinstance(task, AllocateTask)
        due = task.start(10**9)
        while due < 1.1e9:
            due = task.step(int(due))
        assert given.record[layout.PAGES_WRITTEN] == pytest.approx(1000, abs=64)
        del given, task


# -- draws ----------------------------------------------------------------------------------


@given(st.integers(1, 10**9))
def test_places_of_ranks_are_a_permutation_that_parts_neighbours(count):
    stride = draws.stride(count)
    assert np.gcd(stride, count) == 1
    if count > 100:
        assert 0.3 * count < stride < 0.7 * count


@given(st.integers(1, 5000), st.floats(0, 4), st.integers(0, 2**64 - 1))
def test_every_draw_is_a_rank(count, exponent, key):
    zipf = draws.Zipf(count, exponent)
    drawn = np.concatenate(
        (draws.words(np.arange(100, dtype=np.uint64), key, 7), np.array([0, 2**64 - 1], np.uint64))
    )
    ranks, places = zipf.ranks(drawn), zipf.places(drawn)
    assert 0 <= ranks.min() <= ranks.max() < count
    assert ranks[-2] == 0
    assert ranks[-1] == count - 1
    np.testing.assert_array_equal(places, ranks * draws.stride(count) % count)
    assert zipf.probabilities().sum() == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(st.integers(10, 300), st.floats(0, 2), st.integers(0, 2**63))
def test_ranks_come_up_as_the_law_says(count, exponent, key):
    """r-th with probability ~ r^-s; the inverse of a continuous law gives the first a bit more."""
    zipf = draws.Zipf(count, exponent)
    drawn = draws.words(np.arange(200_000, dtype=np.uint64), key, 0)
    found = np.bincount(zipf.ranks(drawn), minlength=count) / len(drawn)
    law = np.arange(1, count + 1) ** -exponent
    law /= law.sum()
    assert np.abs(np.cumsum(found) - np.cumsum(zipf.probabilities())).max() < 0.006
    assert np.abs(np.cumsum(found) - np.cumsum(law)).max() < 0.12
    assert (np.diff(zipf.probabilities()) <= 1e-12).all()
