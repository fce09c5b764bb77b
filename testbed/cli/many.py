"""Several migrations on one screen: a line for each, a table of all, a file of the whole."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.table import Table

    from testbed.lab.directory import LabDirectory
    from testbed.lab.lines import Message
    from testbed.report.progress import Update
    from testbed.report.result import MigrationResult

_SUMMARY_VERSION = 1


@dataclass(slots=True)
class Ended:
    """How one migration ended: its result and the file that it is in, or why it was not begun."""

    vm: str
    to: str
    result: MigrationResult | None = None
    refused: str = ""
    file: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the VM arrived as asked for."""
        from testbed.report.figures import succeeded

        return self.result is not None and succeeded(self.result)


@dataclass(frozen=True, slots=True)
class Carried:
    """How each migration ended, in the order in which they did, and what the supervisor answered.

    `cancelled`: Ctrl-C was pressed.
    """

    ended: list[Ended]
    answer: Message
    cancelled: bool

    @property
    def succeeded(self) -> bool:
        """Whether every VM arrived as asked for."""
        return all(one.succeeded for one in self.ended)


def carry_out(directory: LabDirectory, message: Message, results: Path | None) -> Carried:
    """Have a lab do several migrations, show them, and write what came of each and of all.

    Args:
        directory: the lab's.
        message: for its supervisor.
        results: where the files go; None: nowhere.
    """
    from testbed.lab.client import request
    from testbed.report.store import from_json

    ended: list[Ended] = []
    interrupted: list[bool] = []
    started_ns = time.monotonic_ns()

    def interrupt() -> None:
        interrupted.append(True)
        click.echo("cancelling what can be cancelled; Ctrl-C again stops waiting", err=True)

    with _display() as show:

        def heed(event: Message) -> None:
            if event["event"] == "ended":
                one = Ended(event["vm"], event["to"])
                if "result" in event:
                    one.result = from_json(event["result"], f"lab {directory.name}")
                    one.file = _write(one.result, results) if results is not None else None
                else:
                    one.refused = event["error"]["message"]
                ended.append(one)
            show(event)

        answer = request(directory, message, on_event=heed, on_interrupt=interrupt)
    elapsed_ns = time.monotonic_ns() - started_ns
    if ended:
        _show_table(ended, elapsed_ns)
    if results is not None and ended:
        click.echo(f"all: {_write_all(ended, elapsed_ns, directory.name, results)}")
    return Carried(ended, answer, bool(interrupted))


def update_of(event: Message) -> Update:
    """The engine's progress as a display takes it."""
    from testbed.report.progress import Update

    total, left = event["pages_to_copy"], event["pages_left"]
    phase = event["phase"] if event["phase"] != "pre-copy" else str(event["iteration"])
    return Update(
        phase=phase,
        pages_done=total - left,
        pages_total=total,
        throughput_bps=event["throughput_bps"],
        pages_left=left,
        dirty_rate_bytes_per_s=event["dirty_rate_bytes_per_s"] or None,
    )


def _said(event: Message) -> str:
    """What an event tells that is no progress."""
    if event["event"] == "queued":
        return f"waits for its turn: {event['cause']}"
    if event["event"] == "waiting":
        return "waits: another change of this lab is under way"
    if "error" in event:
        return f"not begun: {event['error']['message']}"
    result = event["result"]
    if result["failure"] is not None:
        return f"failed in phase {result['failure']['phase']}: {result['failure']['cause']}"
    return f"is on {result['destination']}"


@contextmanager
def _display() -> Iterator[Callable[[Message], None]]:
    """A bar for each migration on a terminal; elsewhere a line for each phase of each."""
    with (_bars if sys.stderr.isatty() else _lines)() as show:
        yield show


@contextmanager
def _lines() -> Iterator[Callable[[Message], None]]:
    from testbed.report.progress import line

    last: dict[str, Update] = {}

    def show(event: Message) -> None:
        vm = event["vm"]
        before = last.get(vm)
        if event["event"] == "progress":
            last[vm] = now = update_of(event)
            if before is not None and before.phase != now.phase:
                click.echo(f"{vm}: {line(before)}", err=True)
        elif event["event"] in {"queued", "waiting", "ended"}:
            if before is not None:
                click.echo(f"{vm}: {line(before)}", err=True)
            click.echo(f"{vm}: {_said(event)}", err=True)

    yield show


