"""What a guest is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

WorkloadKind: TypeAlias = Literal["idle", "uniform", "sequential"]


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A VM, at the lab's scale.

    `dirty_rate_bytes_per_s` is asked of all vCPUs together; `workload.py` says what it means.
    """

    name: str
    memory_bytes: int
    vcpus: int
    workload: WorkloadKind = "idle"
    dirty_rate_bytes_per_s: int = 0
    working_set_bytes: int = 0
    seed: int = 0
