"""The file on the VM's datastore that an Iometer workload reads and writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from testbed.errors import KernelError
from testbed.guest.aio import open_direct
from testbed.units import format_size


def iometer_path(directory: str, name: str) -> Path:
    """Where it is; `directory` is the VM's place on the datastore."""
    return Path(directory) / f"{name}.iometer"


def prepare_file(directory: str, name: str, file_bytes: int) -> bool:
    """Make it anew, all of its room taken, nothing written.

    Returns:
        Whether its file system has O_DIRECT; if not, its I/O goes through the kernel's cache.

    Raises:
        KernelError: the disk is full, or it can't be made there; none is left.
    """
    path = iometer_path(directory, name)
    attempt, target = "allocate", f"{format_size(file_bytes)} for {path}"
    remedy = "give the workload a smaller file, or the datastore more room"
    free_bytes = 0
    try:
        path.unlink(missing_ok=True)
        free_bytes = shutil.disk_usage(directory).free
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, file_bytes)
        finally:
            os.close(fd)
        fd, direct = open_direct(str(path))
        os.close(fd)
    except OSError as error:
        path.unlink(missing_ok=True)
        cause = f"{error.strerror} ({format_size(free_bytes)} are free)"
        raise KernelError(attempt, target, cause, remedy) from error
    return direct
