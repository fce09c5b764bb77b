"""What is put on a wire's ends before they come up: qdiscs and IOChains.

On a link that is up the kernel waits a grace period for each, and frames would pass without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from testbed.kernel import htb
from testbed.kernel.delay import netem
from testbed.plan.policies import Chain, Netem, Shape
from testbed.plan.steps import Veth

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from testbed.plan.steps import KernelStep

Fitting: TypeAlias = Shape | Netem | Chain


class Fittings:
    """Those of a build's steps, each handed out once: with its wire, or else in its turn."""

    def __init__(self, steps: Iterable[KernelStep]) -> None:
        self._by_link: dict[tuple[str, str], list[Fitting]] = {}
        self._done: set[str] = set()
        self._wires: set[str] = set()
        for step in steps:
            if isinstance(step, Shape | Netem | Chain):
                self._by_link.setdefault((step.netns, step.dev), []).append(step)

    def due(self, chunk: Sequence[KernelStep]) -> list[Fitting]:
        """What to put on now that the wires of `chunk` are there, down, and its own of it.

        A chain that mirrors to a wire to come waits for its turn.
        """
        wires = [step for step in chunk if isinstance(step, Veth)]
        self._wires.update(wire.key for wire in wires)
        ends = [(end.netns, end.name) for wire in wires for end in (wire.a, wire.b)]
        found = [step for end in ends for step in self._by_link.get(end, ()) if self._ready(step)]
        found += [step for step in chunk if isinstance(step, Shape | Netem | Chain)]
        new = {step.key: step for step in found if step.key not in self._done}
        self._done.update(new)
        return list(new.values())

    def _ready(self, step: Fitting) -> bool:
        return not isinstance(step, Chain) or self._wires.issuperset(step.mirrors)


def qdiscs(step: Shape | Netem, index: int) -> list[bytearray]:
    """The messages that put a qdisc on a link; the first one makes it."""
    if isinstance(step, Shape):
        return htb.shape(step, index)
    return [netem.qdisc(index, step.delay_ns, step.jitter_ns, step.limit_packets)]