@contextmanager
def _bars() -> Iterator[Callable[[Message], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

    from testbed.report.progress import line

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as drawn:
        tasks: dict[str, TaskID] = {}

        def show(event: Message) -> None:
            vm = event["vm"]
            if vm not in tasks:
                tasks[vm] = drawn.add_task(vm, total=None, said="")
            if event["event"] == "progress":
                now = update_of(event)
                drawn.update(
                    tasks[vm], total=now.pages_total, completed=now.pages_done, said=line(now)
                )
            elif event["event"] in {"queued", "waiting", "ended"}:
                drawn.update(tasks[vm], said=_said(event))

        yield show


def _write(result: MigrationResult, directory: Path) -> str:
    from testbed.report import page, store

    stored = store.write(result, directory)
    page.write_page(result, stored.with_suffix(".html"))
    return str(stored)


def _show_table(ended: list[Ended], elapsed_ns: int) -> None:
    from rich.console import Console

    from testbed.units import format_duration, format_rate

    Console().print(table(ended))
    arrived = [one.result for one in ended if one.succeeded and one.result is not None]
    total = sum(result.guest.memory_bytes for result in arrived)
    words = f"{len(arrived)} of {len(ended)} VMs moved in {format_duration(elapsed_ns)}"
    if total:
        words += f"; {format_rate(total * 8e9 / elapsed_ns)} of guest memory, all together"
    click.echo(words)


def table(ended: list[Ended]) -> Table:
    """A row for each migration."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from testbed.report.figures import copying_bps, precopy
    from testbed.units import format_duration, format_rate

    found = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(("VM", "From", "To", "Time", "Throughput", "Stun", "Outcome")):
        found.add_column(column, justify="right" if number in {3, 4, 5} else "left")
    for one in ended:
        result, engine = one.result, one.result and one.result.engine
        stun_ns = engine.stun_ns if engine else None
        cells = (
            one.vm,
            result.source if result else "-",
            one.to,
            format_duration(engine.total_ns) if engine else "-",
            format_rate(copying_bps(engine)) if engine and precopy(engine) else "-",
            format_duration(stun_ns) if stun_ns is not None else "-",
            _outcome(one),
        )
        found.add_row(*map(Text, cells), style="" if one.succeeded else "red")
    return found


def _outcome(one: Ended) -> str:
    if one.result is None:
        return f"not begun: {one.refused}"
    if one.result.failure is not None:
        return f"failed in phase {one.result.failure.phase}: {one.result.failure.cause}"
    return "completed" if one.succeeded else "completed, but see its result"


def _write_all(ended: list[Ended], elapsed_ns: int, lab: str, directory: Path) -> Path:
    """The whole in one file, which names those of each."""
    from testbed import __version__
    from testbed.report.files import write_new

    now = datetime.now(UTC).isoformat(timespec="seconds")
    whole: dict[str, Any] = {
        "schema_version": _SUMMARY_VERSION,
        "kind": "migrations",
        "testbed_version": __version__,
        "created": now,
        "command": " ".join(["testbed", *sys.argv[1:]]),
        "lab": lab,
        "elapsed_ns": elapsed_ns,
        "migrations": [
            {
                "vm": one.vm,
                "source": one.result.source if one.result else None,
                "destination": one.to,
                "outcome": one.result.outcome if one.result else "not begun",
                "cause": _outcome(one) if not one.succeeded else None,
                "total_ns": one.result.engine.total_ns
                if one.result and one.result.engine
                else None,
                "stun_ns": one.result.engine.stun_ns if one.result and one.result.engine else None,
                "result": one.file,
            }
            for one in ended
        ],
    }
    stem = f"{now.replace(':', '')}-{lab}-migrations"
    return write_new(directory, stem, ".json", json.dumps(whole, indent=2) + "\n")
