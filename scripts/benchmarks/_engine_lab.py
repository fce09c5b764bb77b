"""Migrations in a lab from one of the example topologies, asked for as `testbed migrate` does."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from _row import say

from testbed.lab.client import request
from testbed.report.store import from_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _network_lab import Lab

    from testbed.report.result import EngineReport, MigrationResult

_TOPOLOGIES = Path(__file__).parents[2] / "topologies"
_DEADLINE_S = 600
_OF_MESSAGE = ("probe", "switchover_goal_ns")


def example(name: str) -> str:
    """An example topology without its name, for `_network_lab.lab`."""
    text = (_TOPOLOGIES / f"{name}.yaml").read_text(encoding="utf-8")
    return text.replace(f"\nname: {name}\n", "\n")


@contextmanager
def profiles(texts: dict[str, str]) -> Iterator[dict[str, str]]:
    """Files of these profiles, by name."""
    with TemporaryDirectory() as folder:
        found = {}
        for name, text in texts.items():
            path = Path(folder) / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
            found[name] = str(path)
        yield found


def message(to: str, **options: object) -> dict[str, object]:
    """What the supervisor is asked for; `options` as those of `testbed migrate`."""
    return {
        "to": to,
        "switchover_goal_ns": None,
        "options": options,
        "verify": False,
        "command_line": "scripts/bench engine",
    }


def attempted(lab: Lab, vm: str, to: str, **fields: object) -> MigrationResult:
    """Migrate a VM, which is elsewhere; it may fail. `fields` are of the message, and options.

    Raises:
        LabError: it may not be moved.
    """
    options = {name: value for name, value in fields.items() if name not in _OF_MESSAGE}
    asked = {"command": "migrate", "vm": vm, **message(to, **options)}
    asked |= {name: value for name, value in fields.items() if name in _OF_MESSAGE}
    result = from_json(request(lab.directory, asked, timeout_s=_DEADLINE_S), lab.directory.name)
    if result.invalid is not None:
        say(f"{vm} to {to}: {result.invalid}; counted all the same")
        lab.troubled += 1
    lab.measured += 1
    return result


def migrated(lab: Lab, vm: str, to: str, **fields: object) -> EngineReport:
    """As `attempted`.

    Raises:
        LabError: it may not be moved.
        RuntimeError: it failed.
    """
    result = attempted(lab, vm, to, **fields)
    if result.engine is None or result.failure is not None:
        raise RuntimeError(f"{vm} to {to}: {result.failure}")
    return result.engine
