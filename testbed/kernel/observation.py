"""Counters of a running lab's links and shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import htb, netns
from testbed.kernel.channels import Channels
from testbed.kernel.htb_facts import ClassFact, QdiscFact, by_minor, read_classes, read_qdiscs
from testbed.kernel.links import Link, read_links
from testbed.kernel.netlink import RefusedError
from testbed.plan.policies import Shape
from testbed.plan.steps import Bridge, KernelStep, Veth

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Observation:
    """A link at an instant: `link.counters` is set; `shape` is None if it has no HTB.

    `shape` is the root class, through which all passes; `classes` are the classes by
    minor number. `qdisc` counts what was dropped on the way to them, too.
    """

    netns: str
    link: Link
    shape: ClassFact | None
    classes: dict[int, ClassFact] = field(default_factory=dict)
    qdisc: QdiscFact | None = None


def observe(steps: Sequence[KernelStep]) -> dict[str, Observation]:
    """The links of a running lab's steps, by key (`link NETNS/NAME`); absent ones are left out.

    Raises:
        KernelError: a namespace is gone, or the kernel does not answer.
    """
    wanted: dict[str, set[str]] = {}
    shaped: dict[str, set[str]] = {}
    for step in steps:
        if isinstance(step, Shape):
            shaped.setdefault(step.netns, set()).add(step.dev)
        elif isinstance(step, Bridge):
            wanted.setdefault(step.netns, set()).add(step.name)
        elif isinstance(step, Veth):
            for end in (step.a, step.b):
                wanted.setdefault(end.netns, set()).add(end.name)

    def away() -> dict[str, Observation]:
        found = {}
        with Channels() as channels:
            for where, names in wanted.items():
                for seen in _observed(channels, where, names, shaped.get(where, set())):
                    found[f"link {where}/{seen.link.name}"] = seen
        return found

    return netns.in_thread(lambda _: away())


def _observed(
    channels: Channels, where: str, names: set[str], shaped: set[str]
) -> Iterator[Observation]:
    links = _links(channels, where)
    qdiscs = _qdiscs(channels, where) if shaped else {}
    for link in links:
        if link.name in names:
            classes = _classes(channels, where, link) if link.name in shaped else {}
            root = classes.get(htb.ROOT_MINOR)
            yield Observation(where, link, root, classes, qdiscs.get((link.index, htb.TC_ROOT)))


def _links(channels: Channels, where: str) -> list[Link]:
    try:
        return list(read_links(channels.socket(where), with_counters=True).values())
    except (OSError, RefusedError) as error:
        raise KernelError("read the links of", where, str(error)) from error


def _qdiscs(channels: Channels, where: str) -> dict[tuple[int, int], QdiscFact]:
    try:
        return read_qdiscs(channels.socket(where))
    except (OSError, RefusedError) as error:
        raise KernelError("read the qdiscs of", where, str(error)) from error


def _classes(channels: Channels, where: str, link: Link) -> dict[int, ClassFact]:
    try:
        facts = read_classes(channels.socket(where), link.index)
    except (OSError, RefusedError) as error:
        raise KernelError("read the shape of", f"{link.name} in {where}", str(error)) from error
    return by_minor(facts)
