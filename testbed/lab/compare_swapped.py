"""Compares two overcommitted guests at rest: every page wherever it is, in memory or swapped."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import LabError
from testbed.guest.swap import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PAGE_BYTES = 4096
WORDS_PER_PAGE = PAGE_BYTES // 8
CHUNK_PAGES = 4096


def is_overcommitted(pid: int) -> bool:
    """Whether the guest of this VMX has a swap file."""
    return _descriptor(pid, "/memfd:swap-", "") is not None


@dataclass(frozen=True, slots=True)
class Opened:
    """A guest's memory, its table and its swap file, opened by another process for reading."""

    fd: int
    page_count: int
    slots: NDArray[np.uint32]
    file: NDArray[np.uint64]
    file_is: tuple[int, int]
    """Which file it is: device and inode."""

    @classmethod
    @contextmanager
    def of(cls, pid: int, memory_fd: int) -> Iterator[Opened]:
        """Those of a VMX that has its memory in this descriptor.

        Raises:
            LabError: it has no swap file.
        """
        places = (
            f"/proc/{pid}/fd/{memory_fd}",
            _descriptor(pid, "/memfd:swap-", ""),
            _descriptor(pid, "", ".vswp"),
        )
        with ExitStack() as undo:
            fds = []
            for place in places:
                if place is None:
                    raise LabError(f"compare memories: the guest of process {pid} has no swap file")
                fds.append(os.open(place, os.O_RDONLY | os.O_CLOEXEC))
                undo.callback(os.close, fds[-1])
            fd, table_fd, file_fd = fds
            count = os.fstat(fd).st_size // PAGE_BYTES
            table = np.frombuffer(mmap.mmap(table_fd, 0, prot=mmap.PROT_READ), TABLE)
            rows = np.frombuffer(mmap.mmap(file_fd, 0, prot=mmap.PROT_READ), np.uint64)
            status = os.fstat(file_fd)
            yield cls(
                fd,
                count,
                table["slot"][:count],
                rows.reshape(-1, WORDS_PER_PAGE),
                (status.st_dev, status.st_ino),
            )

    def content(self, first: int, count: int) -> NDArray[np.uint64]:
        """These pages. Memory is read as a file is: a hole in it stays one.

        Raises:
            LabError: a page is in no slot of the file.
        """
        rows = np.zeros((count, WORDS_PER_PAGE), np.uint64)
        os.preadv(self.fd, [rows.data.cast("B")], first * PAGE_BYTES)
        slots = self.slots[first : first + count]
        out = np.flatnonzero(slots)
        if len(out) and slots.max() > len(self.file):
            raise LabError(f"compare memories: a page is in slot {slots.max()} of {len(self.file)}")
        rows[out] = self.file[slots[out] - 1]
        return rows


def compare_overcommitted(source: Opened, destination: Opened) -> tuple[int, list[int]]:
    """How many pages there are, and the numbers of those that are not alike.

    Raises:
        LabError: they are of different sizes, or of two swap files.
    """
    count = source.page_count
    if count != destination.page_count or source.file_is != destination.file_is:
        raise LabError(
            f"compare memories: {count} and {destination.page_count} pages, swap files"
            f" {source.file_is} and {destination.file_is}"
        )
    found: list[int] = []
    for first in range(0, count, CHUNK_PAGES):
        part = first, min(CHUNK_PAGES, count - first)
        ours, theirs = source.content(*part), destination.content(*part)
        if not np.array_equal(ours, theirs):
            found += (np.flatnonzero((ours != theirs).any(axis=1)) + first).tolist()
    return count, found


def _descriptor(pid: int, begins: str, ends: str) -> str | None:
    """A descriptor of this process that is open on a file of such a name."""
    for place in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(place.readlink())
        except FileNotFoundError:
            continue  # it has been closed meanwhile
        if target.startswith(begins) and target.endswith(ends):
            return str(place)
    return None
