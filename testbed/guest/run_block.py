"""Words between the VMX and the processes of its VM: run or stop, and the answer.

They are commands, not the guest's state: in a memfd of their own, outside guest memory, never
copied. One cache line (64 bytes) a vCPU, then one for the NIC process, then the program.
"""

from __future__ import annotations

import mmap
import os

import numpy as np

from testbed.errors import InputError

LINE_BYTES = 64
PROGRAM_BYTES = 1 << 20
RUN, STATE, SLEEP, PROGRAM = range(4)
"""Words of a line.

RUN is the command: `STOP`, `GO` or `CLAIM`. STATE the answer. SLEEP how many nanoseconds a vCPU
is to sleep for each millisecond that it has run. PROGRAM the version of the program: a line's
owner that has built its tasks from another one builds them anew before it runs.
"""
STOP, GO, CLAIM = range(3)
"""CLAIM stops as STOP does, but the guest is not suspended: one vCPU stands still for a while."""
STARTING, STOPPED, RUNNING = range(3)


class RunBlock:
    """The lines and the program of one VM; processes that it forks share them, others by `fd`."""

    def __init__(self, vcpus: int, fd: int | None = None) -> None:
        """Make one, or map that of another process, whose descriptor this becomes."""
        self.vcpus = vcpus
        size_bytes = LINE_BYTES * (vcpus + 1) + 8 + PROGRAM_BYTES
        if fd is None:
            fd = os.memfd_create("run-block", os.MFD_CLOEXEC)
            os.ftruncate(fd, size_bytes)
        self.fd = fd
        self._mapping = mmap.mmap(fd, size_bytes)
        lines = np.frombuffer(self._mapping, np.int64, 8 * (vcpus + 1)).reshape(vcpus + 1, 8)
        self.run, self.state = lines[:, RUN], lines[:, STATE]
        self.sleep, self.program = lines[:, SLEEP], lines[:, PROGRAM]

    def words(self, line: int) -> memoryview:
        """A line's eight words; the NIC process has line number `vcpus`."""
        start = LINE_BYTES * line
        return memoryview(self._mapping)[start : start + LINE_BYTES].cast("q")

    @staticmethod
    def check_program(text: bytes) -> None:
        """See that there is room for a program.

        Raises:
            InputError: it is too long.
        """
        if len(text) > PROGRAM_BYTES:
            raise InputError(
                f"the workloads take {len(text)} bytes to describe, which is more than "
                f"{PROGRAM_BYTES}; give a trace of fewer ranges"
            )

    def write_program(self, text: bytes) -> None:
        """Store a program; whoever runs must have been stopped. Its version goes up by one.

        Raises:
            InputError: it is too long; the old one stays.
        """
        self.check_program(text)
        start = LINE_BYTES * (self.vcpus + 1)
        self._mapping[start : start + 8] = len(text).to_bytes(8, "little")
        self._mapping[start + 8 : start + 8 + len(text)] = text
        self.program += 1

    def read_program(self) -> bytes:
        """The program that was stored last."""
        start = LINE_BYTES * (self.vcpus + 1)
        length = int.from_bytes(self._mapping[start : start + 8], "little")
        return self._mapping[start + 8 : start + 8 + length]

    def close(self) -> None:
        """Give the descriptor back; the memory is freed with the last view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.run = self.state = self.sleep = self.program = np.empty(0, np.int64)
            del self._mapping
