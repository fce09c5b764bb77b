"""Steps into a node of a running lab, to run a program there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from testbed.errors import InputError, LabError
from testbed.kernel import netns as namespaces
from testbed.kernel import syscalls
from testbed.lab.directory import LabDirectory, labs
from testbed.lab.journal import Journal
from testbed.plan.steps import Netns

if TYPE_CHECKING:
    from collections.abc import Sequence


def running_lab(name: str | None) -> tuple[LabDirectory, Journal]:
    """A lab that is up: the one named, or the only one.

    Raises:
        InputError: there is none of this name, or none at all, or several and no name.
        LabError: it is not whole.
    """
    there = labs()
    if name is None:
        if not there:
            raise InputError("no lab is up; 'testbed up TOPOLOGY' builds one")
        if len(there) > 1:
            raise InputError(f"which lab? {', '.join(there)} are there; name one with --lab")
        name = there[0]
    if name not in there:
        raise InputError(
            f"there is no lab {name!r}; running: {', '.join(there) or 'none'};"
            " 'testbed up TOPOLOGY' builds one"
        )
    directory = LabDirectory(name)
    journal = Journal.read(directory.journal)
    if journal.state not in ("up", "changing"):
        raise LabError(
            f"lab {name!r} is {journal.state}; 'testbed up' or 'testbed down {name}' mends it"
        )
    return directory, journal


def netns_of(journal: Journal, node: str) -> str:
    """The namespace of a node.

    Raises:
        InputError: the lab has no such node.
    """
    nodes = {step.node: step.name for step in journal.plan.steps if isinstance(step, Netns)}
    if node not in nodes:
        raise InputError(
            f"lab {journal.plan.lab!r} has no node {node!r}; it has: {', '.join(nodes)}"
        )
    return nodes[node]


def replace_process(netns: str, command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Become `command` in a namespace; /sys shows that namespace's links.

    Raises:
        InputError: there is no such program.
    """
    namespaces.enter(netns)
    syscalls.own_mounts()
    syscalls.mount_own_sysfs()
    try:
        os.execvpe(command[0], list(command), os.environ | environment)  # noqa: S606
    except OSError as error:
        raise InputError(f"run {command[0]}: {error.strerror}") from error
