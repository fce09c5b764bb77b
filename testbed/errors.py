"""The exception family: every error says what was tried, on what, why it failed and what to do."""

from __future__ import annotations

from dataclasses import dataclass


class TestbedError(Exception):
    """Any failure that the user is told about in one message, without a traceback."""

    __test__ = False  # its name is not a test case's
    exit_code = 1


class InputError(TestbedError):
    """What the user gave is wrong; nothing has been touched."""

    exit_code = 2


class PrivilegeError(TestbedError):
    """The command needs root."""

    exit_code = 2


class LabError(TestbedError):
    """The lab is not in a state in which the command can be carried out."""


class MigrationError(TestbedError):
    """A migration failed; the message names the phase and the cause."""


class MeasurementError(TestbedError):
    """A measurement did not complete, so it has no result."""


class KernelError(TestbedError):
    """The kernel refused a step, or did not keep what it was given.

    Args:
        attempt: what was tried, in the infinitive ("create veth").
        target: the object ("vmnic0 <-> esx01-vmnic0 in lab.esx01").
        cause: the kernel's own words.
        remedy: what the user can do next.
    """

    def __init__(self, attempt: str, target: str, cause: str, remedy: str = "") -> None:
        self.attempt, self.target, self.cause, self.remedy = attempt, target, cause, remedy
        super().__init__(f"{attempt} {target}: {cause}" + (f"; {remedy}" if remedy else ""))


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in a topology file.

    `line` and `column` count from 1; `where` is the object's path in the file
    (`hosts.esx01.nics.vmnic0.rate`).
    """

    file: str
    line: int
    column: int
    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        where = f"{self.where}: " if self.where else ""
        return f"{place}: {where}{self.message}; {self.remedy}"


class TopologyError(InputError):
    """A topology file with mistakes, all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))
