"""YAML text to a tree of nodes that know their line and column; hostile files stay cheap.

The tree is built from libyaml's events, without recursion, so that depth, nodes and
aliases are bounded while they are read and not after. Scalars follow the core schema of
YAML 1.2: `no`, `on`, `10:20` and `1_000` are strings, `010` is ten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from testbed.topology.node import Node, Scalar
from testbed.topology.problems import Enough, Path, shown

if TYPE_CHECKING:
    from testbed.topology.problems import Problems

MAX_BYTES = 1_000_000
MAX_DEPTH = 24
MAX_NODES = 25_000

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?[0-9]{1,18}")
_OCTAL = re.compile(r"0o[0-7]{1,18}")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def resolve_scalar(text: str) -> Scalar:
    """What a plain scalar means in YAML 1.2's core schema.

    Infinity, NaN and numbers of more digits than any quantity here has stay strings.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text) and len(text) <= 40:
        return float(text)
    return text


@dataclass(slots=True)
class _Open:
    """A mapping or sequence that is being read."""

    node: Node
    anchor: str | None
    path: Path
    key: str | None = None
    key_line: int = 0
    key_column: int = 0
    expects_key: bool = False
    skip_value: bool = False


class _Builder:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.root: Node | None = None
        self.stack: list[_Open] = []
        self.anchors: dict[str, Node] = {}

    def build(self, text: str) -> Node:
        loader = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
        try:
            for event in yaml.parse(text, Loader=loader):
                self.take(event)
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            self.refuse(
                before.count("\n") + 1,
                len(before) - (before.rfind("\n") + 1) + 1,
                f"character U+{_code(error.character):04X} is not allowed in YAML",
                "remove it",
            )
            raise Enough from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            context = f" {error.context}" if error.context else ""
            self.refuse(
                mark.line + 1 if mark else 1,
                mark.column + 1 if mark else 1,
                f"not YAML:{context} {error.problem or ''}{_line_of(text, mark)}",
                "correct the syntax here or just above",
            )
            raise Enough from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self.refuse(1, 1, f"not YAML: {shown(str(error))}", "correct the syntax")
            raise Enough from None
        if self.root is None:
            self.refuse(1, 1, "the file is empty", "describe a lab, as topologies/quickstart.yaml")
            raise Enough
        return self.root

    def refuse(self, line: int, column: int, message: str, remedy: str) -> None:
        self.problems.add_at(line, column, self.here(), message, remedy)

    def stop(self, event: Any, message: str, remedy: str) -> None:
        self.refuse(event.start_mark.line + 1, event.start_mark.column + 1, message, remedy)
        raise Enough

    def here(self) -> Path:
        if not self.stack:
            return ()
        top = self.stack[-1]
        if isinstance(top.node.value, list):
            return (*top.path, len(top.node.value))
        return top.path if top.key is None else (*top.path, top.key)

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            if self.root is not None:
                self.stop(event, "a second document begins here", "keep one lab in one file")
        elif isinstance(event, yaml.ScalarEvent):
            self.scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.close(event)

    def scalar(self, event: Any) -> None:
        if self.stack and self.stack[-1].expects_key:
            self.key(event)
            return
        self.check_tag(event)
        plain = event.style in ("", None)
        value = resolve_scalar(event.value) if plain else event.value
        node = self.node(event, value)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        self.put(node, event)

    def key(self, event: Any) -> None:
        top = self.stack[-1]
        self.check_tag(event)
        text = event.value
        if event.style in ("", None) and not isinstance(resolve_scalar(text), str):
            meant = f'write "{text}" in quotes' if text else "write a name before the colon"
            self.stop(event, f"the key {shown(text)} is not a string", meant)
        assert isinstance(top.node.value, dict)
        top.key, top.expects_key = text, False
        top.key_line = event.start_mark.line + 1
        top.key_column = event.start_mark.column + 1
        top.skip_value = text in top.node.value
        if top.skip_value:
            first = top.node.value[text].key_line
            self.refuse(
                top.key_line,
                top.key_column,
                f"the key {shown(text)} stands here a second time, first in line {first}",
                "keep one of the two",
            )
        if event.anchor is not None:
            self.anchors[event.anchor] = self.node(event, text)

    def alias(self, event: Any) -> None:
        name = event.anchor
        if self.stack and self.stack[-1].expects_key:
            self.stop(event, f"the alias *{name} stands for a key", "write the key itself")
        if any(o.anchor == name for o in self.stack):
            self.stop(event, f"the alias *{name} stands inside its own anchor", "remove it")
        node = self.anchors.get(name)
        if node is None:
            self.stop(
                event, f"the alias *{name} has no anchor", f"write &{name} at the value it means"
            )
            return
        self.put(replace(node), event)

    def open(self, event: Any) -> None:
        if self.stack and self.stack[-1].expects_key:
            self.stop(event, "a key is a mapping or a list here", "write a string before the colon")
        self.check_tag(event)
        path = self.here()
        mapping = isinstance(event, yaml.MappingStartEvent)
        if len(self.stack) >= MAX_DEPTH:
            self.stop(event, f"nested deeper than {MAX_DEPTH} levels", "a lab needs seven at most")
        node = self.node(event, {} if mapping else [])
        self.stack.append(_Open(node, event.anchor, path, expects_key=mapping))

    def close(self, event: Any) -> None:
        done = self.stack.pop()
        if done.anchor is not None:
            self.anchors[done.anchor] = done.node
        self.put(done.node, event)

    def node(self, event: Any, value: Any) -> Node:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        return Node(value, line, column, line, column)

    def check_tag(self, event: Any) -> None:
        if event.tag is not None:
            self.stop(
                event, f"the tag {shown(event.tag)} is not used in a topology", "remove the tag"
            )

    def put(self, node: Node, event: Any) -> None:
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        parent = top.node
        if isinstance(parent.value, dict):
            assert top.key is not None
            node.key_line, node.key_column = top.key_line, top.key_column
            if not top.skip_value:
                parent.value[top.key] = node
            top.key, top.expects_key = None, True
        elif isinstance(parent.value, list):
            node.key_line, node.key_column = node.line, node.column
            parent.value.append(node)
        parent.nodes += node.nodes
        parent.height = max(parent.height, node.height + 1)
        if sum(o.node.nodes for o in self.stack) > MAX_NODES:
            self.stop(
                event,
                f"more than {MAX_NODES} values once its aliases are expanded",
                "describe a smaller lab, or use host patterns such as esx[01-32]",
            )
        if len(self.stack) + node.height > MAX_DEPTH:
            self.stop(event, f"nested deeper than {MAX_DEPTH} levels", "a lab needs seven at most")


def _code(character: Any) -> int:
    return character if isinstance(character, int) else ord(character[:1] or "\0")


def _line_of(text: str, mark: Any) -> str:
    """The offending line, so that the message shows what stands there."""
    if mark is None:
        return ""
    line = next((t for n, t in enumerate(text.splitlines()) if n == mark.line), "").strip()
    return f", in {shown(line)}" if line else ""


def compose(text: str, problems: Problems) -> Node:
    """The tree of one YAML document.

    Args:
        text: the document, at most `MAX_BYTES` long (the caller's check).
        problems: takes every mistake, with its place.

    Raises:
        Enough: there is no tree; the reason is among the problems.
    """
    return _Builder(problems).build(text)
