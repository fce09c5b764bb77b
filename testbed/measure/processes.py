"""Programs inside a network namespace that are proven gone when their block ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

KILLED_WITHIN_S = 10


@contextmanager
def running(
    netns_path: Path | str, command: Sequence[str], output: int, errors: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `command` in a namespace; killed at the block's end if it hasn't ended by then.

    nsenter and setpriv (util-linux, in Debian's base) replace themselves by the program, so
    the process id is the program's own, and nothing runs between fork and exec, which isn't
    safe in a process with threads. The program dies with the thread that started it, even
    by kill -9. `output` and `errors` are file descriptors for what it prints.

    Raises:
        MeasurementError: a program is not installed.
    """
    prefix = ["nsenter", f"--net={netns_path}", "--", "setpriv", "--pdeathsig", "KILL", "--"]
    try:
        process = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise MeasurementError(
            f"run {command[0]}: nsenter is not installed; apt-get install util-linux"
        ) from error
    pidfd = os.pidfd_open(process.pid)
    try:
        yield process
    finally:
        try:
            if not exited_within(pidfd, 0):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not exited_within(pidfd, KILLED_WITHIN_S):
                raise MeasurementError(
                    f"end {command[0]} (process {process.pid}): it outlived SIGKILL by "
                    f"{KILLED_WITHIN_S} s; see /proc/{process.pid}/stack"
                )
            process.wait()
        finally:
            os.close(pidfd)


def exited_within(pidfd: int, seconds: float) -> bool:
    """Whether the process has ended, waiting at most this long."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
