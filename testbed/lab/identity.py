"""A process that is surely the one meant: its pid and the time at which it started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A pid with its start time (clock ticks since boot), so that a reused pid is noticed."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of a process that runs now, or None (a zombie has ended)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The command name, in parentheses, may hold spaces and parentheses (proc(5)).
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self

    def open(self) -> int | None:
        """A pidfd of this very process, or None if it has ended."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive():
            return descriptor
        os.close(descriptor)
        return None

    def write(self, path: Path) -> None:
        """Note it in a file."""
        path.write_text(f"{self.pid} {self.start_ticks}\n", encoding="ascii")

    @classmethod
    def read(cls, path: Path) -> ProcessIdentity | None:
        """The identity noted in a file, or None if there is none."""
        try:
            pid, start = path.read_text(encoding="ascii").split()
            return cls(int(pid), int(start))
        except (FileNotFoundError, ValueError):
            return None
