"""What a guest has done, counted for people: vCPUs' time, workloads' operations, pages."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from testbed.guest.layout import VCPU_WORDS
from testbed.guest.memory import count_zero_pages
from testbed.guest.swap import OvercommittedMemory

if TYPE_CHECKING:
    from testbed.guest.machine import Guest

_SUMS = ("pages_written", "operations", "bytes", "latency_sum_ns")
_MOST = ("failed", "latency_max_ns")


def count(guest: Guest, *, whole: bool) -> dict[str, Any]:
    """As JSON; `whole` counts zero pages too, which reads all of the memory."""
    vcpus, tasks = guest.counters(), guest.task_counters()
    workloads = [
        {name: int(rows[name].sum()) for name in _SUMS}
        | {name: int(rows[name].max()) for name in _MOST}
        for rows in tasks
    ]
    memory = guest.memory
    swap = asdict(memory.swap_counters()) if isinstance(memory, OvercommittedMemory) else None
    return {
        "steps": int(vcpus["steps"].sum()),
        "pages_written": int(tasks["pages_written"].sum()),
        "resumes": int(vcpus["resumes"].max()),
        "vcpu_pids": list(guest.pids),
        "vcpus": [{name: int(row[name]) for name in VCPU_WORDS} for row in vcpus],
        "workloads": workloads,
        "tracking": guest.tracking,
        "zero_pages": count_zero_pages(memory) if whole and not guest.missing_pages else None,
        "swap": swap,
    }
