"""HTB and netem as the kernel has them, beside what the steps say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.kernel import htb, htb_facts
from testbed.kernel.delay import netem
from testbed.kernel.refusals import differs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testbed.kernel.htb import HtbClass
    from testbed.kernel.htb_facts import ClassFact, QdiscFact
    from testbed.kernel.netlink import Socket
    from testbed.plan.policies import Netem, Shape


def compare_shapes(socket: Socket, steps: Sequence[Shape], indexes: Mapping[str, int]) -> None:
    """Compare the shapes of one namespace, every class of theirs.

    Args:
        socket: one of that namespace.
        steps: the shapes.
        indexes: the ifindexes of its links by name.

    Raises:
        KernelError: something is missing or differs.
        OSError, RefusedError: the kernel does not answer.
    """
    qdiscs = htb_facts.read_qdiscs(socket) if steps else {}
    for step in steps:
        index = _index(step, indexes)
        for wanted in htb.qdiscs_of(step):
            have = qdiscs.get((index, wanted.parent))
            default = have.default if have else None
            if default != wanted.default:
                what = f"HTB default class of {step.dev}"
                found = "no HTB" if default is None else f"{default:#x}"
                raise differs(step, what, f"{wanted.default:#x}", found)
        _compare_classes(step, htb_facts.read_classes(socket, index))
        _compare_queues(step, index, qdiscs)


def _compare_queues(step: Shape, index: int, qdiscs: Mapping[tuple[int, int], QdiscFact]) -> None:
    for leaf in htb.leaves_of(step) if step.queue_bytes is not None else ():
        queue = qdiscs.get((index, leaf))
        limit = queue.limit if queue and queue.kind == "bfifo" else None
        if limit != step.queue_bytes:
            what = f"queue of class {_name(leaf)} in bytes"
            raise differs(step, what, step.queue_bytes, limit or "another kind of queue")


def compare_netems(socket: Socket, steps: Sequence[Netem], indexes: Mapping[str, int]) -> None:
    """Compare the delays of one namespace; arguments and errors as of `compare_shapes`."""
    for step in steps:
        fact = netem.read(socket, _index(step, indexes))
        if fact is None:
            raise differs(step, f"qdisc of {step.dev}", "netem", "another")
        for what, want, have in (
            ("delay in ns", step.delay_ns, fact.delay_ns),
            ("jitter in ns", step.jitter_ns, fact.jitter_ns),
            ("limit in packets", step.limit_packets, fact.limit_packets),
            ("rate in bytes/s", netem.ORDERED_RATE_BYTES_PER_S, fact.rate_bytes_per_s),
            ("loss, copies and disorder", False, not fact.harmless),
        ):
            if want != have:
                raise differs(step, what, want, have)


def _index(step: Shape | Netem, indexes: Mapping[str, int]) -> int:
    index = indexes.get(step.dev)
    if index is None:
        raise differs(step, f"link {step.dev}", "one", "none of that name")
    return index


def _compare_classes(step: Shape, facts: Sequence[ClassFact]) -> None:
    classes, found = htb.classes_of(step), {fact.handle: fact for fact in facts}
    wanted = sorted(one.handle for one in classes)
    if wanted != sorted(found):
        names = [", ".join(map(_name, sorted(handles))) for handles in (wanted, found)]
        raise differs(step, f"HTB classes of {step.dev}", names[0], names[1] or "none")
    for one in classes:
        is_leaf = not one.is_root or len(step.classes) == 0
        _compare_class(step, one, found[one.handle], is_leaf=is_leaf)


def _compare_class(step: Shape, one: HtbClass, fact: ClassFact, *, is_leaf: bool) -> None:
    name = "" if len(step.classes) == 0 else f" of class {_name(one.handle)}"
    if not step.lends_idle and one.handle == htb.ROOT_CLASS:
        # Whoever runs the lab takes idle reservations off it.
        rate, ceil = min(one.rate_bytes_per_s, fact.rate), min(one.ceil_bytes_per_s, fact.ceil)
        one = replace(one, rate_bytes_per_s=rate, ceil_bytes_per_s=ceil)
    for what, want, have in (
        ("parent", htb.TC_ROOT if one.is_root else one.parent_handle, fact.parent),
        ("rate in bytes/s", one.rate_bytes_per_s, fact.rate),
        ("ceil in bytes/s", one.ceil_bytes_per_s, fact.ceil),
        ("burst in ticks of 64 ns", one.burst_ticks, fact.burst),
        ("cburst in ticks of 64 ns", one.cburst_ticks, fact.cburst),
        # HTB takes turns among leaves alone, and ignores a change of an inner class's quantum.
        ("quantum in bytes", one.quantum_bytes if is_leaf else fact.quantum, fact.quantum),
    ):
        if want != have:
            raise differs(step, f"{what}{name}", want, have)


def _name(handle: int) -> str:
    return f"{handle >> 16:x}:{handle & 0xFFFF:x}"
