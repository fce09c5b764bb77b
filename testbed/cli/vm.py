"""`testbed vm`: what a VM does, and what it is told to do while it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from testbed.cli.felt import DEFAULT_INTERVAL, FROM, LATE, feel
from testbed.cli.measure import AS_JSON, LAB
from testbed.cli.vm_words import FORMS, refuse_options, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from testbed.lab.lines import Message


@click.command("vm")
@click.argument("vm", metavar="NAME")
@click.argument("words", nargs=-1, metavar="[workload ...|throttle SHARE|record FILE|feel]")
@click.option(
    "--for", "duration", metavar="TIME", help="With record and feel: for how long; feel 10s."
)
@click.option(
    "--interval", metavar="TIME", help="Between samples; 100ms with record, 10ms with feel."
)
@FROM
@LATE
@LAB
@AS_JSON
@click.pass_context
def vm_command(
    context: click.Context,
    vm: str,
    words: tuple[str, ...],
    duration: str | None,
    interval: str | None,
    client: str | None,
    late: str | None,
    lab: str | None,
    as_json: bool,
) -> None:
    """Show VM NAME with its vCPUs and workloads, or tell it what to do.

    \b
    testbed vm db01
    testbed vm db01 workload oltp commits=500 working_set=20% + web port=8080
    testbed vm db01 throttle 50%             (each vCPU gets half of its time; off: all)
    testbed vm db01 record --for 10s db01.csv         (or until Ctrl-C)
    testbed vm db01 feel --for 10s --from client    (its operations, halts and pings meanwhile)

    Workloads have the keys of the topology file and are scaled as there. They hold until they are
    changed again, or until 'apply'; a migration takes them along. A recorded trace can be
    replayed: workload replay trace=db01.csv.
    """  # noqa: D301  (click wants the character)
    from testbed.errors import InputError

    refuse_options(context, vm, words[0] if words else None)
    match words:
        case ():
            _show(lab, vm, as_json)
        case ("workload", _, *_):
            _switch(lab, vm, words[1:], as_json)
        case ("throttle", share):
            _throttle(lab, vm, share)
        case ("record", file):
            if duration is None:
                raise InputError(f"vm {vm} record: for how long? write --for 10s")
            _record(lab, vm, Path(file), (duration, interval or "100ms"))
        case ("feel",):
            feel(lab, vm, for_time=duration or "10s", interval=interval or DEFAULT_INTERVAL,
                 client=client, late=late, as_json=as_json)  # fmt: skip
        case (word, *_):
            form = FORMS.get(word)
            wanted = [form] if form else list(FORMS.values())
            raise InputError(f"vm {vm} {' '.join(words)}: write {' or '.join(wanted)}")


def _ask(
    lab: str | None,
    command: str,
    message: Message,
    on_interrupt: Callable[[], None] | None = None,
) -> Message:
    """Have the lab's supervisor do something about a VM; `on_interrupt` as `client.request`."""
    from testbed.lab.client import request
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root

    require_root(f"vm {message['vm']}")
    directory, _ = running_lab(lab)

    def heed(event: Message) -> None:
        if event["event"] == "waiting":
            click.echo("waiting: another change of this lab is under way", err=True)

    return request(
        directory, {"command": command, **message}, on_event=heed, on_interrupt=on_interrupt
    )


def _switch(lab: str | None, vm: str, words: tuple[str, ...], as_json: bool) -> None:
    from testbed import topology
    from testbed.errors import InputError, TopologyError
    from testbed.guest.workloads import to_json
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root

    require_root(f"vm {vm} workload")
    _, journal = running_lab(lab)
    standing = journal.topology()
    names = [one.name for one in standing.vms]
    if vm not in names:
        raise InputError(f"there is no VM {vm!r}; there are: {', '.join(names) or 'none'}")
    try:
        wanted = topology.with_workloads(standing, vm, written(words)).vm(vm).workloads
    except TopologyError as error:
        told = (
            f"{one.where.removeprefix(f'vms.{vm}.')}: {one.message}; {one.remedy}"
            for one in error.problems
        )
        raise InputError(f"vm {vm} workload {' '.join(words)}:\n" + "\n".join(told)) from error
    message = {"vm": vm, "workloads": [to_json(one) for one in wanted]}
    said = _ask(lab, "workload", message)
    click.echo(json.dumps(said, indent=2) if as_json else f"{vm} does {said['workload']}")


def _throttle(lab: str | None, vm: str, share: str) -> None:
    from testbed.errors import InputError
    from testbed.units import parse_percent

    sleep_ns = 0
    if share != "off":
        try:
            wanted = parse_percent(share)
        except ValueError as error:
            raise InputError(f"vm {vm} throttle: {error}; or off") from error
        if wanted * 100 < 1:
            raise InputError(f"vm {vm} throttle {share}: leave it 1% or more")
        sleep_ns = round(10**6 * (1 - wanted) / wanted)
    _ask(lab, "throttle", {"vm": vm, "sleep_ns_per_ms": sleep_ns or None})
    click.echo(f"{vm} runs freely" if not sleep_ns else f"each vCPU of {vm} gets {share}")


