"""What a guest is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from testbed.guest.workloads import from_json

if TYPE_CHECKING:
    from testbed.guest.workloads import Workload

Backing: TypeAlias = Literal["real", "synthetic"]
SMALL_PAGE_BYTES = 4096
LARGE_PAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A VM, at the lab's scale.

    `in_use_bytes` of its memory are filled when it is powered on, the rest is zero; None: all,
    or nothing if it has an `Allocate`. `resident_bytes` of it are in memory, the rest in a swap
    file in `directory`, its place on the datastore; None: all. `affinity` are the machine's CPUs
    that its vCPUs may run on; empty: any.
    """

    name: str
    memory_bytes: int
    vcpus: int
    workloads: tuple[Workload, ...] = ()
    seed: int = 0
    in_use_bytes: int | None = None
    backing: Backing = "real"
    page_bytes: int = SMALL_PAGE_BYTES
    resident_bytes: int | None = None
    affinity: tuple[int, ...] = ()
    directory: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GuestSpec:
        """What `to_json` made.

        Raises:
            TypeError, ValueError: it is none.
        """
        workloads = tuple(from_json(one) for one in data["workloads"])
        return cls(**{**data, "workloads": workloads, "affinity": tuple(data.get("affinity", ()))})
