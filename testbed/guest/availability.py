"""Whether this machine has the memory that a guest asks for."""

from __future__ import annotations

from pathlib import Path

from testbed.errors import KernelError
from testbed.units import format_size


def check_available(name: str, size_bytes: int) -> None:
    """Prove that the machine has so much memory: populating more would kill some other process.

    Raises:
        KernelError: it hasn't.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available_bytes = int(line.split()[1]) * 1024
            if size_bytes > available_bytes:
                cause = f"{format_size(available_bytes)} are available"
                raise no_memory(name, size_bytes, cause)


def no_memory(name: str, size_bytes: int, cause: str) -> KernelError:
    """The error of a machine that hasn't so much memory."""
    remedy = "give the VM less memory, set `scale`, or use `backing: synthetic`"
    return KernelError("allocate", f"{format_size(size_bytes)} for VM {name}", cause, remedy)
