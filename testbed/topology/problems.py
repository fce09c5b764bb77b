"""Mistakes, gathered with their places; one mistake of a pattern is told once."""

from __future__ import annotations

import re
from collections import Counter
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from testbed.errors import Problem, TopologyError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from testbed.topology.node import Node

Path: TypeAlias = tuple[str | int, ...]

MAX_PROBLEMS = 100
MAX_PER_PLACE = 3  # a value repeated by a pattern repeats its mistake
_MAX_SUGGESTIONS = 30  # each compares with every name there is
_LONGEST_SHOWN = 60
_DIGITS = re.compile("[0-9]+")  # what varies when a pattern repeats a mistake


class Refusal(ValueError):  # noqa: N818
    """A value can't be taken: what is wrong with it, and what to write instead."""

    def __init__(self, message: str, remedy: str) -> None:
        self.message, self.remedy = message, remedy
        super().__init__(f"{message}; {remedy}")


def shown(value: object) -> str:
    """A value as a message shows it: quoted, in one line, cut when long."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    if not isinstance(value, str):
        return str(value)
    if len(value) > _LONGEST_SHOWN:
        return f"{value[: _LONGEST_SHOWN - 3]!r}... ({len(value)} characters)"
    return repr(value)


def dotted(path: Path) -> str:
    """`("links", 0, "rate")` as `links[0].rate`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            short = part if len(part) <= _LONGEST_SHOWN else part[: _LONGEST_SHOWN - 3] + "..."
            text += ("." if text else "") + (short if short.isprintable() else repr(short))
    return text


class Enough(Exception):  # noqa: N818
    """The rest of the file isn't judged; what was found so far says why."""


class Problems:
    """Collects mistakes against the tree of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self._found: dict[tuple[int, int, str], Problem] = {}
        self._places: Counter[tuple[int, int]] = Counter()
        self._suggestions = 0

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: Path, message: str, remedy: str, *, at_key: bool = False) -> None:
        """Report a mistake in the object at `path`, or the nearest one that the file has.

        Raises:
            Enough: there are more than anybody corrects in one go.
        """
        node, path = self._find(path)
        line, column = (1, 1)
        if node is not None:
            line, column = node.line, node.column
            if at_key:
                line, column = node.key_line, node.key_column
        self.add_at(line, column, path, message, remedy)

    def add_at(self, line: int, column: int, path: Path, message: str, remedy: str) -> None:
        """Report a mistake at a place in the text.

        Raises:
            Enough: there are more than anybody corrects in one go.
        """
        key = (line, column, _DIGITS.sub("0", message))
        place = (line, column)
        if key in self._found or self._places[place] >= MAX_PER_PLACE:
            return
        if len(self._found) == MAX_PROBLEMS:
            message, remedy = "there are more mistakes, here and elsewhere", "correct these first"
        self._places[place] += 1
        self._found[key] = Problem(self.file, line, column, dotted(path), message, remedy)
        if len(self._found) > MAX_PROBLEMS:
            raise Enough

    def take(self, problem: Problem) -> None:
        """Report a mistake that has its place already, here or in a file that this one names."""
        self._found.setdefault((problem.line, problem.column, str(problem)), problem)

    def written(self, path: Path) -> str:
        """A value as the file writes it."""
        node, _ = self._find(path)
        value = None if node is None else node.value
        return shown(value) if isinstance(value, str) else "it"

    def line(self, path: Path) -> int:
        """The line in which a value stands."""
        node, _ = self._find(path)
        return 1 if node is None else node.line

    def nearest(self, name: str, known: Iterable[str]) -> str | None:
        """The known name that was probably meant."""
        self._suggestions += 1
        if self._suggestions > _MAX_SUGGESTIONS or len(name) > _LONGEST_SHOWN:
            return None
        folded = {n.casefold(): n for n in known if len(n) <= _LONGEST_SHOWN}
        near = get_close_matches(name.casefold(), folded, n=1)
        return folded[near[0]] if near else None

    def did_you_mean(self, name: str, known: Collection[str]) -> str:
        """A remedy for a name that doesn't exist: the nearest one, or those there are."""
        near = self.nearest(name, known)
        if near is not None:
            return f"did you mean {near}?"
        if not known:
            return "define it, there are none yet"
        some = ", ".join(n for n in islice(known, 8) if len(n) <= _LONGEST_SHOWN)
        return f"there are {some}" + (f" and {len(known) - 8} more" if len(known) > 8 else "")

    def raise_if_any(self) -> None:
        """Raise what was found.

        Raises:
            TopologyError: there is something.
        """
        if self._found:
            raise TopologyError(tuple(self._found.values()))

    def _find(self, path: Path) -> tuple[Node | None, Path]:
        """The nearest node that the file has, and the path as the file writes it.

        One value written where a list may stand has no index.
        """
        node = self.root
        written: Path = ()
        for depth, part in enumerate(path):
            below = None if node is None else node.value
            if isinstance(part, int):
                if not isinstance(below, list) or part >= len(below):
                    continue
                node = below[part]
            elif isinstance(below, dict) and part in below:
                node = below[part]
            else:
                return node, (*written, *path[depth:])
            written = (*written, part)
        return node, written
