"""Pages that a guest runs without until they come from its source: post-copy.

They are holes of the memfd. A vCPU that touches one waits in the kernel (userfaultfd, MISSING, on
each vCPU's mapping), the VMX reads what for, and puts the page in when it has come: as a whole,
whichever vCPU waits. Only vCPUs may touch a hole: to any other process, the VMX too, it would
become a page of zeros; a page that was there before it came is therefore an error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import KernelError, MigrationError
from testbed.guest import layout
from testbed.guest.memory import PAGE_BYTES, GuestMemory
from testbed.guest.page_runs import bounds
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.userfaultfd import (
    copy_in,
    open_userfaultfd,
    read_faults,
    register_missing,
    unregister,
    wake,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.machine import Guest
    from testbed.guest.specification import GuestSpec
    from testbed.guest.tracking import TrackingName

_PUNCH_HOLE = 0x02 | 0x01  # linux/falloc.h; the size is kept


def lacks_missing_pages(spec: GuestSpec, tracking: TrackingName) -> str | None:
    """Why this VM can't run without all of its pages; None if it can."""
    if spec.backing == "synthetic":
        return "the pages of synthetic memory are in no page table, so a vCPU can't wait for one"
    if spec.resident_bytes is not None and spec.resident_bytes < spec.memory_bytes:
        return "pages of it are in its swap file, which a page that comes would have to go through"
    if spec.page_bytes != SMALL_PAGE_BYTES:
        return f"its pages of {spec.page_bytes >> 20} MiB can't be missing one by one"
    try:
        os.close(open_userfaultfd(tracks=tracking == "pagemap"))
    except KernelError as error:
        return f"its vCPUs can't wait for a page: {error}"
    return None


