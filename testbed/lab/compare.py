"""Compares two guests' memories at rest: a process that takes no part in the migration.

Real memory by content, in the swap file too. Of synthetic memory the leading pages, which are real,
by content, and the rest by their versions: these are all that there is of them.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from testbed.errors import LabError
from testbed.guest import synthetic
from testbed.lab.compare_swapped import Opened, compare_overcommitted, is_overcommitted
from testbed.lab.lines import LineSocket

if TYPE_CHECKING:
    import socket

    from numpy.typing import NDArray

PAGE_BYTES = 4096
CHUNK_PAGES = 4096


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many pages were compared, which are not alike, and what was compared of them."""

    pages: int
    different: list[int]
    by: Literal["content", "version"]


def compare(a: mmap.mmap, b: mmap.mmap) -> Comparison:
    """Compare two memories.

    Raises:
        LabError: they are of different sizes or kinds.
    """
    kinds = {synthetic.is_synthetic(memory) for memory in (a, b)}
    if len(a) != len(b) or len(kinds) > 1:
        raise LabError(
            f"compare memories: {_described(a)} at the source, {_described(b)} at the other end"
        )
    if kinds == {False}:
        rows = [_rows(memoryview(memory)) for memory in (a, b)]
        return Comparison(len(rows[0]), different_rows(*rows), "content")
    (ours, our_words, our_versions), (_, their_words, their_versions) = map(synthetic.parts, (a, b))
    real = len(ours) // PAGE_BYTES
    if len(our_words) != len(their_words):
        raise LabError(f"compare memories: {real} and {len(their_words)} pages of them are real")
    others = np.flatnonzero(our_versions[real:] != their_versions[real:]) + real
    found = different_rows(our_words, their_words) + others.tolist()
    return Comparison(len(our_versions), found, "version")


def different_rows(ours: NDArray[np.uint64], theirs: NDArray[np.uint64]) -> list[int]:
    """The numbers of the rows that are not alike."""
    found: list[int] = []
    for first in range(0, len(ours), CHUNK_PAGES):
        a, b = (rows[first : first + CHUNK_PAGES] for rows in (ours, theirs))
        if not np.array_equal(a, b):
            found += (np.flatnonzero((a != b).any(axis=1)) + first).tolist()
    return found


def _rows(memory: memoryview) -> NDArray[np.uint64]:
    return np.frombuffer(memory, np.uint64).reshape(-1, PAGE_BYTES // 8)


def _described(memory: mmap.mmap) -> str:
    kind = "synthetic" if synthetic.is_synthetic(memory) else "real"
    return f"a {kind} memory of {len(memory)} bytes"


def open_memory(pid: int, descriptor: int) -> mmap.mmap:
    """Another process's memfd, mapped for reading."""
    fd = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


def _compare_overcommitted(source: tuple[int, int], destination: tuple[int, int]) -> Comparison:
    with Opened.of(*source) as ours, Opened.of(*destination) as theirs:
        return Comparison(*compare_overcommitted(ours, theirs), "content")


def require_two(source: tuple[int, int], destination: tuple[int, int]) -> None:
    """Prove that two (pid, descriptor) pairs are two memories: one is always like itself.

    Raises:
        LabError: they are the same.
    """
    ours, theirs = (Path(f"/proc/{pid}/fd/{fd}").stat() for pid, fd in (source, destination))
    if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
        raise LabError("compare memories: both ends have the same one, so nothing was copied")


def run(control: socket.socket, source: tuple[int, int], destination: tuple[int, int]) -> None:
    """Compare the memories of two processes, each (pid, descriptor), and answer on `control`."""
    require_two(source, destination)
    if is_overcommitted(source[0]):
        found = _compare_overcommitted(source, destination)
    else:
        found = compare(open_memory(*source), open_memory(*destination))
    LineSocket(control).send(
        {
            "pages_compared": found.pages,
            "pages_different": len(found.different),
            "first": found.different[:10],
            "compared_by": found.by,
        }
    )
