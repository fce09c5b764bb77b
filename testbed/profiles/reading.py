"""A profile's text into its entries, each with its place; nothing is inherited here."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast, get_args

from testbed.errors import Problem, TopologyError
from testbed.profiles.keys import KEYS
from testbed.profiles.profile import Kind, Origin

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CHARACTERS = 100_000
INHERITS = "inherits"


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands at a place of a file: a scalar's text, entries by key, or (None) a list."""

    value: str | Mapping[str, Entry] | None
    line: int
    column: int
    key_line: int
    key_column: int


@dataclass(frozen=True, slots=True)
class Layer:
    """What one file says: its name, whom it inherits and where it says so, values by field."""

    name: str
    file: str
    inherits: str | None
    inherits_at: tuple[int, int]
    values: Mapping[str, Any]
    origins: Mapping[str, Origin]


def compose(text: str, file: str) -> Entry:
    """The entries of a YAML text, all scalars as written.

    Raises:
        TopologyError: it is no YAML, too large, or no mapping.
    """
    import yaml  # noqa: PLC0415 - the command line starts without it

    if len(text) > MAX_CHARACTERS:
        message = f"{len(text)} characters are too many for a profile"
        raise _error(file, (1, 1), message, "write what differs from the profile that it inherits")
    loader = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
    try:
        node = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        cause = f"not YAML: {error.problem or error.context}"
        raise _error(file, place, cause, "correct the syntax here or just above") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = str(error).splitlines()[0][:80]
        raise _error(file, (1, 1), f"not YAML: {cause}", "correct the syntax") from None
    found = _entry(node, node, file, 0) if node is not None else None
    if found is None or not isinstance(found.value, dict):
        raise _error(file, (1, 1), "this is no mapping", f"begin with {INHERITS}: vsphere-7.0")
    return found


def _entry(node: Any, key: Any, file: str, depth: int) -> Entry:
    """A node of PyYAML's; what lies deeper than a profile goes is left out."""
    import yaml  # noqa: PLC0415

    value: str | dict[str, Entry] | None = None
    if isinstance(node, yaml.ScalarNode):
        value = node.value
    elif isinstance(node, yaml.MappingNode) and depth < 2:
        value = {}
        for name, below in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value in value:
                place = (name.start_mark.line + 1, name.start_mark.column + 1)
                message = f"the key {_shown(name.value)} stands here a second time"
                raise _error(file, place, message, "keep one of the two")
            text = name.value if isinstance(name, yaml.ScalarNode) else "?"
            value[text] = _entry(below, name, file, depth + 1)
    at, key_at = node.start_mark, key.start_mark
    return Entry(value, at.line + 1, at.column + 1, key_at.line + 1, key_at.column + 1)


def read(entries: Mapping[str, Entry], name: str, file: str) -> Layer:
    """The values of a profile's entries.

    Raises:
        TopologyError: unknown keys, or values that are none; all of them.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    inherits: str | None = None
    inherits_at = (1, 1)
    for key, entry in entries.items():
        if key == INHERITS:
            inherits_at = (entry.line, entry.column)
            inherits = entry.value if isinstance(entry.value, str) else None
            if not inherits:
                how = "name a profile, or the path of a file"
                problems.append(_problem(file, inherits_at, key, "this is no profile", how))
        elif key not in KEYS:
            place = (entry.key_line, entry.key_column)
            message = f"unknown key {_shown(key)} in a profile"
            problems.append(_problem(file, place, key, message, _instead(key)))
        else:
            try:
                text, kind, basis = _stated(entry, file)
                values[KEYS[key].field] = KEYS[key].read(text)
                origins[KEYS[key].field] = Origin(kind, basis, name, file, entry.line)
            except ValueError as error:
                message, _, how = str(error).rpartition("; ")
                problems.append(_problem(file, (entry.line, entry.column), key, message, how))
    if problems:
        raise TopologyError(tuple(problems))
    return Layer(name, file, inherits, inherits_at, values, origins)


def _stated(entry: Entry, file: str) -> tuple[str, Kind, str]:
    """A value's text, and how it is known.

    Raises:
        ValueError: it isn't a value, or doesn't say how it is known.
    """
    if isinstance(entry.value, str):
        return entry.value, "assumed", f"set in {file}"
    how = "write the value, or {value: ..., sourced: ...}, calibrated or assumed"
    if entry.value is None:
        raise ValueError(f"a list stands where one value belongs; {how}")
    said = {key: one.value for key, one in entry.value.items()}
    kinds = [kind for kind in get_args(Kind) if kind in said]
    text = said.pop("value", None)
    if not isinstance(text, str):
        raise ValueError(f"the value is missing; {how}")
    if len(kinds) != 1 or len(said) != 1:
        raise ValueError(f"it has to be said once how the value is known; {how}")
    basis = said[kinds[0]]
    if not isinstance(basis, str) or not basis.strip():
        raise ValueError(f"{kinds[0]} on what is missing; name the source, row or reason")
    return text, cast("Kind", kinds[0]), " ".join(basis.split())


def _instead(key: str) -> str:
    near = get_close_matches(key[:60], [INHERITS, *KEYS], n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join([INHERITS, *KEYS])}"


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}..."


def _problem(file: str, place: tuple[int, int], key: str, message: str, remedy: str) -> Problem:
    return Problem(file, *place, key if len(key) <= 60 else "", message, remedy)


def _error(file: str, place: tuple[int, int], message: str, remedy: str) -> TopologyError:
    return TopologyError((_problem(file, place, "", message, remedy),))
