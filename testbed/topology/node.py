"""A value of the file, and its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


class Refused:
    """The value of a node whose mistake is already reported; nobody reports it again."""


REFUSED = Refused()
Scalar: TypeAlias = str | int | float | bool | None


@dataclass(slots=True)
class Node:
    """A value and its place. `key_line` and `key_column` are its key's, or its own."""

    value: Scalar | Refused | list[Node] | dict[str, Node]
    line: int
    column: int
    key_line: int
    key_column: int
    nodes: int = 1
    height: int = 1
