"""Starts a lab's supervisor and waits until it answers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.lab.identity import ProcessIdentity

if TYPE_CHECKING:
    from testbed.lab.directory import LabDirectory

READY_DEADLINE_S = 30.0
END_DEADLINE_S = 10.0


def start_supervisor(directory: LabDirectory, lock_fd: int) -> None:
    """Start the supervisor in a session of its own; returns when its socket listens.

    Raises:
        LabError: it ended or was not ready in time; nothing of it is left.
    """
    program = (sys.executable, "-P", "-m", "testbed.lab.supervisor")
    read_end, write_end = os.pipe()
    try:
        with directory.log.open("ab") as log:
            subprocess.run(
                [*program, directory.name, str(write_end), str(lock_fd)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # numpy's threads can't be forked
                pass_fds=(write_end, lock_fd),
                start_new_session=True,
                check=False,
            )  # it forks the supervisor and ends
        os.close(write_end)
        write_end = -1
        if select.select([read_end], [], [], READY_DEADLINE_S)[0] and os.read(read_end, 64):
            return
        words = directory.log.read_text(encoding="utf-8", errors="replace").strip()
        last = words.splitlines()[-1] if words else "it said nothing"
        raise LabError(f"start the supervisor of lab {directory.name!r}: {last}")
    except BaseException:
        kill_supervisor(directory)
        raise
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


def supervisor_of(directory: LabDirectory) -> ProcessIdentity | None:
    """The lab's supervisor, if it runs."""
    identity = ProcessIdentity.read(directory.identity)
    return identity if identity is not None and identity.alive() else None


def kill_supervisor(directory: LabDirectory) -> bool:
    """Kill the lab's supervisor; its children die with it. Returns whether there was one.

    Raises:
        LabError: it survives SIGKILL.
    """
    identity = ProcessIdentity.read(directory.identity)
    pidfd = identity.open() if identity is not None else None
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        deadline = time.monotonic() + END_DEADLINE_S
        while not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if time.monotonic() > deadline:
                raise LabError(f"supervisor process {identity} survives SIGKILL")
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
    return True
