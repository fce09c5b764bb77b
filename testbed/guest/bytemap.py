"""Dirty tracking by the guest itself: a byte per page, set by the vCPU that wrote it.

Why no write is missed, although nothing is locked: a vCPU sets the byte after the page, and
the VMX clears the byte before it reads the page. Should the byte be set after the clearing,
the next collection finds it. Should it have been set before, so had the page, as stores of
one x86 core are seen in their order, and what is read after the clearing is the new page (the
system call that sends it takes locks, which no later load passes; a synthetic page's version
is read by the VMX itself, thousands of instructions after the clearing: more than a core has
under way). A page written and not yet
marked is found once it is, and vCPUs stop between batches only: when all have stopped, every
write is marked.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


Bytemap: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint8]]


def make_bytemap(page_count: int) -> tuple[int, Bytemap]:
    """A new map, of no page: its memfd, which is the caller's to close, and its bytes.

    It is shared with the processes that the caller forks and with those that get the memfd,
    outside guest memory, and never copied. It is freed with the last view of it.
    """
    fd = os.memfd_create("written", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, page_count)
        return fd, map_bytemap(fd)
    except BaseException:
        os.close(fd)
        raise


def map_bytemap(fd: int) -> Bytemap:
    """The bytes of a map whose memfd another process has handed over."""
    return np.frombuffer(mmap.mmap(fd, 0), np.uint8)


class BytemapTracker:
    """Dirty tracking of a guest that was made with this byte map."""

    name = "bytemap"

    def __init__(self, written: Bytemap) -> None:
        self._written = written
        self._seen = np.empty_like(written)

    def install(self) -> None:
        """Begin: every later write is found."""
        self._written[:] = 0

    def collect(self) -> NDArray[np.int64]:
        """The pages written by any vCPU since `install` or the last call, ascending."""
        np.copyto(self._seen, self._written)  # numpy wants it to stand still while it counts
        pages = np.flatnonzero(self._seen)
        self._written[pages] = 0
        return pages

    def remove(self) -> None:
        """End; vCPUs go on marking, at 2 ns a page."""
