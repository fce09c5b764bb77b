"""A VM's swap file on its datastore: for one host at a time, which has it locked.

While the VM migrates both hosts have it open: its source holds the lock until it tells the
destination to run the VM, which takes it then. It is deleted only by the host that the VM is at
for good.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import KernelError
from testbed.guest.memory import PAGE_BYTES, WORDS_PER_PAGE
from testbed.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_LOOK_S = 0.001
_END_NS = 5_000_000_000


class SwapFile:
    """`rows` are its pages as rows of words, in this process and those that it forks."""

    def __init__(self, path: Path, pages: int, *, arriving: bool = False) -> None:
        """Reserve it, locked; or, if the VM is only arriving, open the one that its source has.

        Raises:
            KernelError: the datastore is full, the file is in use, or not there to be opened.
        """
        self._path, self._size_bytes = path, pages * PAGE_BYTES
        self._keeps = False
        with ExitStack() as undo:
            try:
                flags = os.O_RDWR | os.O_CLOEXEC | (0 if arriving else os.O_CREAT)
                self._fd = os.open(path, flags, 0o600)
                undo.callback(os.close, self._fd)
                if arriving:
                    self._check_size()
                else:
                    self._lock("reserve")  # one left by a killed VM is nobody's
                    undo.callback(path.unlink, missing_ok=True)
                    os.ftruncate(self._fd, 0)
                    os.posix_fallocate(self._fd, 0, self._size_bytes)
                    self._keeps = True
                mapping = mmap.mmap(self._fd, self._size_bytes)
            except OSError as error:
                raise self._refused("open" if arriving else "reserve", error) from error
            undo.pop_all()
        self.rows: NDArray[np.uint64]
        self.rows = np.frombuffer(mapping, np.uint64).reshape(pages, WORDS_PER_PAGE)

    def release(self) -> None:
        """Let another host take it; what is in it stays as it is."""
        self._keeps = False
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def take(self) -> None:
        """Lock it; whoever takes it may have to give it back, so it is not deleted: see `keep`.

        A VM that was killed has it until the last of its vCPUs has ended, which is waited for.

        Raises:
            KernelError: another host has it, or it is not in its place any more.
        """
        self._lock("take over", time.monotonic_ns() + _END_NS)
        try:
            same = os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except OSError:
            same = False
        if not same:
            self.release()
            raise KernelError("take over", f"swap file {self._path}", "it has been deleted")

    def keep(self) -> None:
        """It is this host's for good: `close` deletes it."""
        self._keeps = True

    def close(self) -> None:
        """Delete it if it is this host's, and let go of it."""
        if self._keeps:
            self._path.unlink(missing_ok=True)
        self.release()
        os.close(self._fd)
        self.rows = np.empty((0, WORDS_PER_PAGE), np.uint64)

    def _lock(self, attempt: str, deadline_ns: int = 0) -> None:
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic_ns() >= deadline_ns:
                    cause = "another VM has it open"
                    remedy = "give each VM a directory or name of its own"
                    raise KernelError(attempt, f"swap file {self._path}", cause, remedy) from error
                time.sleep(_LOOK_S)
            else:
                return

    def _check_size(self) -> None:
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes != self._size_bytes:
            cause = f"it has {size_bytes} bytes instead of {self._size_bytes}"
            raise KernelError("open", f"swap file {self._path}", cause, "is it another VM's?")

    def _refused(self, attempt: str, error: OSError) -> KernelError:
        what = f"{format_size(self._size_bytes)} for swap file {self._path}"
        if attempt == "open":
            what = f"swap file {self._path}"
            remedy = "the datastore of an overcommitted VM has to be the same at both hosts"
        else:
            remedy = "reserve more of the VM's memory, or give it less"
        if error.errno == errno.ENOSPC:
            remedy = f"free room on the datastore, {remedy}"
        return KernelError(attempt, what, str(error.strerror), remedy)
