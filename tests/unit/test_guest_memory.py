"""Real, synthetic and overcommitted memory: the same to whoever writes and reads it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from testbed.errors import InputError, KernelError
from testbed.guest import availability, backing
from testbed.guest.bytemap import BytemapTracker, make_bytemap, map_bytemap
from testbed.guest.memory import GuestMemory, count_zero_pages
from testbed.guest.specification import GuestSpec
from testbed.guest.swap import OvercommittedMemory
from testbed.guest.synthetic import SyntheticMemory
from testbed.guest.tasks.build import regions
from testbed.guest.workloads import Replay, TraceRange, Writer

MIB = 1 << 20
PAGE = 4096


def spec(**changes):
    return GuestSpec(**{"name": "vm", "memory_bytes": 4 * MIB, "vcpus": 2, **changes})


def every_kind(tmp_path):
    return [
        spec(),
        spec(backing="synthetic"),
        spec(resident_bytes=3 * MIB, directory=str(tmp_path)),
    ]


def test_each_kind_tells_which_pages_are_zero(tmp_path):
    for kind in every_kind(tmp_path):
        with backing.open_memory(kind) as memory:
            assert count_zero_pages(memory) == memory.page_count == 1024
            memory.fill(0, 600, 7)
            written = np.array([700, 901, 1023])
            memory.write(written, 511, np.array([1, 2, 3], np.uint64))
            zero = memory.zero_pages(0, memory.page_count)
            assert not zero[:600].any()
            assert np.flatnonzero(~zero[600:]).tolist() == [100, 301, 423]
            assert memory.zero_pages(699, 3).tolist() == [True, False, True]
        memory.close()  # twice is once


def test_a_page_whose_first_word_is_zero_is_looked_at_whole():
    with GuestMemory("vm", MIB) as memory:
        memory.words[5, 300] = 1
        memory.words[6, 0] = 1
        assert np.flatnonzero(~memory.zero_pages(0, 256)).tolist() == [5, 6]


def test_content_follows_from_key_and_number_whatever_the_parts(tmp_path):
    real, _, swapped = every_kind(tmp_path)
    with backing.open_memory(real) as whole, backing.open_memory(swapped) as parts:
        whole.fill(0, 1024, 3)
        parts.fill(0, 900, 3)
        parts.fill(900, 124, 3)
        pages = np.arange(1024)
        assert (whole.read(pages, 17) == parts.read(pages, 17)).all()
        assert len(np.unique(whole.words[:, 0])) == 1024
        whole.fill(0, 1024, 4)
        assert (whole.read(pages, 17) != parts.read(pages, 17)).all()


def test_synthetic_memory_takes_the_room_of_its_versions():
    with SyntheticMemory("big", 16 << 30, 100) as memory:
        taken = os.fstat(memory.fd).st_blocks * 512
        assert taken == 101 * PAGE + memory.page_count * 4
        pages = np.array([5, 99, 100, 4_000_000])
        values = np.array([50, 60, 70, 80], np.uint64)
        memory.write(pages, 9, values)
        memory.write(pages[:1], 9, values[:1])
        assert memory.versions[pages].tolist() == [2, 1, 1, 1]
        assert memory.read(pages, 9).tolist() == [50, 60, 0, 0]  # the first 100 are real
        assert memory.read(pages, 0).tolist() == [0, 0, 100, 4_000_000]
        assert memory.read(pages, 1).tolist() == [0, 0, 1, 1]
        memory.state[5 * PAGE : 5 * PAGE + 8] = bytes(8)
        assert memory.words[5, 0] == 0


def test_memory_that_the_machine_has_not_is_refused_with_a_remedy(monkeypatch):
    with pytest.raises(KernelError, match="available") as refused:
        backing.open_memory(spec(memory_bytes=1 << 50))
    assert "scale" in refused.value.remedy
    monkeypatch.setattr(Path, "read_text", lambda _: "MemAvailable:  2048 kB\n")
    availability.check_available("vm", 2 * MIB)
    with pytest.raises(KernelError, match="available"):
        availability.check_available("vm", 2 * MIB + 1)
    with pytest.raises(KernelError, match="available"):
        backing.open_memory(spec())
    backing.open_memory(spec(backing="synthetic", vcpus=1)).close()


def test_what_contradicts_itself_is_refused(tmp_path):
    for wrong in (
        {"memory_bytes": 0},
        {"memory_bytes": PAGE + 1},
        {"page_bytes": 2 * MIB, "memory_bytes": 3 * MIB},
        {"page_bytes": 2 * MIB, "backing": "synthetic"},
        {"resident_bytes": MIB, "backing": "synthetic", "directory": str(tmp_path)},
        {"resident_bytes": MIB},
        {"resident_bytes": 36 * PAGE, "directory": str(tmp_path)},
    ):
        with pytest.raises((InputError, ValueError), match=r"bytes|large|swapped"):
            backing.open_memory(spec(**wrong))
    assert not list(tmp_path.iterdir())
    assert backing.tracking_for(spec(backing="synthetic")) == "bytemap"
    with pytest.raises(InputError, match="byte map"):
        backing.tracking_for(spec(backing="synthetic"), "pagemap")


def test_another_process_marks_pages_in_the_same_map():
    fd, written = make_bytemap(100)
    tracker = BytemapTracker(written)
    tracker.install()
    other = map_bytemap(fd)
    os.close(fd)
    other[[3, 50]] = 1
    assert tracker.collect().tolist() == [3, 50]
    assert tracker.collect().tolist() == []


# ---------------------------------------------------------------- overcommitted memory


def resident(memory):
    return os.fstat(memory.fd).st_blocks * 512


def test_an_overcommitted_guest_reads_what_it_wrote_and_stays_at_its_size(tmp_path):
    """Against a shadow of the memory, by random writes and reads of random batches."""
    random = np.random.default_rng(1)
    with OvercommittedMemory("vm", 4 * MIB, MIB, str(tmp_path)) as memory:
        assert (tmp_path / "vm.vswp").stat().st_size == 3 * MIB
        memory.fill(0, 1024, 5)
        assert resident(memory) == MIB
        with GuestMemory("shadow", 4 * MIB) as shadow:
            shadow.fill(0, 1024, 5)
            for _ in range(200):
                pages = random.integers(100, 1024, 32)
                values = pages.astype(np.uint64) * np.uint64(random.integers(1, 1000))
                word = int(random.integers(512))
                for kind in (memory, shadow):
                    kind.write(pages, word, values)
                pages = random.integers(0, 1024, 32)
                assert (memory.read(pages, word) == shadow.read(pages, word)).all()
                assert resident(memory) <= MIB + 3 * 32 * PAGE
            counters = memory.swap_counters()
            bits = np.unpackbits(np.frombuffer(memory.swap_bitmap(), np.uint8), bitorder="little")
            assert bits.sum() == counters.swapped_pages == 1024 - resident(memory) // PAGE
            assert counters.swap_ins > 1000
            assert counters.swap_outs == counters.swap_ins + counters.swapped_pages - 768
            assert (memory.zero_pages(0, 1024) == shadow.zero_pages(0, 1024)).all()
            for page in range(1024):  # and every word of every page
                memory.read(np.array([page]), 0)
                assert (memory.words[page] == shadow.words[page]).all()
    assert not list(tmp_path.iterdir())


def test_the_page_that_was_in_longest_goes_out(tmp_path):
    with OvercommittedMemory("vm", 16 * PAGE, 8 * PAGE, str(tmp_path)) as memory:
        memory.read(np.arange(2, 6), 0)
        memory.read(np.array([8, 9, 2]), 0)  # 2 is wanted now: 3 and 4 go
        assert np.flatnonzero(bits(memory)).tolist() == [3, 4, *range(10, 16)]
        with pytest.raises(ValueError, match="swap out"):
            memory.swap_out(np.array([8]))
        assert memory.swap_in(np.array([3, 3, 5])) == 1
        memory.swap_out(np.array([8]))
        assert np.flatnonzero(bits(memory)).tolist() == [4, 8, *range(10, 16)]


def test_a_pinned_page_never_goes_out(tmp_path):
    with OvercommittedMemory("vm", 16 * PAGE, 8 * PAGE, str(tmp_path)) as memory:
        memory.read(np.array([3]), 0)
        memory.pin(np.array([3, 10]))
        for page in (4, 5, 6, 11, 12, 13, 14, 15, 4, 5, 6, 11):
            memory.read(np.array([page]), 0)
        assert not bits(memory)[[3, 10]].any()
        assert memory.swap_counters().swapped_pages == 8


def test_a_page_that_may_be_anothers_now_does_not_go_out(tmp_path):
    """When workloads are switched, pages change hands among vCPUs."""
    with OvercommittedMemory("vm", 16 * PAGE, 8 * PAGE, str(tmp_path)) as memory:
        memory.read(np.arange(2, 6), 0)
        memory.disown()
        memory.read(np.array([8, 9]), 0)  # nothing can go for these yet
        assert np.flatnonzero(bits(memory)).tolist() == list(range(10, 16))
        memory.read(np.array([10, 11]), 0)
        assert np.flatnonzero(bits(memory)).tolist() == [8, 9, *range(12, 16)]
        memory.disown()
        memory.read(np.array([3, 4, 5]), 0)  # what is owed was not forgotten
        memory.read(np.array([6]), 0)
        assert memory.swap_counters().swapped_pages == 8


def bits(memory):
    return np.unpackbits(np.frombuffer(memory.swap_bitmap(), np.uint8), bitorder="little")


def test_a_swap_file_in_use_is_left_alone_and_one_left_behind_is_not(tmp_path):
    (tmp_path / "vm.vswp").write_bytes(b"x" * PAGE)
    with OvercommittedMemory("vm", 4 * MIB, MIB, str(tmp_path)) as memory:
        with pytest.raises(KernelError, match="another VM"):
            OvercommittedMemory("vm", 4 * MIB, MIB, str(tmp_path))
        assert (tmp_path / "vm.vswp").exists()
        assert count_zero_pages(memory) == 1024


def test_a_trace_beside_other_workloads_needs_all_memory(tmp_path):
    mixed = (
        Writer("uniform", 10**6, MIB),
        Replay((TraceRange(0, 10**9, 0, 10, 10**6),)),
    )
    regions(spec(workloads=mixed))
    overcommitted = {"resident_bytes": 3 * MIB, "directory": str(tmp_path)}
    regions(spec(workloads=mixed[1:], **overcommitted))
    with pytest.raises(InputError, match="replay the trace alone"):
        regions(spec(workloads=mixed, **overcommitted))
