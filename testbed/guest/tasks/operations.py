"""How operations are counted in a workload's record: commits, I/Os, requests answered."""

from __future__ import annotations

from testbed.guest.layout import (
    LAST_AT,
    LATENCY,
    LATENCY_BUCKETS,
    LATENCY_MAX,
    LATENCY_SUM,
    OPERATIONS,
    TASK_LONGEST_GAP,
)


def latency_bucket(latency_ns: int) -> int:
    """The histogram's bucket of an operation that took so long (layout.py)."""
    return min(max((latency_ns // 1000).bit_length() - 1, 0), LATENCY_BUCKETS - 1)


def count_operation(record: memoryview, latency_ns: int, done_ns: int) -> None:
    """Count one that was done at `done_ns`, and the gap since the one before."""
    record[OPERATIONS] += 1
    record[LATENCY_SUM] += latency_ns
    record[LATENCY_MAX] = max(record[LATENCY_MAX], latency_ns)
    record[LATENCY + latency_bucket(latency_ns)] += 1
    gap_ns = done_ns - (record[LAST_AT] or done_ns)
    record[TASK_LONGEST_GAP] = max(record[TASK_LONGEST_GAP], gap_ns)
    record[LAST_AT] = done_ns
