"""From a path to a topology, one stage after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.topology import (
    addressing,
    bandwidth,
    capacity,
    links,
    marking,
    network,
    references,
    routes,
    stacks,
    teams,
    vlans,
)
from testbed.topology.draft import Draft
from testbed.topology.patterns import Expander
from testbed.topology.problems import Enough, Problems
from testbed.topology.reading import Reader
from testbed.topology.resolving import resolve
from testbed.topology.tree import MAX_BYTES, compose

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.topology.model import Topology

_STAGES = (
    references,
    teams,
    addressing,
    routes,
    links,
    vlans,
    network,
    stacks,
    bandwidth,
    marking,
    capacity,
)


def load(path: Path) -> Topology:
    """See `testbed.topology.load`."""
    return loads(_text(path), str(path))


def loads(text: str, filename: str) -> Topology:
    """See `testbed.topology.loads`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"{filename}: character {error.start} is half of a surrogate pair, no text;"
            " save the file as UTF-8"
        ) from None
    if size > MAX_BYTES:
        raise _too_large(filename)
    problems = Problems(filename)
    try:
        draft = _draft(text.removeprefix("\ufeff"), problems)
        for stage in _STAGES:
            stage.check(draft)
    except Enough:
        problems.raise_if_any()
        raise
    problems.raise_if_any()
    return resolve(draft, text)


def _draft(text: str, problems: Problems) -> Draft:
    expander = Expander(problems)
    root = problems.root = expander.expand(compose(text, problems))
    reader = Reader(problems, expander.incomplete)
    file = reader.read(root)
    return Draft(file, root, problems, reader.broken, reader.incomplete)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory; name a topology file in it") from None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} can't be read: {cause}; check its path and mode") from None
    if len(data) > MAX_BYTES:
        raise _too_large(str(path))
    if b"\0" in data:
        raise InputError(f"{path} is a binary file; a topology is YAML text")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _too_large(filename: str) -> InputError:
    return InputError(
        f"{filename} is larger than {MAX_BYTES // 1000} kB, too large for a topology;"
        " use host patterns such as esx[01-32]"
    )
