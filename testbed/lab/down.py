"""Takes a lab down: what its journal and its tags name, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.errors import LabError
from testbed.kernel import netns, processes
from testbed.lab.directory import LabDirectory
from testbed.lab.journal import Journal
from testbed.lab.launch import kill_supervisor
from testbed.lab.privilege import require_root
from testbed.plan.names import owner_of
from testbed.plan.steps import Netns


@dataclass(frozen=True, slots=True)
class TakenDown:
    """What `down` removed."""

    namespaces: tuple[str, ...]
    processes: tuple[int, ...]
    supervisor: bool

    def __bool__(self) -> bool:
        return bool(self.namespaces or self.processes or self.supervisor)


def down(name: str) -> TakenDown:
    """Take a lab down, in whatever state it is; a lab that isn't there is no error.

    Raises:
        PrivilegeError: not root.
        LabError: another command is changing it, or a process of it can't be ended.
    """
    require_root(f"down {name}")
    directory = LabDirectory(name)
    with directory.locked():
        return take_down(directory)


def take_down(directory: LabDirectory) -> TakenDown:
    """The same, for a caller that holds the lab's lock.

    A namespace is the lab's if the journal names it or its own name carries the lab's tag.
    Processes in those namespaces are the lab's, whoever started them: they would keep it
    alive.
    """
    supervisor = kill_supervisor(directory)
    try:
        journaled = {
            step.name
            for step in Journal.read(directory.journal).plan.steps
            if isinstance(step, Netns)
        }
    except LabError:
        journaled = set()  # the tags tell
    ours = [n for n in netns.names() if n in journaled or owner_of(n) == directory.name]
    inside = processes.end_in(ours)
    for name in ours:
        netns.remove(name)
    directory.remove()
    return TakenDown(tuple(ours), inside, supervisor)
