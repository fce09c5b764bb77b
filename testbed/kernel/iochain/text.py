"""A port's IOChain for people: its stages in order, with what each dropped; its program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.kernel.iochain import compiling
from testbed.kernel.iochain.cells import DIRECTIONS, INCOMING
from testbed.kernel.iochain.disassembler import disassemble
from testbed.kernel.iochain.headers import FUNCTIONS
from testbed.kernel.iochain.stages import PORT, SWITCH
from testbed.plan.policy_text import describe_stage
from testbed.plan.stages import Carry, Leave, Mirror, Team, Untag

if TYPE_CHECKING:
    from testbed.kernel.iochain.cells import ChainCounters
    from testbed.plan.policies import Chain

WAYS = ("in", "out")


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage as `testbed iochain` shows it.

    `functions` are the kernel's that it calls. `drops` are of all stages of its kind in this
    direction, in packets. With `filters` they are no losses: a bridge offers a frame to all its
    ports, and these stages choose.
    """

    way: str
    kind: str
    text: str
    functions: tuple[str, ...]
    drops: int
    filters: bool


@dataclass(frozen=True, slots=True)
class WayRow:
    """One direction of a chain: what passed it, after its stages.

    A direction without a program isn't `counted`: frames just pass.
    """

    way: str
    counted: bool
    packets: int
    bytes: int
    stages: tuple[StageRow, ...]


def describe_chain(step: Chain, counters: ChainCounters) -> tuple[WayRow, WayRow]:
    """Both directions of a chain, in what the port receives, out what it sends."""
    incoming, outgoing = (_way(step, direction, counters) for direction in DIRECTIONS)
    return incoming, outgoing


def _way(step: Chain, direction: int, counters: ChainCounters) -> WayRow:
    counted = counters.incoming if direction == INCOMING else counters.outgoing
    rows = tuple(
        StageRow(
            way=WAYS[direction],
            kind=stage.kind,
            text=describe_stage(stage),
            functions=compiling.functions_of(stage, direction),
            drops=counted.drops.get(stage.kind, 0),
            filters=direction != INCOMING and isinstance(stage, Team | Leave | Untag | Carry),
        )
        for stage in compiling.stages_of(step, direction)
    )
    has = direction in compiling.directions_of(step)
    return WayRow(WAYS[direction], has, counted.packets, counted.bytes, rows)


def list_program(step: Chain, direction: int) -> list[str]:
    """The instructions of one direction as text; descriptors and ifindexes read 0."""
    mirrors = (one for one in compiling.stages_of(step, direction) if isinstance(one, Mirror))
    values = {PORT: 0, SWITCH: 0, **{one.dev: 0 for one in mirrors}}
    return disassemble(compiling.program(step, direction, values), FUNCTIONS)
