"""Brings a lab up: all of it, or nothing."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testbed.errors import LabError
from testbed.kernel import builder, netns
from testbed.lab.change import same_but_for_text
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import take_down
from testbed.lab.journal import Journal
from testbed.lab.launch import kill_supervisor, start_supervisor, supervisor_of
from testbed.lab.planning import plan_here
from testbed.lab.privilege import require_root
from testbed.plan.names import owner_of
from testbed.plan.plan import kernel_steps, lab_steps, step_to_json
from testbed.plan.steps import PowerOn

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.plan.plan import Plan
    from testbed.plan.steps import Step
    from testbed.topology.model import Topology

POWER_ON_DEADLINE_S = 180.0
BATCH = 100


@dataclass(frozen=True, slots=True)
class Brought:
    """What `up` did.

    `built`, nothing (`unchanged`), a new supervisor (`restarted`), or VMs that had failed
    powered on again (`revived`). `cleaned`: what an earlier, broken `up` had left was taken
    down first. `mended`: VMs that ran on, whose NIC processes had ended.
    """

    outcome: Literal["built", "unchanged", "restarted", "revived"]
    plan: Plan
    cleaned: bool = False
    powered_on: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()


def up(
    topology: Topology,
    *,
    before: Callable[[Step], None] | None = None,
    batch: int = BATCH,
) -> Brought:
    """Build the lab of a topology, or see that it stands.

    Args:
        topology: validated.
        before: called before each step, for progress and for tests that let a step fail.
        batch: how many messages the kernel, or steps the supervisor, gets at a time.

    Raises:
        PrivilegeError: not root.
        LabError: the lab runs with another topology, or its supervisor or a VM did not start.
        KernelError: the kernel refused a step. Nothing is left of a lab that failed.
    """
    require_root(f"up {topology.file}")
    directory = LabDirectory(topology.name)
    with directory.locked() as lock_fd:
        cleaned = False
        if directory.exists():
            journal = Journal.read(directory.journal)
            if journal.state == "up":
                return _see_that_it_stands(directory, journal, topology, lock_fd)
            if journal.state == "changing" and supervisor_of(directory) is not None:
                raise LabError(
                    f"lab {topology.name!r} is being changed, or a VM of it is being migrated;"
                    " wait for it to end, then retry"
                )
            take_down(directory)
            cleaned = True
        elif strays := [n for n in netns.names() if owner_of(n) == topology.name]:
            raise LabError(
                f"namespace {strays[0]} carries this lab's name, but there is no journal of it;"
                f" 'testbed down {topology.name}' removes it if it is yours, or rename the lab"
            )
        plan = plan_here(topology)
        file = str(Path(topology.file).absolute())  # a hint that names it holds anywhere
        journal = Journal("building", file, topology.text, plan, {}, traces=dict(topology.traces))
        with ExitStack() as undo:
            directory.create()
            undo.callback(take_down, directory)
            journal.write(directory.journal)
            builder.build(kernel_steps(plan.steps), batch=batch, before=before)
            _start(directory, journal, lock_fd, before, batch)
            undo.pop_all()
        return Brought("built", plan, cleaned)


def _start(
    directory: LabDirectory,
    journal: Journal,
    lock_fd: int,
    before: Callable[[Step], None] | None = None,
    batch: int = BATCH,
) -> None:
    """Start the supervisor, power on the VMs, and note that the lab is up."""
    start_supervisor(directory, lock_fd)
    _make(directory, journal, before, batch)
    request(directory, {"command": "commit"}, timeout_s=POWER_ON_DEADLINE_S)


def _make(
    directory: LabDirectory,
    journal: Journal,
    before: Callable[[Step], None] | None = None,
    batch: int = BATCH,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Have the supervisor make what isn't there; the VMs powered on, and those mended."""
    powered_on: list[str] = []
    mended: list[str] = []
    steps = lab_steps(journal.plan.steps)
    for first in range(0, len(steps), batch):
        some = steps[first : first + batch]
        if before is not None:
            for step in some:
                before(step)
        answer = request(
            directory,
            {"command": "make", "steps": [step_to_json(step) for step in some]},
            timeout_s=POWER_ON_DEADLINE_S,
        )
        mended += answer["mended"]
        powered_on += [
            step.vm
            for step, made in zip(some, answer["made"], strict=True)
            if made and isinstance(step, PowerOn)
        ]
    return tuple(powered_on), tuple(mended)


def _see_that_it_stands(
    directory: LabDirectory, journal: Journal, topology: Topology, lock_fd: int
) -> Brought:
    """`up` for a lab that is up: nothing to do, or its supervisor to start again.

    Raises:
        LabError: it runs with another topology.
    """
    running = journal.topology()
    if not same_but_for_text(running, topology):
        raise LabError(
            f"lab {topology.name!r} is running with another topology ({journal.topology_file});"
            f" 'testbed apply {topology.file}' changes it, 'testbed plan {topology.file}' shows how"
        )
    plan = journal.plan
    if supervisor_of(directory) is not None:
        powered_on, mended = _make(directory, journal)
        outcome: Literal["revived", "unchanged"] = "revived" if powered_on else "unchanged"
        return Brought(outcome, plan, powered_on=powered_on, mended=mended)
    with ExitStack() as undo:
        undo.callback(kill_supervisor, directory)
        _start(directory, journal, lock_fd)
        undo.pop_all()
    return Brought("restarted", plan)
