"""What dirty tracking costs the writer, and whoever scans."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from _row import Row, row

from testbed.guest.bytemap import BytemapTracker, make_bytemap
from testbed.guest.memory import GuestMemory
from testbed.guest.pagemap import PagemapTracker
from testbed.guest.userfaultfd import open_userfaultfd

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from testbed.guest.tracking import DirtyTracker

_RUNS = 5
_SIZE_BYTES = 1 << 30
_PAGES = _SIZE_BYTES // 4096
_BATCH, _BATCHES = 160, 2000  # as the writers of a guest have

# The upper ends of what the kernel notes have for 1 GB.
_FIRE_NS, _WRITE_NS, _MARK_NS = (
    ("kernel notes, 800-1100", 1100),
    ("kernel notes", 20),
    ("kernel notes, 1.5-3", 3),
)
_INSTALL_MS, _CLEAN_MS = ("kernel notes, 7-12", 12), ("kernel notes, 0.3-0.8", 0.8)
_TENTH_MS, _ALL_MS = ("kernel notes, 1.2-1.8", 1.8), ("kernel notes, 4-5", 5)


def tracking(runs: int | None) -> list[Row]:
    """A process that tracks its own memory of 1 GB, by the page map and by the byte map."""
    count = runs or _RUNS
    with ExitStack() as undo:
        memory = undo.enter_context(GuestMemory("bench", _SIZE_BYTES))
        fd = open_userfaultfd()
        undo.callback(os.close, fd)
        map_fd, written = make_bytemap(_PAGES)
        undo.callback(os.close, map_fd)

        def write_all() -> None:
            memory.words[:, 0] += np.uint64(1)

        def write(pages: NDArray[np.int64]) -> None:
            memory.words[pages, 0] = pages.view(np.uint64)

        def mark(pages: NDArray[np.int64]) -> None:
            written[pages] = 1

        def write_and_mark(pages: NDArray[np.int64]) -> None:
            write(pages)
            mark(pages)

        everything = np.arange(_PAGES)
        pagemap = PagemapTracker([(os.getpid(), fd)], memory.address, _SIZE_BYTES)
        mapped = _measured(pagemap, write_all, write, count)
        noted = _measured(
            BytemapTracker(written), lambda: write_and_mark(everything), write_and_mark, count
        )
        noted["mark"] = statistics.median(_noting_ns(mark) for _ in range(count))
    return [*_pagemap(mapped, count), *_bytemap(noted, count)]


def _measured(
    tracker: DirtyTracker,
    write_all: Callable[[], None],
    write: Callable[[NDArray[np.int64]], None],
    count: int,
) -> dict[str, float]:
    """Medians in ms; of the writes in ns a page."""
    tenth = np.sort(np.random.default_rng(1).permutation(_PAGES)[: _PAGES // 10])
    write_all()
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(count):
        note("install", _ms(tracker.install))
        note("clean", _ms(lambda: _collect(tracker, 0)))
        note("first write", _ms(write_all) * 1e6 / _PAGES)
        note("write", _ms(write_all) * 1e6 / _PAGES)
        note("all", _ms(lambda: _collect(tracker, _PAGES)))
        write(tenth)
        note("tenth", _ms(lambda: _collect(tracker, len(tenth))))
        tracker.remove()
    return {name: statistics.median(values) for name, values in found.items()}


def _noting_ns(mark: Callable[[NDArray[np.int64]], None]) -> float:
    """What a page costs of batches as a guest's writers have."""
    random = np.random.default_rng(1)
    batches = [random.integers(0, _PAGES, _BATCH) for _ in range(_BATCHES)]
    return _ms(lambda: [mark(batch) for batch in batches]) * 1e6 / (_BATCH * _BATCHES)


def _ms(work: Callable[[], object]) -> float:
    began_ns = time.monotonic_ns()
    work()
    return (time.monotonic_ns() - began_ns) / 1e6


def _collect(tracker: DirtyTracker, expected: int) -> None:
    found = len(tracker.collect())
    if found != expected:
        raise RuntimeError(f"{tracker.name} found {found} pages where {expected} were written")


def _pagemap(found: dict[str, float], count: int) -> list[Row]:
    return [
        _beside(
            "pagemap: first write to a protected page", found["first write"], "ns", _FIRE_NS, count
        ),
        _beside("pagemap: ordinary write", found["write"], "ns", _WRITE_NS, count),
        _beside("pagemap: install, 1 GB", found["install"], "ms", _INSTALL_MS, count),
        _beside("pagemap: scan of 1 GB, clean", found["clean"], "ms", _CLEAN_MS, count),
        _beside("pagemap: 10 % random of 1 GB", found["tenth"], "ms", _TENTH_MS, count),
        _beside("pagemap: 100 % of 1 GB", found["all"], "ms", _ALL_MS, count),
    ]


def _bytemap(found: dict[str, float], count: int) -> list[Row]:
    return [
        _beside("byte map: noting a written page", found["mark"], "ns", _MARK_NS, count),
        row("byte map: install, 1 GB", found["install"], "ms", count),
        row("byte map: scan of 1 GB, clean", found["clean"], "ms", count),
        row("byte map: 10 % random of 1 GB", found["tenth"], "ms", count),
        row("byte map: 100 % of 1 GB", found["all"], "ms", count),
    ]


def _beside(name: str, value: float, unit: str, peer: tuple[str, float], count: int) -> Row:
    return row(name, value, unit, count, peer=peer, ratio=value / peer[1])
