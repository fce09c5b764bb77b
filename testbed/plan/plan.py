"""A plan: the ordered steps of a lab, as data, text and JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from testbed.guest.workloads import from_json as workload_from_json
from testbed.plan.policies import Chain, Delay, DelayLine, Netem, Offloads, Shape, TrafficClass
from testbed.plan.stages import stage_from_json, stage_to_json
from testbed.plan.steps import (
    Address,
    Bridge,
    DatastoreDirectory,
    End,
    Netns,
    PowerOn,
    Route,
    Rule,
    Step,
    Veth,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.plan.steps import KernelStep, LabStep


@dataclass(frozen=True, slots=True)
class Plan:
    """What a lab consists of, each step after all that it needs."""

    lab: str
    steps: tuple[Step, ...]

    def by_key(self) -> dict[str, Step]:
        """The steps by the objects that they make."""
        return {step.key: step for step in self.steps}

    def counts(self) -> dict[str, int]:
        """How many steps of each kind."""
        return dict(Counter(step.kind for step in self.steps))


def lab_steps(steps: Iterable[Step]) -> list[LabStep]:
    """Those that the lab's supervisor carries out, in order."""
    return [step for step in steps if isinstance(step, DelayLine | DatastoreDirectory | PowerOn)]


def kernel_steps(steps: Iterable[Step]) -> list[KernelStep]:
    """Those that the kernel carries out, in order."""
    return [
        step for step in steps if not isinstance(step, DelayLine | DatastoreDirectory | PowerOn)
    ]


def _types() -> dict[str, type[Step]]:
    kinds: tuple[type[Step], ...] = (
        Netns, Bridge, Veth, Address, Route, Rule, Shape, Chain, Offloads, Netem, DelayLine,
        DatastoreDirectory, PowerOn,
    )  # fmt: skip
    return {kind.kind: kind for kind in kinds}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def step_to_json(step: Step) -> dict[str, Any]:
    """A step as a JSON object; `kind` names its type."""
    data = {"kind": step.kind, **asdict(step)}
    if isinstance(step, Chain):
        for direction, stages in (("incoming", step.incoming), ("outgoing", step.outgoing)):
            data[direction] = [stage_to_json(stage) for stage in stages]
    return data


def step_from_json(data: dict[str, Any]) -> Step:
    """The step that `step_to_json` wrote.

    Raises:
        KeyError, TypeError: it is not of that form.
    """
    fields = {name: _frozen(value) for name, value in data.items() if name != "kind"}
    match data["kind"]:
        case Veth.kind:
            return Veth(End(**fields["a"]), End(**fields["b"]))
        case Shape.kind:
            fields["classes"] = tuple(TrafficClass(**one) for one in fields["classes"])
        case DelayLine.kind:
            fields["delays"] = tuple(Delay(**one) for one in fields["delays"])
        case Chain.kind:
            for direction in ("incoming", "outgoing"):
                fields[direction] = tuple(map(stage_from_json, data[direction]))
        case PowerOn.kind:
            fields["workloads"] = tuple(map(workload_from_json, data["workloads"]))
    return _types()[data["kind"]](**fields)


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan as a JSON object."""
    return {"lab": plan.lab, "steps": [step_to_json(step) for step in plan.steps]}


def from_json(data: dict[str, Any]) -> Plan:
    """The plan that `to_json` wrote.

    Raises:
        KeyError, TypeError: it is not of that form.
    """
    return Plan(data["lab"], tuple(step_from_json(step) for step in data["steps"]))
