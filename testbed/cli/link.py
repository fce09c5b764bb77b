"""`testbed link`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


@click.command("link")
@click.argument("lab")
@click.argument("a")
@click.argument("b")
@click.option("--rtt", metavar="TIME", help="Round trip; half of it each way.")
@click.option("--latency", metavar="TIME", help="One way, in both directions.")
@click.option("--jitter", metavar="TIME", help="Plus or minus, at most the latency.")
@click.option("--loss", metavar="PERCENT", help="Of the frames, in each direction.")
@click.option("--rate", metavar="RATE", help="As in the topology, scaled with it.")
@click.option("--mtu", type=int, help="Of both ends; a narrow hop drops what is longer.")
@click.option("--down/--up", "down", default=None, help="Cut the link, or restore it.")
@click.option("--for", "duration", metavar="TIME", help="Take the change back after this time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def link_command(lab: str, a: str, b: str, **options: Any) -> None:
    """Change the link between A and B of a running LAB.

    A and B are two physical switches, or a host (or its vmnic: esx01/vmnic0) and its switch.
    What changes a link's description holds until it is changed again, or until `apply`. A link
    that gets its first latency is made anew, which interrupts it for a moment.
    """
    from testbed.errors import InputError
    from testbed.lab.client import request
    from testbed.lab.enter import running_lab
    from testbed.lab.link_change import LinkChange
    from testbed.lab.privilege import require_root
    from testbed.units import format_duration, parse_duration_ns

    if options["rtt"] is not None and options["latency"] is not None:
        raise InputError("--rtt and --latency say the same: give one of them")
    latency = _parsed("latency", options["latency"], parse_duration_ns)
    rtt = _parsed("rtt", options["rtt"], parse_duration_ns)
    for_ns = _parsed("for", options["duration"], parse_duration_ns)
    down = options["down"]
    directory, journal = running_lab(lab)
    change = LinkChange(
        ends=(a, b),
        delay_ns=latency if rtt is None else rtt // 2,
        jitter_ns=_parsed("jitter", options["jitter"], parse_duration_ns),
        loss=_parsed("loss", options["loss"], _share),
        rate_bps=_parsed("rate", options["rate"], _rate(journal)),
        mtu=options["mtu"],
        up=None if down is None else not down,
    )
    if change == LinkChange((a, b)):
        raise InputError("link: nothing to change; give --down, --up, --rtt or another option")
    if change.mtu is not None and not 68 <= change.mtu <= 65535:
        raise InputError(f"--mtu {change.mtu}: give 68 to 65535")
    require_root(f"link {lab} {a} {b}")
    said = request(
        directory,
        {"command": "link", "change": change.to_json(), "for_ns": for_ns},
        timeout_s=60 + (for_ns or 0) / 1e9,
    )
    if options["as_json"]:
        click.echo(json.dumps(said, indent=2))
        return
    for line in said["changed"] or ["nothing to do: the link is like that"]:
        click.echo(line)
    if said["held_ns"] is not None:
        click.echo(f"taken back after {format_duration(said['held_ns'])}")


def _parsed(name: str, text: str | None, parse: Callable[[str], Any]) -> Any:
    from testbed.errors import InputError

    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(f"--{name}: {error}") from error


def _share(text: str) -> float:
    from testbed.units import parse_percent

    share = float(parse_percent(text))
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is not from 0% to 100%")
    return share


def _rate(journal: Any) -> Callable[[str], int]:
    """Rates as the file has them: scaled like those."""

    def parse(text: str) -> int:
        from testbed.units import parse_rate_bps

        scale = journal.topology().scale
        rate = int(parse_rate_bps(text) * scale)
        if rate < 8000:
            raise ValueError(f"{text} at scale {scale} is less than 8 kbit/s")
        return rate

    return parse
