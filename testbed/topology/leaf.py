"""One value of a topology file: how it is read from YAML, and how editors see it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from testbed.topology.problems import Refusal, shown

# What editors take for a pattern of names: a bracket somewhere
NAME_PATTERN = r"[A-Za-z0-9_,\[\]-]*\[[A-Za-z0-9_,-]+\][A-Za-z0-9_,\[\]-]*"


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """How one kind of value is read from YAML's scalar, and its JSON Schema.

    `parse` raises ValueError, best a `Refusal`. A leaf that `takes_mapping` gets one as its node.
    """

    parse: Callable[[object], object]
    schema: dict[str, Any]
    expects: str
    takes_mapping: bool = False

    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.to_string_ser_schema()
        )

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


class OneOrMany:
    """Marks a list that may be written as one value."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        many = handler(core)
        return {"anyOf": [dict(many["items"]), many]}


class One(tuple[Any, ...]):
    """The list of one that was written without brackets."""

    __slots__ = ()


class AllOrEach:
    """Marks a mapping of leaves that may be written as one value, found under `ALL`."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        each = handler(core)
        one = each.get("additionalProperties") or next(iter(each["patternProperties"].values()))
        return {"anyOf": [dict(one), {"type": "object", "additionalProperties": dict(one)}]}


class ByKind:
    """Marks a union of objects of which `kind` tells the one that is meant."""


ALL = ""


def _string(value: object, expects: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise Refusal("nothing stands here", f"write {expects}")
    if "such as" in expects:
        raise Refusal(
            f"{shown(value)} is not {expects.partition(' such as')[0]}", f"write {expects}"
        )
    raise Refusal(f"{shown(value)} is not a string", f'write it in quotes: "{shown(value)}"')


def texts(schema: dict[str, Any], expects: str, parse: Callable[[str], object]) -> Leaf:
    """A leaf that is a string, read by `parse`."""
    return Leaf(lambda v: parse(_string(v, expects)), {"type": "string", **schema}, expects)


def named(pattern: str, expects: str, remedy: str, examples: list[str]) -> Leaf:
    """A name that matches a regular expression."""
    compiled = re.compile(pattern)

    def parse(value: object) -> str:
        text = _string(value, expects)
        if compiled.fullmatch(text) is None:
            raise Refusal(f"{shown(text)} is not {expects}", remedy)
        return text

    schema = {"type": "string", "pattern": f"^({pattern}|{NAME_PATTERN})$", "examples": examples}
    return Leaf(parse, schema, expects)


def whole(least: int, most: int, expects: str, unit: str, examples: list[int]) -> Leaf:
    """A whole number between two bounds."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refusal(
                f"{shown(value)} is not a whole number",
                f"write {expects} without quotes, from {least} to {most}, such as {examples[0]}",
            )
        if not least <= value <= most:
            raise Refusal(
                f"{value} is not {expects} that can be built",
                f"write a number of {unit} from {least} to {most}, such as {examples[0]}",
            )
        return value

    schema = {"type": "integer", "minimum": least, "maximum": most, "examples": examples}
    return Leaf(parse, schema, expects)


def one_of(
    what: str,
    built: tuple[str, ...],
    to_come: dict[str, str] | None = None,
    never: dict[str, tuple[str, str]] | None = None,
    *,
    meanwhile: str = "remove it",
) -> Leaf:
    """One of a few words; those to come are refused with their reason, as are those never to.

    `never` has the reason and the remedy of each, `meanwhile` is the remedy of those to come.
    """

    def parse(value: object) -> str:
        text = _string(value, f"a {what} such as {built[0]}")
        if never and text in never:
            raise Refusal(f"{what} {shown(text)} can't be had: {never[text][0]}", never[text][1])
        if to_come and text in to_come:
            raise Refusal(f"{what} {shown(text)} is not built yet: {to_come[text]}", meanwhile)
        if text not in built:
            near = next((word for word in built if word.casefold() == text.casefold()), None)
            remedy = f"did you mean {near}?" if near else f"write {' or '.join(built)}"
            raise Refusal(f"{shown(text)} is not a {what}", remedy)
        return text

    return Leaf(parse, {"type": "string", "enum": list(built)}, what)
