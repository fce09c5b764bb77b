"""Whole migrations of running guests, between processes of two namespaces."""

from __future__ import annotations

import multiprocessing
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from _pair import A, B, Pair, child

from testbed.errors import MigrationError
from testbed.guest.machine import Guest
from testbed.migration.destination import Destination
from testbed.migration.phase import MigrationFailed
from testbed.migration.source import migrate

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.migration.specification import MigrationSpec
    from testbed.report.result import EngineReport

_READY_S = 60


def move(
    names: Pair, spec: MigrationSpec, wait: Callable[[Guest], None]
) -> tuple[EngineReport, str]:
    """Power a guest on, wait until it is as it should be, and migrate it.

    Returns:
        What was measured, and why the migration failed; empty: it did not.

    Raises:
        RuntimeError: it failed before anything was measured.
    """
    ready = multiprocessing.get_context("fork").Event()
    told, tell = multiprocessing.Pipe(duplex=False)

    def destination() -> None:
        names.enter(B)
        # Why it failed, if it does, the source tells.
        with suppress(MigrationError), Destination(spec) as there:
            ready.set()
            there.receive()

    def source() -> None:
        names.enter(A)
        with Guest.power_on(spec.guest, tracking="pagemap") as guest:
            wait(guest)
            if not ready.wait(_READY_S):
                raise RuntimeError("the destination does not listen")
            try:
                tell.send((migrate(guest, spec), ""))
            except MigrationFailed as error:
                tell.send((error.measured, str(error)))

    with closing(told), child(destination), child(source):
        tell.close()
        report: EngineReport | None
        report, failure = told.recv()
    if report is None:
        raise RuntimeError(failure)
    return report, failure
