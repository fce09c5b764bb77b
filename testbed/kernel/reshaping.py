"""A link's HTB made to be what a shape says, whatever it was, with as little as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import htb, htb_facts
from testbed.kernel.netlink import RefusedError, Socket
from testbed.kernel.refusals import describe, kernel_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.kernel.htb import HtbQdisc
    from testbed.plan.policies import Shape


_TRAIN_BYTES = 65536
_LONGEST_DEBT_S = 0.1


def reshape(socket: Socket, step: Shape, index: int) -> None:
    """Change, add and remove classes in place; what is queued in the others stays.

    Only with another default class the qdisc is made anew: HTB can't change that, and what is
    queued in it is lost. So is a class alone that gets a reservation and had next to none: HTB
    keeps the time that it owes, which at its old rate is 13 s for one train of segments (at
    39 kbit/s), and so long it wouldn't have its new rate.

    Args:
        socket: one of the shape's namespace.
        step: what it is to be.
        index: the link's ifindex.

    Raises:
        KernelError: the kernel refused.
    """
    try:
        qdiscs = {
            parent: fact
            for (link, parent), fact in htb_facts.read_qdiscs(socket).items()
            if link == index and fact.default is not None
        }
        facts = htb_facts.read_classes(socket, index)
    except (OSError, RefusedError) as error:
        kind, target = describe(step)
        raise KernelError(f"read {kind}", target, str(error)) from error
    in_debt = {
        fact.handle: fact.rate
        for fact in facts
        if fact.rate * _LONGEST_DEBT_S < _TRAIN_BYTES and fact.handle not in qdiscs
    }
    wanted = htb.qdiscs_of(step)
    gone = set(qdiscs) - {one.parent for one in wanted}
    sent = [htb.delete_qdisc(index, parent) for parent in gone]
    anew = False
    for one in wanted:
        there = {fact.handle for fact in facts if fact.handle >> 16 == one.major}
        have = qdiscs.get(one.parent)
        if anew or have is None or have.default != one.default:
            if have is not None and not anew:
                sent.append(htb.delete_qdisc(index, one.parent))
            sent += htb.create(one, index)
            anew = True  # what is inside went with it
        else:
            sent += _changes(one, there, in_debt, index)
    sent += htb.queues(step, index)
    refusal = socket.request(sent)
    if refusal is not None:
        raise kernel_error(step, refusal, "alter")


def _changes(
    qdisc: HtbQdisc, there: set[int], in_debt: dict[int, int], index: int
) -> Iterator[bytearray]:
    """What makes of the classes `there` (handles) those of the qdisc.

    `in_debt` has the rates of leaves that may owe HTB a long time.
    """
    yield from (htb.rate_class(one, index) for one in qdisc.classes if one.handle not in there)
    for handle in sorted(there - {one.handle for one in qdisc.classes}):
        yield htb.delete_class(handle, index)
    # Changed last: HTB takes a quantum for a leaf only, which the root may have become just now.
    for one in qdisc.classes:
        owed = one.rate_bytes_per_s > in_debt.get(one.handle, one.rate_bytes_per_s)
        if owed and not one.is_root:
            yield htb.delete_class(one.handle, index)
            yield htb.rate_class(one, index)
        elif one.handle in there:
            yield htb.rate_class(one, index, change=True)
