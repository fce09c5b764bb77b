"""Progress of a running migration: a bar on a terminal, one line a phase elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from testbed.units import format_byte_rate, format_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class Update:
    """Where a migration is: `pages_done` of `pages_total` of this phase are across.

    `pages_left` counts what is known to be still to send; `dirty_rate_bytes_per_s` is that of
    the last scan, None before the first.
    """

    phase: str
    pages_done: int
    pages_total: int
    throughput_bps: float
    pages_left: int
    dirty_rate_bytes_per_s: float | None = None


def line(update: Update) -> str:
    """An update as one line of text."""
    return (
        f"phase {update.phase}: {update.pages_done:,} of {update.pages_total:,} pages, "
        f"{_readings(update)}"
    )


def _readings(update: Update) -> str:
    dirty = update.dirty_rate_bytes_per_s
    return (
        f"{format_rate(update.throughput_bps)}, {update.pages_left:,} pages left, "
        f"dirty rate {'not known yet' if dirty is None else format_byte_rate(dirty)}"
    )


@contextmanager
def progress(stream: TextIO) -> Iterator[Callable[[Update], None]]:
    """Gives a function to call with every update, from one thread.

    On a terminal it draws a bar; elsewhere each phase is printed once, when the next begins
    or the migration ends, so that a log stays short.
    """
    draw = _bar if stream.isatty() else _lines
    with draw(stream) as show:
        yield show


@contextmanager
def _lines(stream: TextIO) -> Iterator[Callable[[Update], None]]:
    last: Update | None = None

    def write(update: Update) -> None:
        stream.write(line(update) + "\n")
        stream.flush()

    def show(update: Update) -> None:
        nonlocal last
        if last is not None and last.phase != update.phase:
            write(last)
        last = update

    try:
        yield show
    finally:
        if last is not None:
            write(last)


@contextmanager
def _bar(stream: TextIO) -> Iterator[Callable[[Update], None]]:
    from rich.console import Console  # noqa: PLC0415 - takes 60 ms, only a terminal needs it
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn  # noqa: PLC0415

    columns = (
        TextColumn("phase {task.description:>4}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[readings]}"),
    )
    with Progress(*columns, console=Console(file=stream), expand=True) as drawn:
        task = drawn.add_task("", total=None, readings="")

        def show(update: Update) -> None:
            drawn.update(
                task,
                description=update.phase,
                total=update.pages_total,
                completed=update.pages_done,
                readings=_readings(update),
            )

        yield show
