"""A lab's place on disk: /run/testbed/NAME, and the lock that one command at a time holds."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import InputError, LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_DIRECTORY = Path("/run/testbed")
"""Gone after a reboot, as the namespaces are; kept when empty, as /run/netns is."""


@dataclass(frozen=True, slots=True)
class LabDirectory:
    """The files of one lab; `name` is the lab's."""

    name: str
    root: Path = RUN_DIRECTORY

    def __post_init__(self) -> None:
        """Refuse what is no lab's name: it becomes a path that is removed.

        Raises:
            InputError: it isn't one.
        """
        if not _is_name(self.name):
            raise InputError(
                f"{self.name[:40]!r} is no name of a lab; 'testbed status' lists the labs"
            )

    @property
    def path(self) -> Path:
        """The directory itself, readable by root only."""
        return self.root / self.name

    @property
    def journal(self) -> Path:
        """What was planned, written before the first object is made."""
        return self.path / "journal.json"

    @property
    def socket(self) -> Path:
        """The supervisor's control socket."""
        return self.path / "supervisor.sock"

    @property
    def log(self) -> Path:
        """What the supervisor and its children wrote."""
        return self.path / "supervisor.log"

    @property
    def identity(self) -> Path:
        """The supervisor's pid and start time."""
        return self.path / "supervisor.pid"

    @property
    def datastores(self) -> Path:
        """One directory for each shared datastore."""
        return self.path / "datastores"

    @property
    def lock_file(self) -> Path:
        """Beside the directory, so that it can be held while the directory goes."""
        return self.root / f"{self.name}.lock"

    def exists(self) -> bool:
        """Whether there is such a lab, whole or not."""
        return self.journal.exists()

    def create(self) -> None:
        """Make the directory.

        Raises:
            PermissionError: not root.
        """
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)

    def remove(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def locked(self, deadline_s: float = 30.0) -> Iterator[int]:
        """Hold the lab's lock; yields its descriptor (a child that inherits it holds it too).

        Raises:
            LabError: another command held it for `deadline_s` seconds.
        """
        end = time.monotonic() + deadline_s
        while (descriptor := self._try_lock()) is None:
            if time.monotonic() > end:
                raise LabError(
                    f"another command is changing lab {self.name!r}; wait for it to end, then retry"
                )
            time.sleep(0.02)  # flock has no deadline of its own
        try:
            yield descriptor
        finally:
            if not self.path.exists():
                self.lock_file.unlink(missing_ok=True)
            os.close(descriptor)

    def _try_lock(self) -> int | None:
        """The locked descriptor, or None while another holds it or has just unlinked it."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), self.lock_file.stat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        return None


def labs(root: Path = RUN_DIRECTORY) -> tuple[str, ...]:
    """The names of the labs on this machine, whole or not."""
    if not root.exists():
        return ()
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and _is_name(p.name)))


def _is_name(name: str) -> bool:
    """Whether a topology may have this name: 31 characters, lower case, no dot."""
    return re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,30}", name) is not None
