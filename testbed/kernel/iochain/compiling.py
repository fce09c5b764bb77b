"""A port's IOChain compiled: the stages of one direction become one eBPF program.

A program passes a frame with TC_ACT_UNSPEC, so that later filters (captures) see it too.
"""

from __future__ import annotations

import dataclasses
import functools
from socket import htons
from typing import TYPE_CHECKING, Any

from testbed.kernel.iochain import marking as chain_marking
from testbed.kernel.iochain import queues as chain_queues
from testbed.kernel.iochain import stages as chain_stages
from testbed.kernel.iochain.assembler import (
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    Code,
    Label,
    Line,
    assemble,
    atomic_add,
    called,
    compute,
    jump,
    jump_if,
    leave,
    load,
    set_cell,
    store,
)
from testbed.kernel.iochain.cells import INCOMING, OUTGOING, dropped_at, passed_at
from testbed.kernel.iochain.headers import (
    FRAME,
    FUNCTIONS,
    GSO_SEGMENTS,
    IPV6,
    LENGTH,
    MARK,
    PROTOCOL,
    Labels,
    Scope,
)
from testbed.kernel.iochain.stages import PORT
from testbed.kernel.messages import packed_mac
from testbed.plan import stages
from testbed.plan.stages import Classify, ForgedTransmits, MacChanges, Mirror, Team

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from testbed.plan.policies import Chain
    from testbed.plan.stages import Stage

# Ethernet, IPv4 and TCP with timestamps, which Linux always sends: what other trains differ in
# is below 1 % of a full packet, and not worth reading their headers for.
_TRAIN_HEADER_BYTES, _IPV6_MORE_BYTES = 14 + 20 + 32, 20
TC_ACT_UNSPEC, TC_ACT_SHOT = -1, 2
PROGRAM_NAMES = {INCOMING: "iochain_in", OUTGOING: "iochain_out"}


def stages_of(step: Chain, direction: int) -> tuple[Stage, ...]:
    """The stages of one direction."""
    return step.incoming if direction == INCOMING else step.outgoing


def directions_of(step: Chain) -> tuple[int, ...]:
    """The directions that have a program: those with stages; of a virtual switch's port both.

    The latter's also count all that its port passes, and keep the switch's set of addresses.
    """
    return tuple(
        direction for direction in (INCOMING, OUTGOING) if step.switch or stages_of(step, direction)
    )


def program(step: Chain, direction: int, values: Mapping[str, int]) -> bytes:
    """The instructions of one direction of a port's chain.

    Args:
        step: the chain.
        direction: INCOMING or OUTGOING.
        values: descriptors of the port's map (PORT) and the switch's (SWITCH, where `Arrive`
            looks into it), and the ifindexes of the devices that `Mirror` stages send to.

    Raises:
        KeyError: a value is missing.
    """
    chain, macs = _without_macs(stages_of(step, direction))
    return compile_stages(chain, direction).link({**values, **macs})


def functions_of(stage: Stage, direction: int) -> tuple[str, ...]:
    """The kernel's functions that a stage calls, each once, in order."""
    lines = _writers()[type(stage)](stage, Scope(direction, "drop", Labels()))
    calls = (called(line) for line in lines)
    return tuple(dict.fromkeys(FUNCTIONS[number] for number in calls if number is not None))


def _without_macs(chain: tuple[Stage, ...]) -> tuple[tuple[Stage, ...], dict[str, int]]:
    """A chain with symbols for MAC addresses: many ports' differ in these alone."""
    found: list[Stage] = []
    values = {}
    for number, stage in enumerate(chain):
        if isinstance(stage, ForgedTransmits | MacChanges | Mirror):
            symbol = f"mac {number}"
            values[symbol] = int.from_bytes(packed_mac(stage.mac), "little")
            found.append(dataclasses.replace(stage, mac=symbol))
        else:
            found.append(stage)
    return tuple(found), values


