"""Which memory a guest gets, and which tracking goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.guest import layout
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.swap import OvercommittedMemory
from testbed.guest.synthetic import SyntheticMemory
from testbed.guest.tracking import probe
from testbed.units import format_size

if TYPE_CHECKING:
    from testbed.guest.specification import GuestSpec
    from testbed.guest.tracking import TrackingName

_REAL_DATA_PAGES = 64


def open_memory(
    spec: GuestSpec, *, arriving: bool = False
) -> GuestMemory | SyntheticMemory | OvercommittedMemory:
    """The memory that this VM asks for: all zero, to be closed by the caller.

    If the VM is only `arriving` its swap file, if any, is its source's still.

    Raises:
        InputError: what is asked for contradicts itself.
        ValueError: sizes are no whole pages.
        KernelError: the machine has not that much memory, disk, or large pages.
    """
    overcommitted = is_overcommitted(spec)
    first_data_page = layout.first_data_page(spec.vcpus)
    if spec.page_bytes != SMALL_PAGE_BYTES and (overcommitted or spec.backing == "synthetic"):
        raise InputError(
            f"VM {spec.name}: large pages are for real memory that is all there; "
            f"leave `page_size` out, or reserve all of it"
        )
    if spec.backing == "synthetic":
        if overcommitted:
            raise InputError(
                f"VM {spec.name}: synthetic memory takes no room, so none of it is swapped; "
                f"reserve all of it"
            )
        real = first_data_page + _REAL_DATA_PAGES
        return SyntheticMemory(
            spec.name, spec.memory_bytes, min(real, spec.memory_bytes // SMALL_PAGE_BYTES)
        )
    if spec.resident_bytes is not None and overcommitted:
        if spec.resident_bytes < first_data_page * SMALL_PAGE_BYTES:
            raise InputError(
                f"VM {spec.name}: the state of {spec.vcpus} vCPUs can't be swapped; reserve "
                f"{format_size(first_data_page * SMALL_PAGE_BYTES)} at least"
            )
        return OvercommittedMemory(
            spec.name, spec.memory_bytes, spec.resident_bytes, spec.directory, arriving=arriving
        )
    return GuestMemory(spec.name, spec.memory_bytes, spec.page_bytes)


def is_overcommitted(spec: GuestSpec) -> bool:
    """Whether some of the VM's pages are in its swap file."""
    return spec.resident_bytes is not None and spec.resident_bytes < spec.memory_bytes


def tracking_for(spec: GuestSpec, asked: TrackingName | None = None) -> TrackingName:
    """The tracking that this VM is migrated with.

    Synthetic pages are in no page table: they are noted in a byte map. A page that is swapped
    leaves the page tables, which PAGEMAP_SCAN tells as a write.

    Raises:
        InputError: the tracking asked for can't see this VM's writes.
        KernelError: the machine has none.
    """
    if spec.backing == "real":
        return asked or probe()[0]
    if asked not in {None, "bytemap"}:
        raise InputError(
            f"VM {spec.name}: writes to synthetic memory are tracked by the byte map only"
        )
    return "bytemap"


def told(spec: GuestSpec, tracking: TrackingName) -> str:
    """The tracking, as a result tells it."""
    if spec.backing == "synthetic":
        return f"{tracking} (synthetic memory: what tracking costs is not claimed)"
    return tracking
