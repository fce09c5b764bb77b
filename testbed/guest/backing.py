"""Which memory a guest gets, and which tracking goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import MigrationError
from testbed.guest import layout
from testbed.guest.memory import GuestMemory
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.swap import OvercommittedMemory
from testbed.guest.synthetic import SyntheticMemory
from testbed.guest.tracking import probe

if TYPE_CHECKING:
    from testbed.guest.specification import GuestSpec
    from testbed.guest.tracking import TrackingName

_REAL_DATA_PAGES = 64


def open_memory(spec: GuestSpec) -> GuestMemory | SyntheticMemory | OvercommittedMemory:
    """The memory that this VM asks for: all zero, to be closed by the caller.

    Raises:
        ValueError: what is asked for contradicts itself.
        KernelError: the machine has not that much memory, disk, or large pages.
    """
    overcommitted = is_overcommitted(spec)
    if spec.page_bytes != SMALL_PAGE_BYTES and (overcommitted or spec.backing == "synthetic"):
        raise ValueError(f"{spec.name}: only real memory that is all there has large pages")
    if spec.backing == "synthetic":
        if overcommitted:
            raise ValueError(f"{spec.name}: synthetic memory takes no room, so none is swapped")
        real = layout.first_data_page(spec.vcpus) + _REAL_DATA_PAGES
        return SyntheticMemory(
            spec.name, spec.memory_bytes, min(real, spec.memory_bytes // SMALL_PAGE_BYTES)
        )
    if spec.resident_bytes is not None and overcommitted:
        return OvercommittedMemory(
            spec.name, spec.memory_bytes, spec.resident_bytes, spec.directory
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
        ValueError: the tracking asked for can't see this VM's writes.
        KernelError: the machine has none.
    """
    if spec.backing == "real":
        return asked or probe()[0]
    if asked not in {None, "bytemap"}:
        raise ValueError(f"{spec.name}: writes to its memory are tracked by a byte map only")
    return "bytemap"


def check_movable(spec: GuestSpec) -> None:
    """Prove that all of the VM's pages can be sent.

    Raises:
        MigrationError: some are in its swap file.
    """
    if is_overcommitted(spec):
        raise MigrationError(
            f"pages of {spec.name} are in its swap file, which is not migrated; "
            "reserve all of its memory"
        )


def told(spec: GuestSpec, tracking: TrackingName) -> str:
    """The tracking, as a result tells it."""
    if spec.backing == "synthetic":
        return f"{tracking} (synthetic memory: what tracking costs is not claimed)"
    return tracking
