"""A link's HTB made to be what a shape says, whatever it was, with as little as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import htb, htb_facts
from testbed.kernel.netlink import RefusedError, Socket
from testbed.kernel.refusals import describe, kernel_error

if TYPE_CHECKING:
    from testbed.plan.policies import Shape


def reshape(socket: Socket, step: Shape, index: int) -> None:
    """Change, add and remove classes in place; what is queued in the others stays.

    Only another default class, or a class that moves below another one, has the whole of it
    made anew: HTB can't change those, and what is queued is lost.

    Args:
        socket: one of the shape's namespace.
        step: what it is to be.
        index: the link's ifindex.

    Raises:
        KernelError: the kernel refused.
    """
    try:
        qdisc = htb_facts.read_root_qdiscs(socket).get(index)
        facts = {fact.handle: fact for fact in htb_facts.read_classes(socket, index)}
    except (OSError, RefusedError) as error:
        kind, target = describe(step)
        raise KernelError(f"read {kind}", target, str(error)) from error
    parents = {one.handle: one.parent for one in htb.classes_of(step)}
    there = {
        handle: 0 if fact.parent == htb.TC_ROOT else fact.parent & 0xFFFF
        for handle, fact in facts.items()
    }
    is_htb = qdisc is not None and qdisc.kind == "htb"
    same_default = is_htb and qdisc is not None and qdisc.default == step.default
    moved = any(parents.get(handle, parent) != parent for handle, parent in there.items())
    if same_default and not moved:
        sent = _changes(step, index, there)
    else:
        sent = [htb.delete_qdisc(index)] if is_htb else []
        sent += htb.shape(step, index)
    refusal = socket.request(sent)
    if refusal is not None:
        raise kernel_error(step, refusal, "alter")


def _changes(step: Shape, index: int, there: dict[int, int]) -> list[bytearray]:
    """`there` are the handles of the link's classes and the minors of their parents."""
    classes = htb.classes_of(step)
    sent = [htb.rate_class(one, index) for one in classes if one.handle not in there]
    going = set(there) - {one.handle for one in classes}
    while going:  # those without a class below them first
        above = {htb.HTB_QDISC | there[handle] for handle in going}
        last = going - above
        sent += [htb.delete_class(handle, index) for handle in sorted(last)]
        going -= last
    # Changed last: HTB takes a quantum for a leaf only, which one may have become just now.
    sent += [htb.rate_class(one, index, change=True) for one in classes if one.handle in there]
    return sent
