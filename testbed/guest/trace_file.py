"""A file of page writes over time: who wants to replay one writes it, or has it recorded.

    # comments and empty lines are left out
    at_s,until_s,first_page,pages,rate
    0,1.5,0,25600,100MB/s
    1.5,2,4096,128,512kB/s

From `at_s` to `until_s`, seconds since the trace began, the pages first_page, first_page + 1 ..
are written in order, again and again, at `rate`: page writes x 4096 bytes a second, a quantity
with its unit. Pages count from the first that is not the guest's own state.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from testbed.errors import InputError, Problem
from testbed.guest.workloads import TraceRange
from testbed.units import parse_rate_bytes_per_s

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = ("at_s", "until_s", "first_page", "pages", "rate")
_HEADER = ",".join(COLUMNS)
_TIME = re.compile(r"(?P<whole>[0-9]{1,6})(?:\.(?P<part>[0-9]{1,9}))?")
_MOST_DIGITS = 12


class _RowError(ValueError):
    """What is wrong with one value: column, cause, remedy."""

    def __init__(self, column: str, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.column, self.remedy = column, remedy


def parse(text: str, file: str) -> tuple[TraceRange, ...]:
    """The ranges of a trace, in the order of the file, whose name is for the messages.

    Raises:
        InputError: it has mistakes; all of them are told, each with its line.
    """
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    ranges: list[TraceRange] = []
    problems: list[Problem] = []
    if not lines or [name.strip() for name in lines[0][1].split(",")] != list(COLUMNS):
        number = lines[0][0] if lines else 1
        cause = "no header" if not lines else f"{_quote(lines[0][1])} is not the header"
        problems.append(Problem(file, number, 1, "", cause, f"begin with the line {_HEADER}"))
    for number, line in lines[1:]:
        row, found = _row(line)
        for error in found:
            column = _column(line, error.column)
            problems.append(Problem(file, number, column, error.column, str(error), error.remedy))
        ranges += [row] if row else []
    if not problems and not ranges:
        cause = "the trace has no range"
        problems.append(Problem(file, lines[0][0], 1, "", cause, f"give one: {_HEADER}"))
    if problems:
        raise InputError("\n".join(map(str, sorted(problems))))
    return tuple(ranges)


def render(ranges: tuple[TraceRange, ...], comment: str = "") -> str:
    """The text of a trace, which `parse` takes back as it was."""
    comments = (f"# {line}".rstrip() for line in comment.splitlines())
    rows = (
        f"{_seconds(one.at_ns)},{_seconds(one.until_ns)},{one.first_page},{one.pages},"
        f"{one.rate_bytes_per_s}B/s"
        for one in ranges
    )
    return "\n".join((*comments, _HEADER, *rows, ""))


def read(path: Path) -> tuple[TraceRange, ...]:
    """The ranges of a trace file.

    Raises:
        InputError: there is no such file, or it has mistakes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text"
        remedy = "name a trace file, or record one"
        raise InputError(f"read trace {path}: {cause}; {remedy}") from error
    return parse(text, str(path))


def _row(line: str) -> tuple[TraceRange | None, list[_RowError]]:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(COLUMNS):
        cause = f"{len(fields)} values where there are {len(COLUMNS)} columns"
        return None, [_RowError("", cause, f"give {_HEADER}")]
    errors: list[_RowError] = []
    values: list[int] = []
    for column, field in zip(COLUMNS, fields, strict=True):
        try:
            values.append(_value(column, field))
        except _RowError as error:
            errors.append(error)
    if errors:
        return None, errors
    row = TraceRange(*values)
    if row.until_ns <= row.at_ns:
        cause = f"it ends at {fields[1]} s, but begins at {fields[0]} s"
        return None, [_RowError("until_s", cause, "let it end later")]
    return row, []


def _value(column: str, field: str) -> int:
    if column == "rate":
        try:
            value = parse_rate_bytes_per_s(field)
        except ValueError as error:
            cause, _, remedy = str(error).partition("; ")
            raise _RowError(column, cause, remedy) from None
    elif column.endswith("_s"):
        value = _nanoseconds(column, field)
    elif field.isascii() and field.isdigit() and len(field) <= _MOST_DIGITS:
        value = int(field)
    else:
        raise _RowError(column, f"{_quote(field)} is not a whole number", "write it like 4096")
    if value < (column in {"rate", "pages"}):
        raise _RowError(column, f"{field} writes nothing", "give at least 1, or leave the line out")
    return value


def _nanoseconds(column: str, field: str) -> int:
    found = _TIME.fullmatch(field)
    if found is None:
        remedy = "write seconds since the beginning, like 1.5"
        raise _RowError(column, f"{_quote(field)} is not a time", remedy)
    return int(found["whole"]) * 10**9 + int((found["part"] or "").ljust(9, "0"))


def _seconds(time_ns: int) -> str:
    whole, part = divmod(time_ns, 10**9)
    return f"{whole}.{part:09d}".rstrip("0").rstrip(".")


def _column(line: str, name: str) -> int:
    """Where the value begins, counted from 1."""
    before = COLUMNS.index(name) if name else 0
    return 1 + sum(len(field) + 1 for field in line.split(",")[:before])


def _quote(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:37]!r}..."
