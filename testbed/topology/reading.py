"""A tree into the file's models, object by object, so that one mistake hides no other.

What can't be read becomes None (or an empty list or mapping) and is remembered as broken,
so that the checks that follow neither trust it nor complain about it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from testbed.topology import never
from testbed.topology.kinds import Kind, nothing
from testbed.topology.leaf import ALL, Leaf, One
from testbed.topology.node import REFUSED, Node, Refused
from testbed.topology.problems import Enough, Path, Problems, Refusal, shown
from testbed.topology.schema import TopologyFile

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


class Reader:
    """Reads one file.

    After `read`, `broken` holds the paths of the objects with a mistake of their own and
    `incomplete` the sections whose names are not all known.
    """

    def __init__(self, problems: Problems, incomplete: set[str]) -> None:
        self.problems = problems
        self.incomplete = incomplete
        self.broken: set[Path] = set()
        self._kinds: dict[type[BaseModel], dict[str, Kind]] = {}

    def read(self, root: Node) -> TopologyFile:
        """The whole file.

        Raises:
            Enough: it is no mapping at all.
        """
        if not isinstance(root.value, dict):
            self._wrong_kind(root, (), "a mapping (name: quickstart ...)")
            raise Enough
        return cast("TopologyFile", self._object(root, TopologyFile, (), ()))

    def _object(
        self, node: Node, model: type[BaseModel], path: Path, shape: never.Shape
    ) -> BaseModel:
        values: dict[str, Any] = {}
        unsure: set[str] = set()
        given: dict[str, Node] = {}
        if isinstance(node.value, dict):
            given = node.value
        else:
            self._wrong_kind(node, path, "a mapping (key: value)")
            self._break(path)
            unsure = set(model.model_fields)
        for key in given:
            if key not in model.model_fields:
                unsure |= self._unknown(key, model, path, (*shape, key))
        kinds = self._kinds.get(model)
        if kinds is None:
            kinds = {name: Kind.of(info) for name, info in model.model_fields.items()}
            self._kinds[model] = kinds
        for name, info in model.model_fields.items():
            if name in given:
                below = (*path, name)
                kind = kinds[name]
                values[name] = self._value(given[name], kind, below, (*shape, name), path)
            elif name in unsure:
                values[name] = nothing(info)
                if not path:
                    self.incomplete.add(name)
            elif info.is_required():
                self._missing(name, info, path)
                values[name] = nothing(info)
        return model.model_construct(**values)

    def _value(self, node: Node, kind: Kind, path: Path, shape: never.Shape, owner: Path) -> Any:
        if kind.all_or_each and not isinstance(node.value, dict):
            value = self._value(node, kind.items[1], path, shape, owner)
            return {} if value is None else {ALL: value}
        if kind.origin is dict:
            return self._mapping(node, kind, path, shape)
        if kind.origin is tuple:
            return self._sequence(node, kind, path, shape, owner)
        if kind.choice:
            return self._chosen(node, kind, path, shape)
        if kind.model is not None:
            return self._object(node, kind.model, path, shape)
        return self._leaf(node, kind.leaf, path, owner)

    def _chosen(self, node: Node, kind: Kind, path: Path, shape: never.Shape) -> BaseModel:
        """The object whose `kind` says which of several it is."""
        word = node.value.get("kind") if isinstance(node.value, dict) else None
        if word is not None and isinstance(word.value, str) and word.value in kind.choice:
            return self._object(node, kind.choice[word.value], path, shape)
        if not isinstance(node.value, dict):
            self._wrong_kind(node, path, "a mapping; write it like {kind: idle}")
        elif word is None:
            remedy = f"add kind: {' or '.join(kind.choice)}"
            self.problems.add(path, "the key kind is missing", remedy, at_key=True)
        else:
            self._leaf(word, kind.words, (*path, "kind"), path)
        self._break(path)
        first = next(iter(kind.choice.values()))
        return first.model_construct(kind=None)

    def _mapping(self, node: Node, kind: Kind, path: Path, shape: never.Shape) -> dict[str, Any]:
        if not isinstance(node.value, dict):
            self._wrong_kind(node, path, "a mapping of names; write {} if there are none")
            self._lose(path)
            return {}
        read: dict[str, Any] = {}
        for name, child in node.value.items():
            below = (*path, name)
            value = self._value(child, kind.items[1], below, (*shape, "*"), below)
            leaf = kind.items[0].leaf
            try:
                read[cast("str", leaf.parse(name))] = value
            except ValueError as error:
                self._refuse(below, error, at_key=True)
                self._break(below)
        return read

    def _sequence(
        self, node: Node, kind: Kind, path: Path, shape: never.Shape, owner: Path
    ) -> tuple[Any, ...]:
        item = kind.items[0]
        if kind.one_or_many and not isinstance(node.value, list):
            if item.choice:
                return One((self._chosen(node, item, (*path, 0), (*shape, "*")),))
            if item.model is not None:
                return One((self._object(node, item.model, (*path, 0), (*shape, "*")),))
            value = self._value(node, item, path, shape, owner)
            return () if value is None else One((value,))
        if not isinstance(node.value, list):
            self._wrong_kind(node, path, "a list; write it in brackets [ ]")
            self._lose(path)
            return ()
        if kind.length is not None and len(node.value) != kind.length:
            message = f"a list of {len(node.value)} where {kind.length} belong"
            self.problems.add(path, message, f"write exactly {kind.length}")
            self._break(owner)
        values = [
            self._value(
                child,
                item,
                (*path, number),
                (*shape, "*"),
                (*path, number) if item.model or item.choice else owner,
            )
            for number, child in enumerate(node.value)
        ]
        return tuple(values)

    def _leaf(self, node: Node, leaf: Leaf, path: Path, owner: Path) -> Any:
        value: object = node.value
        if isinstance(value, dict) and leaf.takes_mapping:
            value = node
        if isinstance(value, list | dict | Refused):
            self._wrong_kind(node, path, leaf.expects)
            self._break(owner)
            return None
        try:
            return leaf.parse(value)
        except ValueError as error:
            self._refuse(path, error)
            self._break(owner)
            return None

    def _unknown(
        self, key: str, model: type[BaseModel], path: Path, shape: never.Shape
    ) -> set[str]:
        """Report a key that doesn't exist; the keys that it may have meant."""
        below = (*path, key)
        if shape in never.KEYS:
            message, remedy = never.KEYS[shape]
            self.problems.add(below, message, remedy, at_key=True)
            self._break(path)
            return set()
        self._break(path)
        known = list(model.model_fields)
        near = self.problems.nearest(key, known)
        remedy = f"allowed here: {', '.join(known)}" if known else "no keys are allowed here"
        if near is not None:
            remedy = f"did you mean {near}? ({remedy})"
        message = f"unknown key {shown(key)}"
        if "kind" in known:
            message += " in a workload of this kind"
        self.problems.add(below, message, remedy, at_key=True)
        return set() if near is None else {near}

    def _missing(self, name: str, info: FieldInfo, path: Path) -> None:
        kind = Kind.of(info)
        example = kind.example()
        self.problems.add(path, f"the key {name} is missing", f"add {name}: {example}", at_key=True)
        self._break(path)

    def _wrong_kind(self, node: Node, path: Path, expected: str) -> None:
        if node.value is REFUSED:
            return
        what = "a mapping" if isinstance(node.value, dict) else "a list"
        if not isinstance(node.value, dict | list):
            what = shown(node.value)
        expected, _, remedy = expected.partition("; ")
        self.problems.add(path, f"{what} stands where {expected} belongs", remedy or "write that")

    def _refuse(self, path: Path, error: ValueError, *, at_key: bool = False) -> None:
        if isinstance(error, Refusal):
            message, remedy = error.message, error.remedy
        else:
            message, _, remedy = str(error).rpartition("; ")
        self.problems.add(path, message, remedy, at_key=at_key)

    def _break(self, path: Path) -> None:
        self.broken.add(path)

    def _lose(self, path: Path) -> None:
        """A whole mapping or list is unreadable: nothing is known of what it would name."""
        self._break(path[:-1])
        if len(path) == 1:
            self.incomplete.add(str(path[0]))
