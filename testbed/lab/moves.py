"""The migrations under way, as the journal names them: what each has made, and whom it locks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.lab.planning import plan_here
from testbed.plan.plan import Plan

if TYPE_CHECKING:
    from testbed.lab.estate import Estate
    from testbed.lab.journal import Moving


def begin(estate: Estate, vm: str, moving: Moving) -> None:
    """Note a migration before anything is made for it."""
    _note(estate, estate.journal.placement, {**estate.journal.moves, vm: moving})


def end(estate: Estate, vm: str, *, arrived: bool) -> None:
    """Note that a migration is over: what was made for it is the lab's own, or gone."""
    moves = dict(estate.journal.moves)
    moving = moves.pop(vm)
    placement = estate.journal.placement
    _note(estate, {**placement, vm: moving.to} if arrived else placement, moves)
    follow_all(estate)


def _note(estate: Estate, placement: dict[str, str], moves: dict[str, Moving]) -> None:
    # Made anew from the topology: links may have been changed since a migration began.
    plan = plan_here(estate.topology, placement)
    made = [step for moving in moves.values() for step in moving.made]
    estate.write_journal(
        replace(
            estate.journal,
            state="changing" if moves else "up",
            plan=Plan(plan.lab, (*plan.steps, *made)),
            placement=placement,
            moves=moves,
        )
    )


def follow_all(estate: Estate) -> None:
    """Follow the links and reservations of the lab, its migrations' new ports as well."""
    now, moves = estate.journal.placement, estate.journal.moves
    arriving = [{**now, **{vm: moving.to for vm, moving in moves.items()}}] if moves else []
    estate.follow(now, *arriving)


def require_unmoved(estate: Estate, vm: str, attempt: str) -> None:
    """See that a VM is not being migrated: its configuration is locked then (facts row 42).

    Raises:
        LabError: it is.
    """
    moving = estate.journal.moves.get(vm)
    if moving is not None:
        raise LabError(
            f"{attempt}: {vm} is being migrated to {moving.to}, and its configuration is locked"
            " until it has arrived; wait for that, or end it with Ctrl-C"
        )