@functools.lru_cache(maxsize=512)
def compile_stages(chain: tuple[Stage, ...], direction: int) -> Code:
    """Stages compiled, to be linked; symbols beside those of `program` are MAC addresses.

    Raises:
        KeyError: one of them is no stage.
    """
    return assemble(_program(chain, direction))


def _writers() -> dict[type[Stage], Callable[[Any, Scope], Iterator[Line]]]:
    """Which function writes a kind of stage."""
    return {
        stages.Tag: chain_stages.tag,
        stages.Untag: chain_stages.untag,
        stages.Carry: chain_stages.carry,
        stages.ForgedTransmits: chain_stages.forged_transmits,
        stages.MacChanges: chain_stages.mac_changes,
        stages.Mirror: chain_stages.mirror,
        stages.Marking: chain_marking.marking,
        stages.Classify: chain_stages.classify,
        stages.Team: chain_stages.team,
        stages.Arrive: chain_stages.arrive,
        stages.Leave: chain_stages.leave_by,
        stages.Queue: chain_queues.queue,
        stages.QueueByCos: chain_queues.queue_by_cos,
        stages.QueueByDscp: chain_queues.queue_by_dscp,
        stages.MaxSize: chain_queues.max_size,
        stages.Lose: chain_queues.lose,
    }


def _program(chain: tuple[Stage, ...], direction: int) -> Iterator[Line]:
    labels = Labels()
    writers = _writers()
    drops: dict[str, str] = {}
    yield compute(FRAME, "=", R1)
    if direction == INCOMING and any(isinstance(one, Classify | Team) for one in chain):
        yield from _clear_mark()  # a vmk's wire lies in one namespace: the sender's mark comes too
    for stage in chain:
        drop = drops.setdefault(stage.kind, f"drop {stage.kind}")
        yield from writers[type(stage)](stage, Scope(direction, drop, labels))
    if direction == OUTGOING and any(isinstance(one, Team) for one in chain):
        yield from _clear_mark()  # and the receiver's stack must not take it for its own
    yield from _count_passed(direction, labels)
    yield compute(R0, "=", TC_ACT_UNSPEC)
    yield leave()
    for kind, drop in drops.items():
        yield Label(drop)
        yield set_cell(R1, PORT, dropped_at(direction, kind))
        yield jump("dropped")
    if drops:
        yield Label("dropped")
        yield from _packets(labels)
        yield atomic_add(R1, 0, R2)
        yield compute(R0, "=", TC_ACT_SHOT)
        yield leave()


def _clear_mark() -> Iterator[Line]:
    yield compute(R1, "=", 0)
    yield store(4, FRAME, MARK, R1)


def _packets(labels: Labels) -> Iterator[Line]:
    """R2 is how many packets the frame is: more than one if it is a train."""
    train = labels.new("train")
    yield load(4, R2, FRAME, GSO_SEGMENTS)
    yield jump_if(R2, "!=", 0, train)
    yield compute(R2, "=", 1)
    yield Label(train)


def _count_passed(direction: int, labels: Labels) -> Iterator[Line]:
    """Count packets and bytes; a train has its headers once, each of its packets has them."""
    four, count = labels.new("ipv4"), labels.new("count")
    yield from _packets(labels)
    yield load(4, R3, FRAME, LENGTH)
    yield jump_if(R2, "==", 1, count)
    yield compute(R1, "=", R2)
    yield compute(R1, "-=", 1)
    yield compute(R4, "=", _TRAIN_HEADER_BYTES)
    yield load(4, R5, FRAME, PROTOCOL)
    yield jump_if(R5, "!=", htons(IPV6), four)
    yield compute(R4, "+=", _IPV6_MORE_BYTES)
    yield Label(four)
    yield compute(R1, "*=", R4)
    yield compute(R3, "+=", R1)
    yield Label(count)
    yield set_cell(R1, PORT, passed_at(direction))
    yield atomic_add(R1, 0, R2)
    yield atomic_add(R1, 8, R3)
