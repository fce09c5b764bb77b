"""What changes a running lab from one plan to another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.plan.policies import Chain, DelayLine, Netem, Offloads, Shape
from testbed.plan.steps import Bridge, DatastoreDirectory, End, PowerOn, Step, Veth

if TYPE_CHECKING:
    from testbed.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Difference:
    """Steps to undo (last made first), to alter in place (old, new), and to do, in that order."""

    undo: tuple[Step, ...]
    alter: tuple[tuple[Step, Step], ...]
    do: tuple[Step, ...]

    def __bool__(self) -> bool:
        return bool(self.undo or self.alter or self.do)


def alterable(old: Step, new: Step) -> bool:
    """Whether the kernel takes the change without remaking the object and what stands on it.

    A link's rates, chain, delay and offloads, a wire's and a bridge's MTU; another MAC, bridge
    port or queue length is another object. A datastore that more hosts mount stays where it is. A
    VM takes other workloads while it runs.
    """
    match old, new:
        case (
            (DatastoreDirectory() | Shape() | Chain() | Offloads() | Netem() | DelayLine()),
            _,
        ):
            return type(old) is type(new)
        case PowerOn(), PowerOn():
            return replace(old, workloads=()) == replace(new, workloads=())
        case Bridge(), Bridge():
            return (old.mac, old.remembers) == (new.mac, new.remembers)
        case Veth(), Veth():
            return (_fixed(old.a), _fixed(old.b)) == (_fixed(new.a), _fixed(new.b))
        case _:
            return False


def _fixed(end: End) -> End:
    """What of a wire's end can't be altered."""
    return replace(end, mtu=0, alias="", rps_cpu=0)


def _with_dependents(keys: set[str], steps: tuple[Step, ...]) -> set[str]:
    """`keys` and all that needs them; steps stand after what they need, so one pass is enough."""
    grown = set(keys)
    for step in steps:
        if grown.intersection(step.needs):
            grown.add(step.key)
    return grown


def difference(old: Plan, new: Plan) -> Difference:
    """What makes a lab of plan `old` one of plan `new`.

    An object that goes, or that can't be altered in place, is undone with everything that
    needs it, and what the new plan still wants of that is done again.
    """
    before, after = old.by_key(), new.by_key()
    changed = {
        key
        for key, step in before.items()
        if key not in after or (after[key] != step and not alterable(step, after[key]))
    }
    undone = _with_dependents(changed, old.steps)
    # A step that is redone takes along what needs it in the new plan, if it stands already.
    while True:
        redone = _with_dependents(
            {key for key in after if key not in before or key in undone}, new.steps
        )
        more = _with_dependents(undone | (redone & set(before)), old.steps)
        if more == undone:
            break
        undone = more
    return Difference(
        undo=tuple(step for step in reversed(old.steps) if step.key in undone),
        alter=tuple(
            (step, after[step.key])
            for step in old.steps
            if step.key not in undone and after[step.key] != step
        ),
        do=tuple(step for step in new.steps if step.key not in before or step.key in undone),
    )


def powered_off(change: Difference) -> tuple[str, ...]:
    """VMs that are running and will be powered off (and perhaps on again) by the change."""
    return tuple(step.vm for step in change.undo if isinstance(step, PowerOn))
