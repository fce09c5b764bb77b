"""The logs of a lab's hosts: each migration is told in those of its source and destination."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from testbed.report.observed import Observed, observed, stopping
from testbed.report.result import Iteration
from testbed.report.store import from_json
from testbed.report.vmkernel_log import Entry, Host, entries, form_of, line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.lab.directory import LabDirectory
    from testbed.lab.lines import Message
    from testbed.profiles import Profile
    from testbed.report.vmkernel_log import Form, Side

MOST_LOG_BYTES = 4 << 20
"""Then a host's log begins anew, and the old one stands beside it once."""
FOLLOW_S = 0.1


def log_file(directory: LabDirectory, host: str) -> Path:
    """Where a host's log is; there is none before its first migration."""
    return directory.path / "logs" / host / "vmkernel.log"


@dataclass(frozen=True, slots=True)
class End:
    """A host of a migration: its name, the pid of its VMX, and how it writes."""

    host: str
    vmx_pid: int
    form: Form


@dataclass(slots=True)
class MoveLog:
    """One migration as its hosts' logs tell it while it goes on.

    `started_ns` is when it began on CLOCK_MONOTONIC. What can't be written, as the file system is
    full, is left out: a log is not worth a guest.
    """

    directory: LabDirectory
    ends: dict[Side, End]
    seen: Observed
    started_ns: int
    _written: set[Entry] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Tell that it begins."""
        self._write()

    def tell(self, said: Message) -> None:
        """Heed what the source's VMX says; other events than these say nothing to a log."""
        if said.get("event") == "iterated":
            done = Iteration(**said["iteration"])
            self.seen = replace(self.seen, iterations=(*self.seen.iterations, done))
        elif said.get("event") == "stopping":
            self.seen = stopping(self.seen, self.seen.iterations)
        else:
            return
        self._write()

    def end(self, result: Message) -> None:
        """Tell the rest, from the result as JSON."""
        engine = result["engine"] and {**result["engine"], "samples": []}
        told = {**result, "engine": engine, "felt": None, "wires": []}  # which no log tells
        known = observed(from_json(told, "a migration's result"), self.seen.migration_id)
        addresses = self.seen.source_address, self.seen.destination_address
        known = replace(known, source_address=addresses[0], destination_address=addresses[1])
        if known.total_ns is None:
            known = replace(known, total_ns=time.monotonic_ns() - self.started_ns)
        self.seen = known
        self._write()

    def _write(self) -> None:
        worlds = self.ends["S"].vmx_pid, self.ends["D"].vmx_pid
        began_unix_ns = time.time_ns() - (time.monotonic_ns() - self.started_ns)
        for entry in entries(self.seen, worlds):
            end = self.ends[entry.side]
            if entry in self._written or end.form not in entry.forms:
                continue
            self._written.add(entry)
            host = Host(end.host, _booted_unix_ns(self.directory), end.vmx_pid, cpu_of(end.vmx_pid))
            with suppress(OSError):
                append(
                    log_file(self.directory, end.host),
                    line(entry, end.form, host, began_unix_ns + entry.at_ns),
                )


def form(profile: Profile) -> Form:
    """How a host with this profile writes, be it one's own that inherits."""
    given = (origin.given_by for origin in profile.sources.values())
    return form_of([profile.name, *given])


def append(path: Path, text: str) -> None:
    """Add a line to a log, whole, beginning a new one when it has become long.

    Raises:
        OSError: it can't be written.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if path.stat().st_size > MOST_LOG_BYTES:
            path.replace(path.with_suffix(".0"))
    with path.open("ab", buffering=0) as file:
        file.write(text.encode() + b"\n")


def cpu_of(pid: int) -> int:
    """The CPU that a process last ran on; 0 if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat[stat.rindex(")") + 2 :].split()[36])  # the 39th field (proc(5))


def _booted_unix_ns(directory: LabDirectory) -> int:
    """When the lab's hosts were made: its supervisor noted itself then."""
    try:
        return directory.identity.stat().st_mtime_ns
    except OSError:
        return time.time_ns()


class Tail:
    """A log as it grows; one that doesn't exist yet, or has begun anew, is read from its begin."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._part = b""

    def lines(self) -> list[str]:
        """What has come since the last call, in whole lines."""
        found = self._part
        while self._file is not None or self._opened():
            assert self._file is not None
            renewed = self._renewed()
            found += self._file.read()  # after the look, so that the old one is read to its end
            if not renewed:
                break
            self.close()
        *whole, self._part = found.split(b"\n")
        return [one.decode("utf-8", "replace") for one in whole]

    def close(self) -> None:
        """Let go of the file; the next call begins it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> bool:
        with suppress(FileNotFoundError):
            self._file = self._path.open("rb")
        return self._file is not None

    def _renewed(self) -> bool:
        assert self._file is not None
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


def follow(path: Path, ended: Callable[[], bool], last: int | None = None) -> Iterator[str]:
    """The lines of a log, of the old ones the `last`, and those to come until `ended`."""
    with closing(Tail(path)) as tail:
        yield from deque(tail.lines(), last)
        while not ended():
            time.sleep(FOLLOW_S)
            yield from tail.lines()


def read(path: Path, last: int | None = None) -> Iterator[str]:
    """The lines of a log, or its `last`; none if there is none."""
    with closing(Tail(path)) as tail:
        yield from deque(tail.lines(), last)
