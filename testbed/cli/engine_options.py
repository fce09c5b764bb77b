"""How a migration is to be carried out: options that `migrate` and `evacuate` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--switchover-goal",
        metavar="TIME",
        help="Stun the guest when the rest can be sent within this time; the profile's if left"
        " out, 500ms of most.",
    ),
    click.option(
        "--profile",
        metavar="NAME",
        help="Behave as this generation in place of the hosts' own profiles: see 'testbed"
        " profile'.",
    ),
    click.option(
        "--encryption",
        type=click.Choice(["disabled", "opportunistic", "required"]),
        help="In place of the profile's; refused where a host can't, or must.",
    ),
    click.option(
        "--quick-resume/--no-quick-resume",
        default=None,
        help="Whether the guest may run before all of its pages are there.",
    ),
    click.option(
        "--sdps/--no-sdps",
        default=None,
        help="Whether the guest is slowed down if pre-copy does not converge.",
    ),
    click.option(
        "--streams",
        type=click.IntRange(1, 32),
        help="Stream helpers for each pair of adapters, in place of the profile's.",
    ),
    click.option("--timeout", metavar="TIME", help="Give up if it takes longer than this."),
    click.option(
        "--downtime-limit",
        metavar="TIME",
        help="Give up rather than stun the guest for longer than this, by estimate.",
    ),
    click.option("--force", is_flag=True, help="Move over the profile's limit of the round trip."),
)


def engine_options(command: F) -> F:
    """Give a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def engine_request(
    *,
    switchover_goal: str | None,
    profile: str | None,
    encryption: str | None,
    quick_resume: bool | None,
    sdps: bool | None,
    streams: int | None,
    timeout: str | None,
    downtime_limit: str | None,
    force: bool,
) -> dict[str, Any]:
    """What the supervisor is asked for.

    Raises:
        InputError: a time that is none, or no such profile.
    """
    from pathlib import Path

    from testbed import profiles

    if profile is not None:
        profiles.load(profile)
        if profiles.is_path(profile):  # the supervisor is elsewhere
            profile = str(Path(profile).absolute())
    return {
        "switchover_goal_ns": _above_zero("--switchover-goal", switchover_goal),
        "options": {
            "profile": profile,
            "encryption": encryption,
            "quick_resume": quick_resume,
            "sdps": sdps,
            "streams": streams,
            "forced": force,
            "timeout_ns": _above_zero("--timeout", timeout),
            "downtime_limit_ns": _above_zero("--downtime-limit", downtime_limit),
        },
    }


def _above_zero(option: str, text: str | None) -> int | None:
    from testbed.errors import InputError
    from testbed.units import parse_duration_ns

    if text is None:
        return None
    try:
        found = parse_duration_ns(text)
    except ValueError as error:
        raise InputError(f"{option}: {error}") from error
    if found == 0:
        raise InputError(f"{option}: no time at all can't be; give 1ms or more")
    return found
