"""Compares two guests' memories at rest: a process that takes no part in the migration."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import LabError
from testbed.lab.lines import LineSocket

if TYPE_CHECKING:
    import socket

PAGE_BYTES = 4096
CHUNK_PAGES = 4096


def different_pages(a: mmap.mmap, b: mmap.mmap) -> list[int]:
    """The numbers of the pages that are not alike.

    Raises:
        LabError: the memories are of different sizes.
    """
    if len(a) != len(b):
        raise LabError(f"compare memories: {len(a)} bytes at the source, {len(b)} at the other end")
    pages = [np.frombuffer(m, np.uint64).reshape(-1, PAGE_BYTES // 8) for m in (a, b)]
    found: list[int] = []
    for first in range(0, len(pages[0]), CHUNK_PAGES):
        ours, theirs = (p[first : first + CHUNK_PAGES] for p in pages)
        if not np.array_equal(ours, theirs):
            found += (np.flatnonzero((ours != theirs).any(axis=1)) + first).tolist()
    return found


def open_memory(pid: int, descriptor: int) -> mmap.mmap:
    """Another process's memfd, mapped for reading."""
    fd = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


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
    memories = [open_memory(*source), open_memory(*destination)]
    found = different_pages(*memories)
    compared = len(memories[0]) // PAGE_BYTES
    LineSocket(control).send(
        {"pages_compared": compared, "pages_different": len(found), "first": found[:10]}
    )
