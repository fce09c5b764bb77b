"""Which pages the guest writes while it is copied: the two ways, and which this machine has."""

from __future__ import annotations

import functools
import mmap
import os
import platform
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from testbed.errors import KernelError
from testbed.guest.pagemap import PagemapTracker
from testbed.guest.userfaultfd import open_userfaultfd

if TYPE_CHECKING:
    from numpy.typing import NDArray

TrackingName: TypeAlias = Literal["pagemap", "bytemap"]


class DirtyTracker(Protocol):
    """Tells which pages the vCPUs have written since it was last asked."""

    @property
    def name(self) -> str:
        """The mechanism."""

    def install(self) -> None:
        """Begin: every later write is found."""

    def collect(self) -> NDArray[np.int64]:
        """The pages written since `install` or the last call, ascending, by any vCPU."""

    def remove(self) -> None:
        """End."""


def available() -> dict[TrackingName, str | None]:
    """Each mechanism with what keeps it from working here; None if nothing does."""
    return {"pagemap": _pagemap_lacks(), "bytemap": _bytemap_lacks()}


@functools.cache
def probe() -> tuple[TrackingName, str]:
    """The mechanism to use, and why; tried once a process, and not again in one forked later.

    Raises:
        KernelError: there is none.
    """
    lacks = available()
    if lacks["pagemap"] is None:
        return "pagemap", "the kernel tracks writes (PAGEMAP_SCAN)"
    if lacks["bytemap"] is None:
        return "bytemap", f"vCPUs note what they write; PAGEMAP_SCAN: {lacks['pagemap']}"
    raise KernelError("track", "dirty pages", f"{lacks['pagemap']}; {lacks['bytemap']}")


def _pagemap_lacks() -> str | None:
    """Track a few pages of this very process."""
    try:
        with ExitStack() as undo:
            memory = mmap.mmap(-1, 4 * mmap.PAGESIZE)
            view = np.frombuffer(memory, np.uint8)
            fd = open_userfaultfd()
            undo.callback(os.close, fd)
            tracker = PagemapTracker([(os.getpid(), fd)], int(view.ctypes.data), len(memory))
            tracker.install()
            undo.callback(tracker.remove)
            memory[2 * mmap.PAGESIZE] = 1
            found = tracker.collect().tolist()
            return None if found == [2] else f"PAGEMAP_SCAN found pages {found} for page 2"
    except KernelError as error:
        return f"{error.cause}; {error.remedy}" if error.remedy else error.cause
    except OSError as error:
        return f"PAGEMAP_SCAN: {error.strerror}"


def _bytemap_lacks() -> str | None:
    """It stands on the order in which x86 cores see one another's stores (bytemap.py)."""
    machine = platform.machine()
    return None if machine == "x86_64" else f"the byte map is proved for x86_64, not {machine}"
