"""Counters of a running lab's links and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import htb, netns
from testbed.kernel.channels import Channels
from testbed.kernel.facts import ClassFact, read_classes
from testbed.kernel.links import Link, read_links
from testbed.kernel.netlink import RefusedError
from testbed.plan.policies import Shape
from testbed.plan.steps import Bridge, KernelStep, Veth

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Observation:
    """A link at an instant: `link.counters` is set; `shape` is None if it has no HTB class."""

    netns: str
    link: Link
    shape: ClassFact | None


def observe(steps: Sequence[KernelStep]) -> dict[str, Observation]:
    """The links of a running lab's steps, by key (`link NETNS/NAME`); absent ones are left out.

    Raises:
        KernelError: a namespace is gone, or the kernel does not answer.
    """
    wanted: dict[str, set[str]] = {}
    shaped = {(step.netns, step.dev) for step in steps if isinstance(step, Shape)}
    for step in steps:
        if isinstance(step, Bridge):
            wanted.setdefault(step.netns, set()).add(step.name)
        elif isinstance(step, Veth):
            for end in (step.a, step.b):
                wanted.setdefault(end.netns, set()).add(end.name)

    def away() -> dict[str, Observation]:
        found = {}
        with Channels() as channels:
            for where, names in wanted.items():
                for link in _links(channels, where):
                    if link.name in names:
                        has_shape = (where, link.name) in shaped
                        shape = _shape(channels, where, link) if has_shape else None
                        found[f"link {where}/{link.name}"] = Observation(where, link, shape)
        return found

    return netns.in_thread(lambda _: away())


def _links(channels: Channels, where: str) -> list[Link]:
    try:
        return list(read_links(channels.socket(where), with_counters=True).values())
    except (OSError, RefusedError) as error:
        raise KernelError("read the links of", where, str(error)) from error


def _shape(channels: Channels, where: str, link: Link) -> ClassFact | None:
    try:
        classes = read_classes(channels.socket(where), link.index)
    except (OSError, RefusedError) as error:
        raise KernelError("read the shape of", f"{link.name} in {where}", str(error)) from error
    return next((fact for fact in classes if fact.handle == htb.HTB_CLASS), None)