class MissingPages:
    """Which pages are missing, who waits for them, and the way in for those that come.

    `expect` or `install` first; after `install` the guest may run. `faults` and `place` may be
    called by several threads. `remove` when all are there: the guest is a whole one again. Until
    then the holes are the vCPUs' only protection against pages of zeros, so nothing undoes them:
    a guest that can't get its pages has to be powered off.
    """

    def __init__(self, guest: Guest) -> None:
        """Of a guest that stands still.

        Raises:
            MigrationError: it can't run without all of its pages.
        """
        reason = lacks_missing_pages(guest.spec, guest.tracking)
        memory = guest.memory
        if reason is None and len(guest.userfaultfds) < guest.spec.vcpus:
            reason = "its vCPUs have no userfaultfd"
        if reason is not None or not isinstance(memory, GuestMemory):
            raise MigrationError(f"{guest.spec.name} can't be resumed quickly: {reason}")
        self._guest, self._fd, self._address = guest, memory.fd, memory.address
        self._size_bytes = memory.size_bytes
        self.fds = guest.userfaultfds
        """One for each vCPU; readable when it has come to wait for a page."""
        self._first = layout.first_data_page(guest.spec.vcpus)
        self._missing = np.zeros(memory.page_count, np.bool_)
        self._waiting: dict[int, tuple[int, list[int]]] = {}  # page: since when, vCPUs
        self._lock = threading.Lock()
        self.left = 0
        """How many are missing still."""
        self.faults = self.duplicates = 0
        self.waits_ns: list[int] = []
        """How long each page that was waited for took to come, from when the VMX knew."""

    def expect(self, pages: NDArray[np.int64]) -> None:
        """Make holes for these, ascending, which will not come before the guest runs.

        About 8 us for each run of neighbours: what is known to be missing is therefore told before
        the stun, and the rest by `install`. Those that are expected already count once.

        Raises:
            MigrationError: a page isn't in this memory, or is the guest's own state.
            KernelError: the kernel made no hole.
        """
        if len(pages) and not self._first <= pages[0] <= pages[-1] < len(self._missing):
            raise MigrationError(
                f"pages {pages[0]} to {pages[-1]} of {self._guest.spec.name} can't be missing: "
                f"the guest's own state is below page {self._first}, its end {len(self._missing)}"
            )
        new = pages[~self._missing[pages]]
        held = os.fstat(self._fd).st_blocks
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        for first, end in bounds(new):
            offset, size = int(new[first]) * PAGE_BYTES, (end - first) * PAGE_BYTES
            if fallocate(self._fd, _PUNCH_HOLE, offset, size):
                raise self._no_hole(os.strerror(ctypes.get_errno()))
        if (freed := held - os.fstat(self._fd).st_blocks) != len(new) * PAGE_BYTES // 512:
            raise self._no_hole(f"{freed * 512} bytes of {len(new)} pages were freed")
        self._missing[new] = True
        self.left += len(new)

    def _no_hole(self, cause: str) -> KernelError:
        return KernelError("make holes in", f"the memory of {self._guest.spec.name}", cause)

    def install(self, pages: NDArray[np.int64]) -> None:
        """Have vCPUs wait for these, ascending, all of which are missing; errors as `expect`.

        Raises:
            MigrationError: others were expected than these.
        """
        self.expect(pages)
        if self.left != len(pages):
            raise MigrationError(
                f"{self.left} pages of {self._guest.spec.name} were expected to be missing, "
                f"{len(pages)} are"
            )
        for vcpu, fd in enumerate(self.fds):
            try:
                register_missing(fd, self._address, self._size_bytes)
            except OSError as error:
                raise self._refused(vcpu, error) from error
        self._guest.missing_pages = self.left

    def missing(self) -> NDArray[np.int64]:
        """All that are, ascending."""
        return np.flatnonzero(self._missing)

    def waited_for(self) -> list[int]:
        """Those that a vCPU is known to wait for, the longest first."""
        with self._lock:
            return list(self._waiting)

    def faults_of(self, vcpu: int) -> list[int]:
        """Pages that a vCPU has come to wait for, and nobody before it; they have to be fetched.

        One that has come meanwhile is not among them: the vCPU goes on.
        """
        now, new = time.monotonic_ns(), []
        fd = self.fds[vcpu]
        for address in read_faults(fd):
            page = (address - self._address) // PAGE_BYTES
            with self._lock:
                self.faults += 1
                if not self._missing[page]:
                    wake(fd, self._address + page * PAGE_BYTES, PAGE_BYTES)
                elif page in self._waiting:
                    self._waiting[page][1].append(vcpu)
                else:
                    self._waiting[page] = now, [vcpu]
                    new.append(page)
        return new

    def place(self, pages: NDArray[np.int64], source: int) -> None:
        """Put in pages that lie one after another at the address `source`, and wake who waits.

        They ascend. Those that are there already are left as they are, and count as duplicates.

        Raises:
            MigrationError: a vCPU has died, or somebody else has touched a page.
        """
        with self._lock:
            numbers, new, end = pages.tolist(), self._missing[pages].tolist(), 0
            while end < len(numbers):  # quicker than numpy's calls, as they are few
                first, end = end, end + 1
                if not new[first]:
                    self.duplicates += 1
                    continue
                while end < len(numbers) and new[end] and numbers[end] == numbers[end - 1] + 1:
                    end += 1
                self._put(numbers[first], end - first, source + first * PAGE_BYTES)

    def _put(self, page: int, count: int, source: int) -> None:
        waiting = self._waiting
        waited = [each for each in waiting if page <= each < page + count] if waiting else []
        vcpu = self._waiting[waited[0]][1][0] if waited else 0  # it is woken by that
        address = self._address + page * PAGE_BYTES
        try:
            copy_in(self.fds[vcpu], address, source, count * PAGE_BYTES)
            self._missing[page : page + count] = False
            self.left -= count
            now = time.monotonic_ns()
            for each in waited:
                since_ns, vcpus = self._waiting.pop(each)
                self.waits_ns.append(now - since_ns)
                for other in vcpus:
                    if other != vcpu:
                        wake(self.fds[other], self._address + each * PAGE_BYTES, PAGE_BYTES)
        except OSError as error:
            raise self._refused(vcpu, error) from error

    def _refused(self, vcpu: int, error: OSError) -> MigrationError:
        name = self._guest.spec.name
        if error.errno == errno.ESRCH:
            return MigrationError(f"vCPU {vcpu} of {name} has died")
        if error.errno == errno.EEXIST:
            return MigrationError(f"a missing page of {name} was touched by another than its vCPUs")
        return MigrationError(f"missing pages of vCPU {vcpu} of {name}: {error.strerror}")

    def remove(self) -> None:
        """End, when all pages are there: the guest can be tracked and migrated again.

        Raises:
            ValueError: pages are missing.
        """
        if self.left:
            raise ValueError(f"{self.left} pages are missing")
        for vcpu, fd in enumerate(self.fds):
            try:
                unregister(fd, self._address, self._size_bytes)
            except OSError as error:
                raise self._refused(vcpu, error) from error
        self._guest.missing_pages = 0
