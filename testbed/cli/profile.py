"""`testbed profile`: what each generation of vMotion is modelled as, and how that is known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from testbed.cli.topology import AS_JSON

if TYPE_CHECKING:
    from testbed.profiles import Profile


@click.command("profile")
@click.argument("name", required=False)
@AS_JSON
def profile_command(name: str | None, as_json: bool) -> None:
    """List the profiles, or show one: its values, and how each is known.

    NAME is one of the list, or the path of your own (mine.yaml). A value is sourced, or calibrated
    on a row of the published figures, or assumed. A topology names its profile by the key profile.
    """
    from testbed import profiles

    if name is None:
        found = [profiles.load(one) for one in profiles.names()]
        if as_json:
            click.echo(json.dumps([one.to_json() for one in found], indent=2))
        else:
            _list(found)
        return
    profile = profiles.load(name)
    if as_json:
        click.echo(json.dumps(profile.to_json(), indent=2))
    else:
        _show(profile)


def _list(found: list[Profile]) -> None:
    """One line each, of what tells them apart."""
    from rich.table import Table

    from testbed.profiles.keys import KEYS

    keys = ("window", "vmks", "cycles_per_byte", "cycles_per_packet", "trace", "rtt_limit")
    table = Table("profile", *keys, "converges by", "bitmap", "encryption", "concurrent")
    for one in found:
        table.add_row(
            one.name,
            *(KEYS[key].show(getattr(one, KEYS[key].field)) for key in keys),
            "SDPS" if one.sdps else "Quick Resume" if one.quick_resume else "",
            one.bitmap or "none",
            one.encryption,
            f"{one.concurrent_1gbe} / {one.concurrent_10gbe}",
        )
    _print(table)


def _show(profile: Profile) -> None:
    from rich.table import Table

    from testbed.profiles.keys import KEYS

    table = Table("key", "value", "", "because of", "in", "what it is", title=profile.name)
    for name, key in KEYS.items():
        origin = profile.sources[key.field]
        value = key.show(getattr(profile, key.field))
        place = f"{origin.given_by}:{origin.line}"
        table.add_row(name, value, origin.kind, origin.basis, place, key.meaning)
    _print(table)


def _print(table: object) -> None:
    from rich.console import Console

    console = Console()
    # A pipe or a file has no width of its own.
    console = Console(width=console.width if console.is_terminal else 180)
    console.print(table)