def _record(lab: str | None, vm: str, file: Path, times: tuple[str, str]) -> None:
    from testbed.cli.reach import duration_ns
    from testbed.errors import InputError
    from testbed.guest.recording import MOST_RANGES
    from testbed.guest.trace_file import render
    from testbed.guest.workloads import TraceRange
    from testbed.lab.enter import running_lab
    from testbed.report.files import write_new
    from testbed.units import format_duration

    duration, interval = duration_ns(times[0], "--for"), duration_ns(times[1], "--interval")
    if not 0 < interval <= duration:
        raise InputError(f"--interval {times[1]}: give more than nothing, and at most --for")
    if duration // interval > MOST_RANGES:
        raise InputError(
            f"--for {times[0]} --interval {times[1]}: a trace has at most {MOST_RANGES} intervals;"
            " make them longer, or record for a shorter time"
        )
    if file.exists():
        raise InputError(f"{file} is there already; name a new file")
    message = {"vm": vm, "duration_ns": duration, "interval_ns": interval}
    said = _ask(lab, "record", message, lambda: None)  # after Ctrl-C: what there is by then
    _, journal = running_lab(lab)
    factor = journal.topology().scale.denominator  # a file has nominal figures
    ranges = tuple(
        TraceRange(
            one["at_ns"],
            one["until_ns"],
            one["first_page"] * factor,
            one["pages"] * factor,
            one["rate_bytes_per_s"] * factor,
        )
        for one in said["ranges"]
    )
    if not ranges:
        click.echo(f"{vm} wrote nothing in {times[0]}; no trace is written", err=True)
        return
    length = format_duration(ranges[-1].until_ns)  # shorter than asked for, after Ctrl-C
    text = render(ranges, f"{vm} of lab {journal.plan.lab}, {length}, every {times[1]}")
    stored = write_new(file.parent, file.stem, file.suffix, text)
    click.echo(f"{stored}: {len(ranges)} ranges")


def _show(lab: str | None, vm: str, as_json: bool) -> None:
    from rich.console import Console

    from testbed.units import format_size

    status = _ask(lab, "vm", {"vm": vm})
    if as_json:
        click.echo(json.dumps(status, indent=2))
        return
    console = Console()
    console = Console(width=console.width if console.is_terminal else 160, highlight=False)
    memory = f"{format_size(status['memory_bytes'])} of {status['backing']} memory"
    console.print(
        f"[bold]{vm}[/bold] on {status['host']} is {status['state']}: {memory} in pages of"
        f" {format_size(status['page_bytes'])}, datastore {status['datastore']}"
    )
    counters = status["counters"]
    if counters is not None:
        _show_counters(console, status, counters)
    if status["trouble"]:
        console.print(f"trouble: {status['trouble']}", markup=False)


def _show_counters(console: Console, status: dict[str, Any], counters: dict[str, Any]) -> None:
    from rich.table import Table

    from testbed.units import format_duration, format_size

    pages = f"{counters['zero_pages']:,} zero pages"
    if counters["swap"]:
        pages += f", {counters['swap']['swapped_pages']:,} pages swapped"
    console.print(f"{pages}; dirty tracking: {counters['tracking']}")
    throttle = status["throttle_sleep_ns_per_ms"]
    if throttle:
        console.print(f"throttled to {100 / (1 + throttle / 1e6):.3g} % of its time")
    vcpus = Table("vCPU", "process", "runs", "idle", "throttled", "stopped", "resumed")
    for number, (one, pid) in enumerate(zip(counters["vcpus"], counters["vcpu_pids"], strict=True)):
        times = [one[f"{what}_ns"] for what in ("run", "idle", "throttled", "stopped")]
        shares = [f"{100 * time / (sum(times) or 1):.1f} %" for time in times]
        vcpus.add_row(str(number), str(pid), *shares, str(one["resumes"] - 1))
    console.print(vcpus)
    work = Table("workload", "operations", "bytes", "pages written", "mean latency", "longest")
    for one, counted in zip(status["workloads"], counters["workloads"], strict=True):
        operations = counted["operations"]
        mean = format_duration(counted["latency_sum_ns"] / operations) if operations else "-"
        work.add_row(
            one["text"],
            f"{operations:,}",
            format_size(counted["bytes"]),
            f"{counted['pages_written']:,}",
            mean if counted["latency_max_ns"] else "-",
            format_duration(counted["latency_max_ns"]) if counted["latency_max_ns"] else "-",
        )
    for column in work.columns:
        column.overflow = "fold"
    if status["workloads"]:
        console.print(work)
