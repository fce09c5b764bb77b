"""What the fields of the file's models hold, taken from their annotations."""

from __future__ import annotations

from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from testbed.topology.leaf import AllOrEach, ByKind, Leaf, OneOrMany
from testbed.topology.problems import Refusal
from testbed.topology.workload_leaves import kind_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from testbed.topology.node import Scalar


def _parse_nothing(_: Scalar | object) -> object:
    raise Refusal("a value stands where none belongs", "remove it")


NO_LEAF = Leaf(_parse_nothing, {}, "nothing")


class Kind:
    """What a field holds, taken from its annotation."""

    __slots__ = (
        "all_or_each",
        "choice",
        "examples",
        "items",
        "leaf",
        "length",
        "model",
        "one_or_many",
        "optional",
        "origin",
        "words",
    )

    def __init__(self, annotation: Any, metadata: list[Any], examples: list[Any] | None) -> None:
        self.optional = False
        self.choice: dict[str, type[BaseModel]] = {}
        self.words = NO_LEAF
        if get_origin(annotation) is Annotated and ByKind in map(type, annotation.__metadata__):
            self._choose(get_args(get_args(annotation)[0]))
        while (outer := get_origin(annotation)) in (Annotated, Union, UnionType):
            annotation, *more = get_args(annotation)
            if outer is Annotated:
                metadata = [*metadata, *more]
            else:  # the other one is None
                self.optional = True
        self.leaf = next((m for m in metadata if isinstance(m, Leaf)), NO_LEAF)
        self.origin = get_origin(annotation) if self.leaf is NO_LEAF else None
        self.examples = examples
        self.one_or_many = any(isinstance(m, OneOrMany) for m in metadata)
        self.all_or_each = any(isinstance(m, AllOrEach) for m in metadata)
        self.length = next((m.max_length for m in metadata if hasattr(m, "max_length")), None)
        self.model: type[BaseModel] | None = None
        self.items: tuple[Kind, ...] = ()
        if self.origin in (dict, tuple):
            inner = [a for a in get_args(annotation) if a is not Ellipsis]
            self.items = tuple(Kind(a, [], None) for a in inner)
        elif not self.choice and isinstance(annotation, type) and issubclass(annotation, BaseModel):
            self.model = annotation

    def _choose(self, models: tuple[type[BaseModel], ...]) -> None:
        """The objects by the words that their `kind` may be."""
        for model in models:
            leaf = Kind.of(model.model_fields["kind"]).leaf
            self.choice |= dict.fromkeys(leaf.schema["enum"], model)
        self.words = kind_of(*self.choice)

    @classmethod
    def of(cls, info: FieldInfo) -> Kind:
        """The kind of a model's field."""
        return cls(info.annotation, info.metadata, info.examples)

    def example(self) -> str:
        """What a missing value may look like."""
        if self.choice:
            return f"{{kind: {next(iter(self.choice))}}}"
        if self.model is not None:
            inner = (
                f"{name}: {Kind.of(info).example()}"
                for name, info in self.model.model_fields.items()
                if info.is_required()
            )
            return "{" + ", ".join(inner) + "}"
        if self.origin is tuple:
            return f"[{self.items[0].example()}]"
        examples = self.leaf.schema.get("examples") or self.leaf.schema.get("enum") or ["NAME"]
        return str(examples[0])


def nothing(info: FieldInfo) -> Any:
    """What stands for a value that is unknown."""
    kind = Kind.of(info)
    if kind.optional:
        return None
    if kind.origin is dict:
        return {}
    if kind.origin is tuple:
        return ()
    if kind.model is not None:
        fields = kind.model.model_fields
        return kind.model.model_construct(**{name: nothing(f) for name, f in fields.items()})
    return None
