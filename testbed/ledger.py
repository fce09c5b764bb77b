"""The CPU of one host, as an account that all processes working for that host draw on.

Nothing here takes CPU time from anybody. A worker says what its work would have cost a host of so
many cores and megahertz, and is told how long to wait before it goes on. It is bounded by its own
cores (one, for a stream helper), by those of its share, and by the host's. Whoever charges waits
in one queue with the others of its share: workers that charge alike at a time share equally.

Each limit is a virtual clock: the time at which all that was charged to it will have been done.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SHARES = ("vmotion", "vm", "management")
"""Who draws on a host's CPU: migrations, the guests' own traffic, management traffic."""

BURST_NS = 10_000_000
"""Of idle time so much is still of use: it makes up for sleeps that end late, no more."""

SLICE_NS = 1_000_000
"""`Worker.settle` charges so much of a core's time at once, for others to come between."""

_MAGIC = 0x7465737462656401
_MAGIC_WORD, _CORE_HZ, _HOST_HZ, _HOST_CLOCK, _SHARES_FROM = range(5)
_SHARE_HZ, _SHARE_CLOCK, _SHARE_USED, _SHARE_WORDS = range(4)
_WORDS = _SHARES_FROM + len(SHARES) * _SHARE_WORDS
_SIZE_BYTES = _WORDS * 8


@dataclass(frozen=True, slots=True)
class Cost:
    """What a transfer costs its host, in cycles a byte and a packet of one segment (MSS)."""

    cycles_per_byte: float
    cycles_per_packet: float = 0.0

    def cycles(self, size_bytes: int, mss_bytes: int) -> float:
        """The cycles of so many bytes, sent or received together; segments are rounded up."""
        packets = -(-size_bytes // mss_bytes)
        return size_bytes * self.cycles_per_byte + packets * self.cycles_per_packet


def book(
    clocks_ns: Sequence[int], now_ns: int, cycles: float, rates_hz: Sequence[float]
) -> tuple[tuple[int, ...], int]:
    """Charge work to virtual clocks, which each go at a rate of their own.

    Args:
        clocks_ns: when what is on each will have been done.
        now_ns: the time, on the same clock.
        cycles: the work.
        rates_hz: how many cycles a second each has.

    Returns:
        The clocks after it, and how long to wait until the last of them has done its work.
    """
    after = tuple(
        max(clock, now_ns - BURST_NS) + math.ceil(cycles * 1e9 / rate)
        for clock, rate in zip(clocks_ns, rates_hz, strict=True)
    )
    return after, max(0, *(clock - now_ns for clock in after))


class Ledger:
    """A host's account: a small file that every process of the host has mapped.

    Made by `open` or `join`.
    """

    def __init__(self, path: Path) -> None:
        """See `join`."""
        self._path = path
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size == _SIZE_BYTES:
                self._words = memoryview(mmap.mmap(fd, _SIZE_BYTES)).cast("q")
                if self._words[_MAGIC_WORD] == _MAGIC:
                    return
        finally:
            os.close(fd)
        raise LabError(f"{path} is no ledger of this version; take the lab down, then up again")

    @classmethod
    def open(
        cls,
        path: Path,
        cores: float,
        mhz: float,
        share_cores: Mapping[str, float] | None = None,
    ) -> Ledger:
        """The ledger of a host; it is made if there is none, else has these figures from now on.

        Args:
            path: the file.
            cores: the host's cores.
            mhz: the clock of each, in MHz, at the lab's scale.
            share_cores: how many of them all workers of a share may use together, as in
                {"vmotion": 1}; a share that isn't named may use all.

        Raises:
            ValueError: a figure is not above 0, or there is no such share.
            LabError: the file is something else.
            OSError: it can't be made.
        """
        share_cores = share_cores or {}
        if unknown := sorted(set(share_cores) - set(SHARES)):
            raise ValueError(f"no share of a host's CPU is called {unknown[0]!r}")
        if min(cores, mhz, *share_cores.values()) <= 0:
            raise ValueError(f"a host of {cores} cores of {mhz} MHz, {share_cores} to its shares")
        _create(path)
        ledger = cls(path)
        words, core_hz = ledger._words, mhz * 1e6
        words[_CORE_HZ], words[_HOST_HZ] = round(core_hz), round(cores * core_hz)
        for number, share in enumerate(SHARES):
            most = min(share_cores.get(share, cores), cores)
            words[_share(number) + _SHARE_HZ] = round(most * core_hz)
        return ledger

    @classmethod
    def join(cls, path: Path) -> Ledger:
        """The ledger that another process has opened.

        Raises:
            FileNotFoundError: there is none.
            LabError: the file is something else.
        """
        return cls(path)

    def worker(self, share: str, cores: float = 1) -> Worker:
        """One that draws on a share: a thread of a process, which runs on so many cores at most.

        Raises:
            ValueError: there is no such share.
            OSError: the file is gone.
        """
        return Worker(self._path, self._words, _share(SHARES.index(share)), cores)

    def used(self) -> dict[str, int]:
        """How many cycles each share has been charged since the ledger was made."""
        words = self._words
        return {share: int(words[_share(n) + _SHARE_USED]) for n, share in enumerate(SHARES)}


class Worker:
    """One core's worth of work (or of several), charged by one thread. A context manager.

    It holds a descriptor of its own, as whoever shares one shares the lock too: a process that
    is forked must make its own.
    """

    def __init__(self, path: Path, words: memoryview, share: int, cores: float) -> None:
        """See `Ledger.worker`."""
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._words, self._share, self._cores = words, share, cores
        self._clock_ns = 0
        self._owed = 0.0

    def charge(self, cycles: float) -> int:
        """Charge work that has been done.

        Returns:
            How long to wait before going on with more, in nanoseconds; 0: not at all.
        """
        # The kernel lets go of the lock of a process that was killed. Each word of a charge that
        # it had begun is whole; what it has not come to is work that nobody is charged for.
        words, share = self._words, self._share
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            clocks, wait_ns = book(
                (self._clock_ns, words[share + _SHARE_CLOCK], words[_HOST_CLOCK]),
                time.monotonic_ns(),
                cycles,
                (self._cores * words[_CORE_HZ], words[share + _SHARE_HZ], words[_HOST_HZ]),
            )
            self._clock_ns, words[share + _SHARE_CLOCK], words[_HOST_CLOCK] = clocks
            words[share + _SHARE_USED] += round(cycles)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return wait_ns

    def settle(self, cycles: float = 0) -> int:
        """Charge work of any size slice by slice: so much more, and what is left of before.

        Returns:
            How long to wait, in nanoseconds, before asking again; 0: all is charged, go on.
        """
        self._owed += cycles
        while self._owed > 0:
            piece = min(self._owed, self._words[_CORE_HZ] * SLICE_NS / 1e9)
            self._owed -= piece
            if wait_ns := self.charge(piece):
                return wait_ns
        return 0

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _share(number: int) -> int:
    return _SHARES_FROM + number * _SHARE_WORDS


def _create(path: Path) -> None:
    """Make the file, with no figures yet, if there is none."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not os.fstat(fd).st_size:
            os.pwrite(fd, _MAGIC.to_bytes(8, "little").ljust(_SIZE_BYTES, b"\0"), 0)
    finally:
        os.close(fd)
