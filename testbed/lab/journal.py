"""The journal: what a lab consists of, on disk before it is in the kernel."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from testbed import topology as topologies
from testbed.errors import LabError
from testbed.plan import plan as plans

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.plan.plan import Plan
    from testbed.plan.steps import KernelStep
    from testbed.topology.model import Topology

State = Literal["building", "up", "changing", "broken"]
VERSION = 5


@dataclass(frozen=True, slots=True)
class Moving:
    """A migration under way: where its VM goes, and the steps that were made for it there."""

    to: str
    made: tuple[KernelStep, ...]


@dataclass(frozen=True, slots=True)
class Journal:
    """A lab as it was last written down.

    `plan` is what stands while the state is `up`; in any other state it is all that may
    stand, with what the migrations under way have made (`moves`, by their VMs). `placement` holds
    the hosts of the VMs that have moved from the file's, `links` what has been changed on links
    since (`link_change.LinkChange` as JSON), `workloads` what VMs have been switched to
    (`guest.workloads` as JSON), `traces` as `topology.loads` takes them. `maintenance` are hosts
    that take no VMs, and whether they are powered off.
    """

    state: State
    topology_file: str
    topology_text: str
    plan: Plan
    placement: dict[str, str]
    links: tuple[dict[str, Any], ...] = ()
    workloads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    traces: dict[str, str] = field(default_factory=dict)
    moves: dict[str, Moving] = field(default_factory=dict)
    maintenance: dict[str, bool] = field(default_factory=dict)

    def topology(self) -> Topology:
        """The topology as its file says, without what has been changed since."""
        return topologies.loads(self.topology_text, self.topology_file, self.traces)

    def in_state(self, state: State) -> Journal:
        """The same lab in another state."""
        return replace(self, state=state)

    def write(self, path: Path) -> None:
        """Replace the file in one step, and see it on disk before returning."""
        data = {
            "version": VERSION,
            "state": self.state,
            "topology_file": self.topology_file,
            "topology_text": self.topology_text,
            "placement": self.placement,
            "links": list(self.links),
            "workloads": self.workloads,
            "traces": self.traces,
            "moves": {vm: _moving_to_json(move) for vm, move in self.moves.items()},
            "maintenance": self.maintenance,
            "plan": plans.to_json(self.plan),
        }
        new = path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> Journal:
        """The journal in a file.

        Raises:
            LabError: it can't be read as one.
        """
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}, not {VERSION}")
            return cls(
                state=data["state"],
                topology_file=data["topology_file"],
                topology_text=data["topology_text"],
                plan=plans.from_json(data["plan"]),
                placement=data["placement"],
                links=tuple(data["links"]),
                workloads=data["workloads"],
                traces=data["traces"],
                maintenance=data["maintenance"],
                moves={vm: _moving_from_json(move) for vm, move in data["moves"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            lab = path.parent.name
            raise LabError(
                f"read the journal {path}: {error};"
                f" 'testbed down {lab}' removes what carries the lab's name"
            ) from error


def _moving_to_json(move: Moving) -> dict[str, Any]:
    return {"to": move.to, "made": [plans.step_to_json(step) for step in move.made]}


def _moving_from_json(data: dict[str, Any]) -> Moving:
    made = plans.kernel_steps(plans.step_from_json(step) for step in data["made"])
    return Moving(data["to"], tuple(made))
