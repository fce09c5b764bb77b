"""Host patterns: `esx[01-32]` names 32 hosts, `tor-[a,b]` two switches.

A bracket holds items with commas between them: words, ranges of numbers (`01-32`, the
padding kept) or ranges of letters (`a-d`). Several brackets multiply, the last one
varying fastest. In what stands below a name that is a pattern, another pattern varies in
step: its i-th value belongs to the i-th name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

from testbed.topology.node import REFUSED, Node
from testbed.topology.problems import Enough, Path, Refusal, shown
from testbed.topology.tree import MAX_NODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.topology.problems import Problems

MAX_VALUES = 1024
SECTIONS = ("sites", "switches", "routers", "datastores", "hosts", "vms")

_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_ITEM = re.compile(r"[A-Za-z0-9_.:-]+")
_NUMBERS = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
_LETTERS = re.compile(r"([a-z])-([a-z])|([A-Z])-([A-Z])")
_HOW = "write it like esx[01-32] or tor-[a,b]"


def has_pattern(text: str) -> bool:
    """Whether a string is, or tries to be, a pattern."""
    return "[" in text or "]" in text


def expand(text: str) -> list[str]:
    """The strings that a pattern stands for, in its order; a plain string is itself.

    Raises:
        Refusal: it is no pattern, or stands for more than `MAX_VALUES` strings.
    """
    parts = _BRACKET.split(text)
    if any(has_pattern(part) for part in parts[::2]):
        raise Refusal(f"{shown(text)} has a bracket without its partner", _HOW)
    choices: list[list[str]] = []
    total = 1
    for number, part in enumerate(parts):
        choices.append(_items(part, text) if number % 2 else [part])
        total *= len(choices[-1])
        if total > MAX_VALUES:
            raise _too_many(text)
    return ["".join(chosen) for chosen in product(*choices)]


def _too_many(text: str) -> Refusal:
    return Refusal(
        f"{shown(text)} stands for more than {MAX_VALUES} values",
        f"use several patterns of at most {MAX_VALUES}",
    )


def _items(bracket: str, text: str) -> list[str]:
    values: list[str] = []
    for item in bracket.split(","):
        values += _item(item.strip(" "), text)
        if len(values) > MAX_VALUES:
            raise _too_many(text)
    return values


def _item(item: str, text: str) -> list[str]:
    if not _ITEM.fullmatch(item):
        raise Refusal(f"{shown(text)} has an empty or unusable item in a bracket", _HOW)
    numbers = _NUMBERS.fullmatch(item)
    if numbers:
        first, last = numbers.groups()
        if int(first) > int(last):
            raise Refusal(f"{shown(text)} has a range that runs backwards", _HOW)
        if int(last) - int(first) >= MAX_VALUES:
            raise _too_many(text)
        if len(first) != len(last) and "0" in (first[:1], last[:1]) and first != "0":
            raise Refusal(f"{shown(text)} has a range with unequal padding", _HOW)
        return [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    letters = _LETTERS.fullmatch(item)
    if letters:
        a, b = (group for group in letters.groups() if group)
        if a > b:
            raise Refusal(f"{shown(text)} has a range that runs backwards", _HOW)
        return [chr(code) for code in range(ord(a), ord(b) + 1)]
    return [item]


@dataclass(slots=True)
class _Body:
    """What stands below a pattern: the values of each of its own patterns, by node."""

    count: int
    label: str
    values: dict[int, Sequence[str] | None] = field(default_factory=dict)
    keys: dict[tuple[int, str], Sequence[str] | None] = field(default_factory=dict)
    varies: set[int] = field(default_factory=set)

    def instance(self, node: Node, number: int) -> Node:
        """The body for the name of this number; parts without a pattern are shared."""
        if id(node) in self.values:
            values = self.values[id(node)]
            return replace(node, value=REFUSED if values is None else values[number])
        if id(node) not in self.varies:
            return node
        if isinstance(node.value, list):
            return replace(node, value=[self.instance(child, number) for child in node.value])
        assert isinstance(node.value, dict)
        mapping: dict[str, Node] = {}
        for key, child in node.value.items():
            names = self.keys.get((id(node), key), ())
            if names is not None:
                mapping[names[number] if names else key] = self.instance(child, number)
        return replace(node, value=mapping)


class Expander:
    """Expands every pattern of a tree.

    After `expand`, `incomplete` holds the sections whose names are not all known because
    a pattern in them is wrong.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.incomplete: set[str] = set()
        self._nodes = 0
        self._values = 0

    def expand(self, root: Node) -> Node:
        """The tree with a node for every name that a pattern stands for."""
        if not isinstance(root.value, dict):
            return root
        sections = dict(root.value)
        for name, section in root.value.items():
            if name in SECTIONS and isinstance(section.value, dict):
                sections[name] = replace(section, value=self._section(name, section.value))
            elif name == "links" and isinstance(section.value, list):
                sections[name] = replace(section, value=self._links(section.value))
        return replace(root, value=sections)

    def _section(self, section: str, entries: dict[str, Node]) -> dict[str, Node]:
        expanded: dict[str, Node] = {}
        for name, node in entries.items():
            body = self._host_list(name, node) if section == "datastores" else node
            path = (section, name)
            try:
                names = self._expand(name) if has_pattern(name) else [name]
            except Refusal as refusal:
                self.problems.add_at(
                    node.key_line, node.key_column, path, refusal.message, refusal.remedy
                )
                self.incomplete.add(section)
                continue
            skip = ("hosts",) if section == "datastores" else ()
            varied = self._body(body, len(names), name if has_pattern(name) else "", path, skip)
            self._afford(body, len(names), path)
            for number, one in enumerate(names):
                if one in expanded:
                    again = f"{shown(name)} names {one} again" if one != name else f"{one} again"
                    self.problems.add_at(
                        node.key_line,
                        node.key_column,
                        path,
                        f"{again}, which line {expanded[one].key_line} already names",
                        "give every name once",
                    )
                else:
                    expanded[one] = varied.instance(body, number)
        return expanded

    def _links(self, items: list[Node]) -> list[Node]:
        expanded: list[Node] = []
        for number, item in enumerate(items):
            path: Path = ("links", number)
            label = _first_pattern(item)
            try:
                count = len(expand(label)) if label else 1
            except Refusal:
                count = 1  # reported where it stands, by _body
            varied = self._body(item, count, label, path, ())
            self._afford(item, count, path)
            expanded += [varied.instance(item, number) for number in range(count)]
        return expanded

    def _afford(self, body: Node, count: int, path: Path) -> None:
        self._nodes += body.nodes * count
        if self._nodes <= MAX_NODES:
            return
        self.problems.add_at(
            body.key_line,
            body.key_column,
            path,
            f"the lab has more than {MAX_NODES} values once its patterns are expanded",
            "describe a smaller lab",
        )
        raise Enough

    def _expand(self, text: str) -> list[str]:
        if self._values <= MAX_NODES:
            values = expand(text)
            self._values += len(values)
        if self._values > MAX_NODES:
            raise Refusal(
                f"with {shown(text)} the patterns stand for more than {MAX_NODES} values",
                "describe a smaller lab",
            )
        return values

    def _body(self, node: Node, count: int, label: str, path: Path, skip: Sequence[str]) -> _Body:
        body = _Body(count, label)
        self._survey(node, body, path, skip)
        return body

    def _survey(self, node: Node, body: _Body, path: Path, skip: Sequence[str] = ()) -> bool:
        """Find the patterns below a node; whether there are any."""
        varies = False
        if isinstance(node.value, str) and has_pattern(node.value):
            body.values[id(node)] = self._parallel(node.value, body, node.line, node.column, path)
            return True
        if isinstance(node.value, list):
            for number, child in enumerate(node.value):
                varies |= self._survey(child, body, (*path, number))
        elif isinstance(node.value, dict):
            for key, child in node.value.items():
                below = (*path, key)
                if has_pattern(key):
                    place = child.key_line, child.key_column
                    body.keys[id(node), key] = self._parallel(key, body, *place, below)
                    varies = True
                if key not in skip:
                    varies |= self._survey(child, body, below)
        if varies:
            body.varies.add(id(node))
        return varies

    def _parallel(
        self, text: str, body: _Body, line: int, column: int, path: Path
    ) -> Sequence[str] | None:
        try:
            values = self._expand(text)
        except Refusal as refusal:
            self.problems.add_at(line, column, path, refusal.message, refusal.remedy)
            return None
        if body.label and len(values) == body.count:
            return values
        if body.label:
            message = f"{shown(text)} stands for {len(values)} values"
            message += f", but {body.label} for {body.count}"
            remedy = "give one value for each name, or one for all without a bracket"
        else:
            message = f"{shown(text)} is a pattern, but the name above is not one"
            remedy = "write one value, or make the name a pattern too"
        self.problems.add_at(line, column, path, message, remedy)
        return None

    def _host_list(self, name: str, node: Node) -> Node:
        """A datastore with its `hosts`, a pattern or a list of patterns, written out."""
        if not isinstance(node.value, dict) or "hosts" not in node.value:
            return node
        hosts = node.value["hosts"]
        items = hosts.value if isinstance(hosts.value, list) else [hosts]
        written: list[Node] = []
        for item in items:
            if not isinstance(item.value, str) or not has_pattern(item.value):
                written.append(item)
                continue
            try:
                written += [replace(item, value=value) for value in self._expand(item.value)]
            except Refusal as refusal:
                path = ("datastores", name, "hosts")
                self.problems.add_at(item.line, item.column, path, refusal.message, refusal.remedy)
                written.append(replace(item, value=REFUSED))
        grown = replace(hosts, value=written, nodes=len(written) + 1)
        nodes = node.nodes - hosts.nodes + grown.nodes
        return replace(node, value={**node.value, "hosts": grown}, nodes=nodes)


def _first_pattern(node: Node) -> str:
    if isinstance(node.value, str):
        return node.value if has_pattern(node.value) else ""
    below = node.value
    if isinstance(below, dict):
        below = list(below.values())
    if isinstance(below, list):
        return next((found for child in below if (found := _first_pattern(child))), "")
    return ""
