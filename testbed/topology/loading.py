"""From a path to a topology, one stage after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.topology import (
    addressing,
    bandwidth,
    behaviour,
    capacity,
    links,
    marking,
    network,
    references,
    routes,
    stacks,
    teams,
    vlans,
    workloads,
)
from testbed.topology.draft import Draft
from testbed.topology.node import Node
from testbed.topology.patterns import Expander
from testbed.topology.problems import Enough, Problems
from testbed.topology.reading import Reader
from testbed.topology.resolving import resolve
from testbed.topology.tree import MAX_BYTES, compose

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from testbed.topology.model import Topology
    from testbed.topology.node import Scalar

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
    workloads,
    capacity,
    behaviour,
)


def load(path: Path) -> Topology:
    """See `testbed.topology.load`."""
    return loads(_text(path), str(path))


def loads(text: str, filename: str, traces: Mapping[str, str] | None = None) -> Topology:
    """See `testbed.topology.loads`."""
    problems = Problems(filename)
    try:
        return _judged(_draft(text, problems, traces or {}), text)
    except Enough:
        problems.raise_if_any()
        raise


def with_workloads(
    standing: Topology, vm: str, workloads: Sequence[Mapping[str, Scalar]]
) -> Topology:
    """See `testbed.topology.with_workloads`."""
    problems = Problems(standing.file)
    items = [
        Node({key: _node(value) for key, value in one.items()}, 1, 1, 1, 1) for one in workloads
    ]
    try:
        draft = _draft(standing.text, problems, dict(standing.traces), (vm, _node(items)))
        return _judged(draft, standing.text)
    except Enough:
        problems.raise_if_any()
        raise


def _node(value: Scalar | list[Node]) -> Node:
    return Node(value, 1, 1, 1, 1)


def _judged(draft: Draft, text: str) -> Topology:
    for stage in _STAGES:
        stage.check(draft)
    draft.problems.raise_if_any()
    return resolve(draft, text)


def _draft(
    text: str,
    problems: Problems,
    traces: Mapping[str, str],
    workload: tuple[str, Node] | None = None,
) -> Draft:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"{problems.file}: character {error.start} is half of a surrogate pair, no text;"
            " save the file as UTF-8"
        ) from None
    if size > MAX_BYTES:
        raise _too_large(problems.file)
    expander = Expander(problems)
    root = problems.root = expander.expand(compose(text.removeprefix("\ufeff"), problems))
    if workload is not None:
        root = problems.root = _replaced(root, ("vms", workload[0], "workload"), workload[1])
    reader = Reader(problems, expander.incomplete)
    file = reader.read(root)
    return Draft(
        file,
        root,
        problems,
        broken=reader.broken,
        incomplete=reader.incomplete,
        traces=dict(traces),
    )


def _replaced(node: Node, path: Sequence[str], value: Node) -> Node:
    """The tree with another value at a path whose objects it has; what patterns share stays."""
    if not path:
        return value
    assert isinstance(node.value, dict)
    below = node.value.get(path[0], value)
    return replace(node, value={**node.value, path[0]: _replaced(below, path[1:], value)})


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
