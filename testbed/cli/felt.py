"""What a VM feels: the options of `testbed migrate` about it, and `testbed vm NAME feel`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from testbed.report.felt import Felt

DEFAULT_INTERVAL, DEFAULT_LATE = "10ms", "100ms"
LEAST_INTERVAL_NS, MOST_INTERVAL_NS = 10**6, 10**9
AROUND_NS = 10**9
"""Felt for so long before a migration and after it, if it was asked for."""

FROM = click.option(
    "--from",
    "client",
    metavar="CLIENT[:VMK]",
    help="Another VM, or a host and its vmk: pings from there, and one client for each of the "
    "VM's services (web, media, echo).",
)
LATE = click.option(
    "--late",
    metavar="TIME",
    help="A ping answered after this long is late, 100ms if left out; with --from.",
)


def probe_request(
    interval: str | None, client: str | None, late: str | None, *, around: bool = True
) -> dict[str, Any] | None:
    """What the supervisor is asked to feel, and how; None for `off`.

    Args:
        interval: as the user gave it; None: the default.
        client: from where.
        late: when a ping is; None: the default.
        around: also for a second before and after, where the user asked for anything.

    Raises:
        InputError: a time that is none, or out of range, or means nothing beside the others.
    """
    from testbed.errors import InputError

    if late is not None and client is None:
        raise InputError(f"--late {late}: it is about pings; add --from CLIENT")
    if interval == "off":
        if client is not None:
            raise InputError(f"--probe off and --from {client}: give one of them only")
        return None
    interval_ns = _duration_ns("an interval", interval or DEFAULT_INTERVAL)
    late_ns = _duration_ns("--late", late or DEFAULT_LATE)
    if not LEAST_INTERVAL_NS <= interval_ns <= MOST_INTERVAL_NS:
        raise InputError(f"an interval of {interval}: give 1ms to 1s, such as 10ms")
    if late_ns < LEAST_INTERVAL_NS:
        raise InputError(f"--late {late}: give 1ms or more")
    asked = interval is not None or client is not None
    return {
        "interval_ns": interval_ns,
        "from": client,
        "late_after_ns": late_ns,
        "around_ns": AROUND_NS if around and asked else 0,
    }


def _duration_ns(what: str, text: str) -> int:
    from testbed.errors import InputError
    from testbed.units import parse_duration_ns

    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise InputError(f"{what}: {error}") from error


def feel(
    lab: str | None,
    vm: str,
    *,
    for_time: str,
    interval: str,
    client: str | None,
    late: str | None,
    as_json: bool,
) -> None:
    """Feel for a VM for a time and print what was felt; Ctrl-C ends it early.

    Raises:
        InputError: a time, VM or client that is none.
        LabError: the VM has failed, or nothing could be measured.
    """
    from testbed.errors import InputError, LabError
    from testbed.lab.client import request
    from testbed.lab.enter import running_lab
    from testbed.lab.privilege import require_root
    from testbed.report.store import felt_from_json

    asked = probe_request(interval, client, late, around=False)
    for_ns = _duration_ns("--for", for_time)
    if asked is None or for_ns < asked["interval_ns"]:
        raise InputError(f"--for {for_time} --interval {interval}: feel for one interval or more")
    require_root(f"vm {vm} feel")
    directory, _ = running_lab(lab)
    answer = request(
        directory,
        {"command": "feel", "vm": vm, "for_ns": for_ns, "probe": asked},
        on_interrupt=lambda: None,
    )
    felt = felt_from_json(answer, f"lab {directory.name}")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        show(felt)
    if felt.guest is None:
        raise LabError(f"feel {vm}: {'; '.join(felt.troubles)}")


def show(felt: Felt) -> None:
    """Print what was felt, a line for each figure."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from testbed.report.felt_page import felt_figures

    table = Table(box=None, show_header=False, pad_edge=False)
    for figure in felt_figures(felt):
        table.add_row(Text(figure.name), Text(figure.value))
    Console().print(table)
