"""The NIC process at one guest: its pages and its line of the run block, fetched from the VMX."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import ExitStack
from typing import Any

from testbed.errors import LabError
from testbed.guest.layout import NIC_PAGES, first_data_page, state_pages
from testbed.guest.nic.account import Account
from testbed.guest.nic.records import NicPages, divide
from testbed.guest.run_block import GO, LINE_BYTES, RUN, STATE
from testbed.guest.specification import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES

_PIDFD_GETFD = 438  # asm-generic/unistd.h, Linux 5.6


class Attachment:
    """One guest that the NIC process may serve: now (its line says run) or later.

    Args:
        pid: the guest's VMX.
        line: the numbers of the VMX's descriptors, as `Guest.nic_line` tells them; and its host's
            `account`, if it has one.
        vcpus: how many the guest has; the NIC's line of the run block comes after theirs.

    Raises:
        LabError: the VMX has ended, or has no such descriptors, or there is no such account.
    """

    def __init__(self, pid: int, line: dict[str, Any], vcpus: int) -> None:
        self.pid = pid
        with ExitStack() as undo:
            try:
                self.pidfd = os.pidfd_open(pid)
                undo.callback(os.close, self.pidfd)
                self.account = Account(line.get("account"))
                undo.callback(self.account.close)
                fds = {}
                for name in ("memory", "block", "wake", "kick", "answer"):
                    fds[name] = _fetch(self.pidfd, line[name])
                    undo.callback(os.close, fds[name])
                # Large pages are mapped whole.
                ends = first_data_page(vcpus) * SMALL_PAGE_BYTES
                ends = -(-ends // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES
                memory = mmap.mmap(fds["memory"], min(ends, os.fstat(fds["memory"]).st_size))
                block = mmap.mmap(fds["block"], 0)
            except OSError as error:
                raise LabError(f"fetch the NIC's line from process {pid}: {error}") from error
            start = state_pages(vcpus) * SMALL_PAGE_BYTES
            self.pages: NicPages = divide(
                memoryview(memory)[start : start + NIC_PAGES * SMALL_PAGE_BYTES]
            )
            at = LINE_BYTES * vcpus
            self._words = memoryview(block)[at : at + LINE_BYTES].cast("q")
            self.wake_fd, self.kick_fd, self._answer_fd = fds["wake"], fds["kick"], fds["answer"]
            self._undo = undo.pop_all()

    @property
    def told_to_run(self) -> bool:
        """What the line says now."""
        return bool(self._words[RUN] == GO)

    def answer(self, state: int) -> None:
        """Say that it runs or has stopped, and wake the VMX if that is new."""
        if self._words[STATE] != state:
            self._words[STATE] = state
            os.eventfd_write(self._answer_fd, 1)

    def close(self) -> None:
        """Let go of the guest."""
        self._undo.close()


def _fetch(pidfd: int, number: int) -> int:
    """A copy of a descriptor of another process."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(_PIDFD_GETFD, pidfd, number, 0))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"descriptor {number}")
    return fd
