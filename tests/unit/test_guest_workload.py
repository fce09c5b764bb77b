"""A vCPU's batches: pure functions of their number, in its own part of the working set."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest.layout import control_pages
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import GuestSpec
from testbed.guest.workload import BEAT_NS, PAGES_PER_BATCH, fill, vcpu_workload

MIB = 1 << 20

specs = st.builds(
    GuestSpec,
    name=st.just("vm"),
    memory_bytes=st.integers(1, 64).map(lambda n: n * MIB),
    vcpus=st.integers(1, 40),
    workload=st.sampled_from(["uniform", "sequential"]),
    dirty_rate_bytes_per_s=st.integers(1, 20 * 10**9),
    working_set_bytes=st.integers(40 * 4096, MIB),
    seed=st.integers(0, 2**63),
)


@given(specs, st.integers(0, 2**40), st.data())
def test_batches_stay_in_the_vcpus_own_slice(spec, batch, data):
    vcpu = data.draw(st.integers(0, spec.vcpus - 1))
    work = vcpu_workload(spec, vcpu)
    pages = work.pages(batch)
    assert len(pages) == work.pages_per_batch <= PAGES_PER_BATCH
    assert pages.min() >= work.first_page >= control_pages(spec.vcpus)
    assert pages.max() < work.first_page + work.page_count
    assert work.first_page + work.page_count <= spec.memory_bytes // 4096
    np.testing.assert_array_equal(pages, vcpu_workload(spec, vcpu).pages(batch))


@given(specs)
def test_slices_part_the_working_set(spec):
    slices = [vcpu_workload(spec, vcpu) for vcpu in range(spec.vcpus)]
    for before, after in pairwise(slices):
        assert before.first_page + before.page_count == after.first_page
    spare = spec.memory_bytes // 4096 - control_pages(spec.vcpus)
    assert sum(s.page_count for s in slices) == min(spec.working_set_bytes // 4096, spare)


@given(specs)
def test_pace_is_the_rate_asked_of_all_vcpus(spec):
    work = vcpu_workload(spec, 0)
    rate = work.pages_per_batch * 4096 / work.interval_ns * 1e9 * spec.vcpus
    assert rate == pytest.approx(spec.dirty_rate_bytes_per_s)
    # Below this a batch is one page; above it the beat of a batch is the vCPU's heartbeat.
    if spec.dirty_rate_bytes_per_s / 4096 / spec.vcpus > 2000:
        assert work.interval_ns < 1.5 * BEAT_NS


def test_sequential_batches_walk_the_slice_round_and_round():
    work = vcpu_workload(GuestSpec("vm", MIB, 1, "sequential", 10**9, 100 * 4096), 0)
    walk = np.concatenate([work.pages(k) for k in range(10)])
    np.testing.assert_array_equal(walk, work.first_page + np.arange(len(walk)) % work.page_count)


def test_uniform_writers_hit_as_many_distinct_pages_as_theory_says():
    work = vcpu_workload(GuestSpec("vm", 64 * MIB, 1, "uniform", 10**9, 4096 * 4096, 3), 0)
    writes = np.concatenate([work.pages(k) for k in range(32)])
    expected = work.page_count * (1 - math.exp(-len(writes) / work.page_count))
    assert len(np.unique(writes)) == pytest.approx(expected, rel=0.05)


def test_vcpus_and_seeds_differ():
    spec = GuestSpec("vm", 64 * MIB, 2, "uniform", 10**9, 32 * MIB, 3)
    a, b = (vcpu_workload(spec, n).pages(5) - vcpu_workload(spec, n).first_page for n in (0, 1))
    assert (a != b).any()


@pytest.mark.parametrize("working_set", [4096, 2 * MIB])
def test_a_working_set_that_does_not_fit_is_refused(working_set):
    with pytest.raises(ValueError, match="working set"):
        vcpu_workload(GuestSpec("vm", MIB, 2, "uniform", 10**6, working_set), 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["uniform", "sequential"]))
def test_a_batch_may_be_repeated(batch, kind):
    spec = GuestSpec("vm", MIB, 1, kind, 10**9, MIB // 2, 1)
    with GuestMemory("vm", spec.memory_bytes) as memory:
        work = vcpu_workload(spec, 0)
        work.write(memory, batch)
        once = memory.words.copy()
        assert once.any()
        work.write(memory, batch)
        assert (memory.words == once).all()
        work.write(memory, batch + 1)
        assert (memory.words != once).any()


def test_fresh_memory_has_no_empty_and_no_equal_pages():
    spec = GuestSpec("vm", 4 * MIB, 1, seed=9)
    with GuestMemory("vm", spec.memory_bytes) as memory:
        fill(memory, spec)
        assert memory.words.any(axis=1).all()
        assert len(np.unique(memory.words[:, 0])) == memory.page_count
        first = memory.words.copy()
        fill(memory, spec)
        assert (memory.words == first).all()
        fill(memory, GuestSpec("vm", 4 * MIB, 1, seed=10))
        assert (memory.words != first).all(axis=1).all()


@pytest.mark.parametrize("size_bytes", [0, -4096, 4095, 4097])
def test_memory_is_whole_pages(size_bytes):
    with pytest.raises(ValueError, match="whole number"):
        GuestMemory("vm", size_bytes)
