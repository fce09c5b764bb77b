"""The cables between physical switches: no loops, and who is joined to whom in which VLAN."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from testbed.topology.ranges import holds, trunk

if TYPE_CHECKING:
    from testbed.topology.draft import Draft
    from testbed.topology.policy import Ranges
    from testbed.topology.problems import Path


class Groups:
    """Switches that are joined, as a union-find."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        """The one that stands for all that are joined with it."""
        parent = self._parent
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    def join(self, a: str, b: str) -> None:
        """Make the groups of both one."""
        self._parent[self.root(a)] = self.root(b)


@dataclass(slots=True)
class Cables:
    """Who is cabled to whom, without the links that would close a loop.

    `sure` is False when a link has a mistake, so that a cable may only seem to be missing.
    """

    sure: bool
    neighbours: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    groups: Groups = field(default_factory=Groups)
    _numbers: dict[frozenset[str], int] = field(default_factory=dict)
    _vlans: dict[int, Ranges | None] = field(default_factory=dict)
    _by_vlan: dict[int, Groups] = field(default_factory=dict)

    def lay(self, number: int, a: str, b: str, vlans: Ranges | None) -> None:
        """Add the link of this number."""
        self.groups.join(a, b)
        self.neighbours[a].append(b)
        self.neighbours[b].append(a)
        self._numbers[frozenset((a, b))] = number
        self._vlans[number] = vlans

    def way(self, start: str, goal: str) -> list[str]:
        """The switches from start to goal, which are joined."""
        before: dict[str, str] = {start: start}
        waiting = deque([start])
        while waiting and goal not in before:
            here = waiting.popleft()
            for there in self.neighbours.get(here, ()):
                if there not in before:
                    before[there] = here
                    waiting.append(there)
        way = [goal]
        while way[-1] != start:
            way.append(before[way[-1]])
        return way[::-1]

    def links(self, way: list[str]) -> list[int]:
        """The links along a way."""
        return [self._numbers[frozenset(pair)] for pair in pairwise(way)]

    def in_vlan(self, vlan: int) -> Groups:
        """Switches that are joined for the frames of a VLAN (0: untagged)."""
        found = self._by_vlan.get(vlan)
        if found is None:
            if all(vlans is None for vlans in self._vlans.values()):
                return self.groups
            found = self._by_vlan[vlan] = Groups()
            for pair, number in self._numbers.items():
                if holds(self._vlans[number], vlan):
                    found.join(*pair)
        return found

    def without(self, way: list[str], vlan: int) -> int | None:
        """The first link along a way that doesn't carry a VLAN."""
        return next((n for n in self.links(way) if not holds(self._vlans[n], vlan)), None)


def lay_cables(draft: Draft) -> Cables:
    """The links as cables; loops, and links given twice, are reported and left out."""
    cables = Cables(sure=not {"links", "switches"} & draft.incomplete)
    given: dict[frozenset[str], int] = {}
    for number, link in enumerate(draft.file.links):
        path: Path = ("links", number, "between")
        if len(link.between) != 2 or None in link.between:
            cables.sure = False
            continue
        a, b = (end or "" for end in link.between)
        cables.sure &= a != b and a in draft.file.switches and b in draft.file.switches
        cables.sure &= not draft.is_broken("links", number)
        first = given.setdefault(frozenset((a, b)), number)
        if a == b:
            message = f"the link joins {a} to itself"
            draft.problems.add(path, message, "name two different switches")
        elif first != number:
            line = draft.problems.line(("links", first))
            draft.problems.add(
                path,
                f"a link between {a} and {b} stands in line {line} already",
                "keep one of the two: for more bandwidth raise its rate",
            )
        elif cables.groups.root(a) == cables.groups.root(b):
            way = cables.way(a, b)
            links = ", ".join(f"links[{n}]" for n in sorted([*cables.links(way), number])[:8])
            draft.problems.add(
                path,
                f"{a} - {b} closes a loop with {' - '.join(way[:8])} ({links})",
                "remove one of these links: physical switches run no spanning tree here",
            )
        else:
            unsure = draft.is_broken("links", number)
            cables.lay(number, a, b, None if unsure else trunk(link.vlans or None))
    return cables
