"""A vCPU stands still until it is told to run, whenever it is told."""

from __future__ import annotations

import os

from testbed.guest.memory import GuestMemory
from testbed.guest.run_block import GO, RUN, STARTING, STATE, STOP, STOPPED, RunBlock
from testbed.guest.vcpu import Vcpu, VcpuStart


class Line:
    """A line of the run block on which others write at the worst of times."""

    def __init__(self, commands, wake_fd):
        self._commands, self._wake_fd = commands, wake_fd
        self.answers = []

    def __getitem__(self, word):
        assert word == RUN
        command = self._commands.pop(0)
        if command != GO:
            os.eventfd_write(self._wake_fd, 1)
        return command

    def __setitem__(self, word, value):
        assert word == STATE
        self.answers.append(value)


def test_one_that_was_told_to_stop_anew_as_it_went_on_stands_still():
    """The VMX takes its old answer for the new one, so nothing of the guest may be touched."""
    wake_fd, answer_fd = os.eventfd(0), os.eventfd(0)
    try:
        with GuestMemory("vm", 4096 * 4) as memory:
            block = RunBlock(1)
            start = VcpuStart(
                0, memory, block, wake_fd, answer_fd, -1, None, None, None, frozenset()
            )
            vcpu = Vcpu(start, wake_fd)
            vcpu._line = Line([STOP, STOP, GO, STOP, STOP, GO, GO], wake_fd)
            assert vcpu._stand_still() is False
            assert vcpu._line.answers == [STOPPED, STARTING, STOPPED, STARTING]
            assert not memory.words.any()
            del vcpu, start
            block.close()
    finally:
        os.close(wake_fd)
        os.close(answer_fd)
