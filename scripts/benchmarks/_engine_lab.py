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

    from testbed.report.result import EngineReport

_TOPOLOGIES = Path(__file__).parents[2] / "topologies"
_DEADLINE_S = 600


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


def migrated(lab: Lab, vm: str, to: str, **options: object) -> EngineReport:
    """Migrate a VM, which is elsewhere.

    Raises:
        LabError: it may not be moved.
        RuntimeError: it failed.
    """
    asked = {"command": "migrate", "vm": vm, **message(to, **options)}
    result = from_json(request(lab.directory, asked, timeout_s=_DEADLINE_S), lab.directory.name)
    if result.engine is None or result.failure is not None:
        raise RuntimeError(f"{vm} to {to}: {result.failure}")
    if result.invalid is not None:
        say(f"{vm} to {to}: {result.invalid}; counted all the same")
        lab.troubled += 1
    lab.measured += 1
    return result.engine
