"""Reads hosts' logs, line by line, and gathers what they say of each migration."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from testbed.errors import InputError
from testbed.report.observed import Observed
from testbed.report.result import Failure
from testbed.report.vmkernel_line import said

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from testbed.report.result import Iteration
    from testbed.report.vmkernel_line import Said

LONGEST_LINE_BYTES = 8192
"""Of a longer line the rest is passed over; what is known of migrations is far shorter."""
LARGEST_TEXT_BYTES = 16 << 30
"""Of a file, decompressed: a small file may hold endlessly much of nothing."""
MOST_MIGRATIONS = 10_000
MOST_ITERATIONS = 1_000
EPOCH_IDS_US = (946_684_800_000_000, 4_102_444_800_000_000)
"""IDs that are microseconds of 2000 to 2100, as ESX's own were; later ones are random."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A migration, the names of the logs that tell of it, and in how many lines."""

    observed: Observed
    logs: tuple[str, ...]
    lines: int


def parse(lines: Iterable[str], name: str = "") -> list[Gathered]:
    """The migrations in lines of one log, in the order in which they appear.

    Raises:
        InputError: there are more than 10000.
    """
    gathering = Gathering()
    for line in lines:
        gathering.take(line, name)
    return gathering.results()


def read_logs(paths: Iterable[Path]) -> list[Gathered]:
    """The migrations in logs of hosts, plain or compressed by gzip; of all hosts together.

    Raises:
        InputError: a file can't be read or is damaged, or there are more than 10000 migrations.
    """
    gathering = Gathering()
    for path in paths:
        with _opened(path) as file:
            for line in lines_of(file, str(path)):
                gathering.take(line, path.name)
    return gathering.results()


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file as it is read, decompressed if it has to be.

    Raises:
        InputError: it can't be read, or is damaged.
    """
    try:
        with path.open("rb") as plain:
            if plain.peek(2)[:2] != b"\x1f\x8b":
                yield plain
                return
            with gzip.open(plain) as unpacked:
                yield cast("IO[bytes]", unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged ({error}); copy it from the host again") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}; give a log file") from error


def lines_of(file: IO[bytes], name: str) -> Iterator[str]:
    """The lines that may tell of a migration; long ones cut, bytes that are no text replaced.

    Raises:
        InputError: there is no end of it.
    """
    read_bytes, whole = 0, True
    while part := file.readline(LONGEST_LINE_BYTES):
        read_bytes += len(part)
        if read_bytes > LARGEST_TEXT_BYTES:
            limit = LARGEST_TEXT_BYTES >> 30
            raise InputError(f"{name}: more than {limit} GiB of text; cut out the time of interest")
        if whole and _may_tell(part):
            yield part.decode("utf-8", "replace")
        whole = part.endswith(b"\n")


def _may_tell(line: bytes) -> bool:
    """Whatever says something of a migration has one of these; most lines are passed over so."""
    return (
        b" S:" in line
        or b" D:" in line
        or b"VMOTION info" in line
        or b"vmotion:" in line
        or b"precopyStun" in line
    )


class Gathering:
    """Migrations by their ID, as far as the lines taken tell of them."""

    def __init__(self) -> None:
        self._by_id: dict[int, _Migration] = {}

    def take(self, line: str, log: str) -> None:
        """Heed a line of the log of this name.

        Raises:
            InputError: it tells of one migration too many.
        """
        if (found := said(line)) is None:
            return
        moved = found.migration_id if found.migration_id is not None else self._only_one_unstunned()
        if moved is None:
            return
        if moved not in self._by_id:
            if len(self._by_id) == MOST_MIGRATIONS:
                raise InputError(
                    f"more than {MOST_MIGRATIONS} migrations; cut out the time of interest"
                )
            self._by_id[moved] = _Migration(moved)
        self._by_id[moved].take(found, log)

    def results(self) -> list[Gathered]:
        """The migrations in the order in which they appeared."""
        return [one.result() for one in self._by_id.values()]

    def _only_one_unstunned(self) -> int | None:
        """Whose stun a line without an ID tells: of the one that is waited for, if it is one."""
        waiting = [one.id for one in self._by_id.values() if one.waits_for_stun]
        return waiting[0] if len(waiting) == 1 else None


@dataclass(slots=True)
class _Migration:
    id: int
    fields: dict[str, Any] = field(default_factory=dict)
    iterations: dict[int, Iteration] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    begins: dict[str, Said] = field(default_factory=dict)
    ends: dict[str, Said] = field(default_factory=dict)
    first_unix_ns: int | None = None
    cause: str | None = None
    phase: str | None = None
    arrived: bool = False
    logs: Counter[str] = field(default_factory=Counter)

    @property
    def waits_for_stun(self) -> bool:
        """Its source has stopped pre-copy, and has not told the stun."""
        stopped = "pages_left" in self.fields or "transmit_bytes_per_s" in self.fields
        return stopped and "stun_ns" not in self.fields and self.cause is None

    def take(self, found: Said, log: str) -> None:
        self.logs[log] += 1
        self.fields.update(found.fields)
        if (one := found.iteration) is not None and len(self.iterations) < MOST_ITERATIONS:
            self.iterations[one.number] = one
        side = found.side or ""
        if found.host is not None:
            self.hosts.setdefault(side, found.host)
        if found.begins:
            self.begins.setdefault(side, found)
        if found.ends:
            self.ends[side] = found
        if self.first_unix_ns is None:
            self.first_unix_ns = found.unix_ns
        self.cause = self.cause or found.cause
        self.phase = self.phase or found.phase
        self.arrived = self.arrived or found.arrived

    def result(self) -> Gathered:
        outcome: Literal["completed", "failed", "unknown"] = "unknown"
        failure = None
        if self.cause is not None or self.phase is not None:
            outcome = "failed"
            failure = Failure(self.phase or "unknown", self.cause or "the log does not say")
        elif self.arrived:
            outcome = "completed"
        known = {
            "source": self.hosts.get("S"),
            "destination": self.hosts.get("D"),
            "total_ns": self._span_ns("S") or self._span_ns("D"),
            **self.fields,
        }
        seen = replace(
            Observed(migration_id=self.id, outcome=outcome, failure=failure, **known),
            began=self._began(),
            iterations=tuple(one for _, one in sorted(self.iterations.items())),
        )
        return Gathered(seen, tuple(self.logs), self.logs.total())

    def _span_ns(self, side: str) -> int | None:
        """From the first line of a host to its last, where it tells both."""
        if side not in self.begins or side not in self.ends:
            return None
        begin, end = self.begins[side], self.ends[side]
        for one, other in ((begin.uptime_ns, end.uptime_ns), (begin.unix_ns, end.unix_ns)):
            if one is not None and other is not None and other >= one:
                return other - one
        return None

    def _began(self) -> str | None:
        unix_ns = self.first_unix_ns
        if unix_ns is None and EPOCH_IDS_US[0] <= self.id < EPOCH_IDS_US[1]:
            unix_ns = self.id * 1000
        if unix_ns is None:
            return None
        return datetime.fromtimestamp(unix_ns // 10**9, UTC).isoformat()
