"""What a move of a VM makes, alters and takes away in the kernel: plans compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.lab.planning import plan_here
from testbed.plan.difference import difference
from testbed.plan.plan import kernel_steps
from testbed.plan.policies import Chain
from testbed.plan.steps import PowerOn, Veth

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from testbed.plan.steps import KernelStep, Step
    from testbed.topology.model import Topology


@dataclass(frozen=True, slots=True)
class Rewiring:
    """`made` is there before the VM moves, `gone` until it has; `step` is the VM as it is then.

    `altered` are changed in place when it has moved: the chains that mirror to its port, where it
    is promiscuous.
    """

    made: tuple[KernelStep, ...]
    gone: tuple[KernelStep, ...]
    altered: tuple[tuple[Step, Step], ...]
    step: PowerOn


def rewiring(
    topology: Topology,
    placement: Mapping[str, str],
    vm: str,
    to: str,
    standing: Iterable[KernelStep] = (),
) -> Rewiring:
    """What moves a VM from where `placement` has it, which may change while it moves.

    Args:
        topology: the lab's, as it is now.
        placement: where VMs stand now, if not where the topology says.
        vm: which one moves.
        to: its new host.
        standing: what was made for it earlier.

    Raises:
        LabError: that host lacks its port group.
    """
    old = plan_here(topology, placement)
    new = plan_here(topology, {**placement, vm: to})
    change = difference(old, new)
    before, after = old.by_key(), new.by_key()
    redone = [step.key for step in kernel_steps(change.do) if step.key in before]
    outdated = [
        (step, after[step.key])
        for step in standing
        if step.key in after and after[step.key] != step
    ]
    altered = (*change.alter, *((before[key], after[key]) for key in redone), *outdated)
    return Rewiring(
        made=tuple(step for step in kernel_steps(change.do) if step.key not in before),
        gone=tuple(step for step in kernel_steps(change.undo) if step.key not in after),
        # Whether a port's address is known depends on where its VM is, which may be on its way.
        altered=tuple((_unlisted(one), _unlisted(other)) for one, other in altered),
        step=next(s for s in change.do if isinstance(s, PowerOn) and s.vm == vm),
    )


def _unlisted(step: Step) -> Step:
    return replace(step, listed=False) if isinstance(step, Chain) else step


def closed(step: KernelStep) -> KernelStep:
    """A step of the VM's new port as it is made: closed, and its address not known there yet."""
    if isinstance(step, Veth):
        return replace(step, b=replace(step.b, forwarding=False))
    return replace(step, listed=False) if isinstance(step, Chain) else step


def wires(steps: Iterable[KernelStep]) -> list[Veth]:
    """The VM's wires among steps, in the order of its NICs."""
    return [step for step in steps if isinstance(step, Veth)]
