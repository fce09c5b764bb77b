"""The stun: the guest stands still at its source while its last pages are sent."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import MigrationError
from testbed.guest import layout
from testbed.guest.missing import lacks_missing_pages
from testbed.migration.convergence import over_limit, stun_ns
from testbed.migration.phase import Phase
from testbed.migration.stream import PeerError
from testbed.migration.wire import Kind
from testbed.report.result import Switchover

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from testbed.guest.machine import Guest
    from testbed.guest.tracking import DirtyTracker
    from testbed.migration.observation import Observation
    from testbed.migration.outgoing import Outgoing
    from testbed.migration.specification import MigrationSpec
    from testbed.migration.swap_bitmap import Leaving


@dataclass(frozen=True, slots=True)
class Stunned:
    """The guest stands still, and the destination has all that it waits for."""

    began_ns: int
    loaded_ns: int
    pages: int
    missing: NDArray[np.int64] | None
    """Those that it will fetch once it runs; None: it has all."""
    report: Switchover


def check_early(guest: Guest, spec: MigrationSpec) -> None:
    """Prove that the guest can run without all of its pages, if it may come to that.

    Raises:
        MigrationError: it can't.
    """
    lacks = spec.may_resume_early and lacks_missing_pages(guest.spec, guest.tracking)
    if lacks:
        raise MigrationError(f"{guest.spec.name} can't be resumed before all pages came: {lacks}")


def stun(
    guest: Guest,
    spec: MigrationSpec,
    out: Outgoing,
    seen: Observation,
    *,
    dirty: NDArray[np.int64],
    tracker: DirtyTracker,
    swap: Leaving,
    early: bool,
    cut: Callable[[], None],
    uncut: Callable[[], None],
) -> Stunned:
    """Suspend, find the last pages, send them; a failure undoes it, and the guest runs on.

    Args:
        guest: running.
        spec: the migration.
        out: its streams.
        seen: its iterations.
        dirty: pages found dirty already, ascending.
        tracker: finds the rest.
        swap: what the destination knows of the swap file.
        early: only the guest's own state is sent, and the rest once it runs.
        cut: at the first instant.
        uncut: if the guest runs on here.

    Raises:
        PeerError, WireError: the destination has gone, gave up, or is stuck; or a vCPU has died.
        MigrationError: a vCPU did not stop, or more pages are left than the downtime limit allows.
    """
    number = seen.next_iteration
    state = guest.state_pages()
    first_data = layout.first_data_page(guest.spec.vcpus)
    if early:
        out.expect(dirty[dirty >= first_data], number)
    estimated_ns = stun_ns(seen.iterations, 0 if early else len(dirty), spec)
    with ExitStack() as undo:
        began_ns = time.monotonic_ns()
        undo.callback(uncut)
        cut()
        undo.callback(guest.resume)
        guest.suspend()
        # vCPUs beat in the state pages without marking them, so these always go along.
        last = _merged(state, dirty, tracker.collect())
        if dead := guest.dead_vcpus():  # what it had written is not known
            raise PeerError(f"vCPU {dead} died as it was stopped")
        missing = None
        if early:
            state_end = int(np.searchsorted(last, first_data))
            last, missing = last[:state_end], last[state_end:]
        if over := over_limit(seen.iterations, len(last), spec):
            raise MigrationError(f"{len(last)} pages left would make {over}")
        suspended_ns = time.monotonic_ns()
        last = swap.last(last, out.first)
        seen.sample(Phase.SWITCHOVER, out.acknowledged_bytes(), len(last))
        out.switch_over(last, number, _announced(spec, last, missing))
        loaded_ns = time.monotonic_ns()
        undo.pop_all()
    report = Switchover(
        estimated_ns=estimated_ns,
        suspend_ns=suspended_ns - began_ns,
        copy_ns=loaded_ns - suspended_ns,
        bitmap=out.bitmap_encoding,
        bitmap_bytes=out.bitmap_bytes,
        bitmap_ns=out.bitmap_ns,
        pages_after_resume=0 if missing is None else len(missing),
        swapped_pages=swap.swapped_pages,
        swap_bitmap_bytes=swap.bitmap_bytes,
    )
    return Stunned(began_ns, loaded_ns, len(last), missing, report)


def _announced(
    spec: MigrationSpec, last: NDArray[np.int64], missing: NDArray[np.int64] | None
) -> tuple[Kind, NDArray[np.int64]] | None:
    if missing is not None:
        return Kind.MISSING, missing
    return (Kind.BITMAP, last) if spec.bitmap else None


def _merged(*pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """All of them, ascending, each once (numpy's own union1d loads modules when first called)."""
    every = np.sort(np.concatenate(pages))
    first = np.ones(len(every), np.bool_)
    np.not_equal(every[1:], every[:-1], out=first[1:])
    return every[first]
