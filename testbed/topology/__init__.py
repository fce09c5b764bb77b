"""The topology file: YAML in, a validated and frozen `Topology` out, or every mistake at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from testbed.topology.model import Topology
    from testbed.topology.node import Scalar

# The imports below are local because pydantic and PyYAML take longer to import than
# `testbed --help` may last, and `testbed.topology.model` needs neither.


def load(path: Path) -> Topology:
    """Read and validate a topology file.

    Raises:
        TopologyError: the file has mistakes; it carries all of them.
        InputError: the file can't be read, or is no text.
    """
    from testbed.topology import loading  # noqa: PLC0415

    return loading.load(path)


def loads(text: str, filename: str, traces: Mapping[str, str] | None = None) -> Topology:
    """Validate the text of a topology file; `filename` is what messages call it.

    Trace files that it names are read from that file's directory, except those in `traces`: their
    texts, by the paths that the file has.

    Raises:
        TopologyError: the text has mistakes; it carries all of them.
        InputError: it is too large, or is no text.
    """
    from testbed.topology import loading  # noqa: PLC0415

    return loading.loads(text, filename, traces)


def with_workloads(
    standing: Topology, vm: str, workloads: Sequence[Mapping[str, Scalar]]
) -> Topology:
    """A topology with other workloads for one of its VMs, written as the file would have them.

    Raises:
        TopologyError: they have mistakes; it carries all of them.
    """
    from testbed.topology import loading  # noqa: PLC0415

    return loading.with_workloads(standing, vm, workloads)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a topology file, for editors."""
    from testbed.topology import schema  # noqa: PLC0415

    return schema.json_schema()
