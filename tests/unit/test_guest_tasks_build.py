"""Which pages workloads own, what is refused, and what a VM holds when it is powered on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.guest import layout
from testbed.guest.program import decode, encode
from testbed.guest.run_block import GO, PROGRAM, RUN, STATE, STOPPED, RunBlock
from testbed.guest.specification import GuestSpec
from testbed.guest.tasks.build import filled, part, regions
from testbed.guest.workloads import (
    Allocate,
    Echo,
    Iometer,
    Media,
    Oltp,
    Ping,
    Replay,
    TraceRange,
    Web,
    Writer,
)

MIB = 1 << 20
sizes = st.integers(40 * 4096, 4 * MIB)
workloads = st.one_of(
    st.builds(Writer, st.sampled_from(["uniform", "sequential", "zipf"]), st.integers(0, 9), sizes),
    st.builds(Allocate, sizes),
    st.builds(Oltp, st.just(10.0), sizes),
    st.builds(Iometer, st.just(MIB), outstanding=st.integers(1, 64)),
    st.sampled_from([Web(), Media(), Echo(), Ping()]),
    st.builds(Replay, st.just((TraceRange(0, 1, 0, 5, 1),))),
)
specs = st.builds(
    GuestSpec,
    st.just("vm"),
    st.integers(1, 64).map(lambda n: n * MIB),
    st.integers(1, 40),
    st.lists(workloads, max_size=8).map(tuple),
)


@given(specs)
def test_regions_are_disjoint_and_in_the_data_pages(spec):
    try:
        found = regions(spec)
    except InputError as refused:
        assert "make them smaller" in str(refused)  # noqa: PT017
        return
    data = range(layout.first_data_page(spec.vcpus), spec.memory_bytes // 4096)
    own = [
        region
        for region, one in zip(found, spec.workloads, strict=True)
        if not isinstance(one, Replay)
    ]
    assert all(region.start in data for region in own if len(region))
    assert all(region[-1] in data for region in own if len(region))
    for before, after in pairwise(own):
        assert before.stop == after.start
    parts = [[part(region, n, spec.vcpus) for n in range(spec.vcpus)] for region in own]
    for region, of_vcpus in zip(own, parts, strict=True):
        assert [page for one in of_vcpus for page in one] == list(region)
    for region, one in zip(found, spec.workloads, strict=True):
        assert not isinstance(one, Replay) or region == data


def test_all_of_the_memory_is_a_working_set_that_people_ask_for():
    spec = GuestSpec("vm", 4 * MIB, 2, (Writer("uniform", 1, 3 * MIB), Writer("zipf", 1, MIB)))
    first, second = regions(spec)
    assert len(second) == 256
    assert len(first) + len(second) + layout.first_data_page(2) == 1024


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ((Writer("uniform", 10**6, 4096),), "less than one for each of 2"),
        ((Writer("uniform", 10**6, 2 * MIB),), "make them smaller"),
        ((Writer("uniform", 10**6, 512 * 1024), Allocate(512 * 1024 + 4096)), "make them smaller"),
        ((Writer("uniform", -1, MIB // 2),), "dirty rate"),
        ((Writer("zipf", 1, MIB // 2, exponent=-0.1),), "exponent"),
        ((Writer("zipf", 1, MIB // 2, exponent=float("nan")),), "exponent"),
        ((Allocate(MIB // 2, -5),), "rate"),
        ((Replay((TraceRange(0, 1, 200, 20, 1),)),), "trace reaches data page 219"),
        ((Ping(),) * 9, "8 at most"),
    ],
)
def test_what_contradicts_itself_is_refused_with_a_remedy(work, said):
    with pytest.raises(InputError, match=said):
        regions(GuestSpec("vm", MIB, 2, work))


def test_memory_that_has_no_room_for_the_state_is_refused():
    with pytest.raises(InputError, match="give it more"):
        regions(GuestSpec("vm", 32 * 4096, 1))


def test_what_is_filled_at_power_on():
    first = layout.first_data_page(1)
    assert filled(GuestSpec("vm", MIB, 1)) == range(first, 256)
    assert filled(GuestSpec("vm", MIB, 1, in_use_bytes=40960)) == range(first, first + 10)
    assert filled(GuestSpec("vm", MIB, 1, in_use_bytes=MIB)) == range(first, 256)
    assert not filled(GuestSpec("vm", MIB, 1, (Allocate(4096),)))
    both = GuestSpec("vm", MIB, 1, (Allocate(4096),), in_use_bytes=4096)
    assert filled(both) == range(first, first + 1)


@given(specs)
def test_a_program_goes_through_the_block_as_it_is(spec):
    block = RunBlock(spec.vcpus)
    try:
        assert decode(encode(spec)) == spec
        block.write_program(encode(GuestSpec("other", MIB, spec.vcpus)))
        block.write_program(encode(spec))
        lines = [block.words(line) for line in range(spec.vcpus + 1)]
        lines[-1][STATE] = STOPPED
        block.run[-1] = GO
        assert decode(block.read_program()) == spec
        assert [line[PROGRAM] for line in lines] == [2] * len(lines)
        assert block.state[-1] == STOPPED
        assert lines[-1][RUN] == GO
        assert not np.any(block.run[:-1])
        with pytest.raises(InputError, match="fewer ranges"):
            block.write_program(bytes((1 << 20) + 1))
        assert decode(block.read_program()) == spec
    finally:
        block.close()
