"""The file of a VM's iometer workload: made before it is used, gone with the workload."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from testbed.guest.iometer_file import iometer_path, prepare_file
from testbed.guest.workloads import Iometer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.guest.specification import GuestSpec


def prepare(spec: GuestSpec) -> None:
    """Make the file that the VM's workloads need, if any.

    Raises:
        KernelError: the datastore is full, or it can't be made there; none is left.
    """
    wanted = _wanted(spec)
    if wanted is not None:
        prepare_file(spec.directory, spec.name, wanted[0])


@contextmanager
def exchanged(old: GuestSpec, new: GuestSpec) -> Iterator[None]:
    """See that the file is there for the workloads of `new`, and goes if these need none.

    One of the same size and blocks stays. If the block fails, all is as it was before.

    Raises:
        KernelError: as for `prepare`, with the room of the old file still taken.
    """
    if _wanted(old) == _wanted(new):
        yield
        return
    path = iometer_path(new.directory, new.name)
    aside = path.with_suffix(".old")
    with suppress(FileNotFoundError):
        path.rename(aside)
    try:
        prepare(new)
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            aside.rename(path)
        raise
    aside.unlink(missing_ok=True)


def _wanted(spec: GuestSpec) -> tuple[int, int] | None:
    """The size of the file and of its blocks."""
    found = (one for one in spec.workloads if isinstance(one, Iometer))
    return next(((one.file_bytes, one.block_bytes) for one in found), None)
