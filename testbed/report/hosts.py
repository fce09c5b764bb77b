"""What the hosts of a migration were modelled as: part of the input that a result carries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from testbed.profiles.keys import KEYS
from testbed.units import parse_duration_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.profiles import Profile


@dataclass(frozen=True, slots=True)
class ProfileValue:
    """A value of a profile as its file would write it, and how it is known."""

    value: str
    kind: Literal["sourced", "calibrated", "assumed"]
    basis: str


@dataclass(frozen=True, slots=True)
class HostReport:
    """A host's CPU and its profile, by the keys of its file.

    `mhz` (None: not said) and what the profile has in bytes are at the lab's scale.
    """

    name: str
    cores: int
    mhz: float | None
    profile: str
    values: dict[str, ProfileValue]


def host_report(name: str, cores: int, mhz: float | None, profile: Profile) -> HostReport:
    """How a host stood in the lab."""
    values = {}
    for key, of in KEYS.items():
        origin = profile.sources[of.field]
        shown = of.show(getattr(profile, of.field))
        values[key] = ProfileValue(shown, origin.kind, origin.basis)
    return HostReport(name, cores, mhz, profile.name, values)


def describe(host: HostReport, scale_divisor: int) -> tuple[str, str]:
    """`esx-4.0, 8 cores of 226 MHz (nominal 2260 MHz)`, and how much of it is how well known."""
    text = host.profile
    if host.mhz is not None:
        text += f", {host.cores} cores of {host.mhz:g} MHz"
        if scale_divisor > 1:
            text += f" (nominal {host.mhz * scale_divisor:g} MHz)"
    kinds = Counter(value.kind for value in host.values.values())
    known = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return text, f"of the profile's values {known}; the result has each with its source"


def limit_of_rtt(hosts: Sequence[HostReport]) -> str | None:
    """`5 ms (esx-4.0)`: the shortest that their profiles support; None if none has a limit."""
    limits = [
        (parse_duration_ns(value), value, host.profile)
        for host in hosts
        if (value := host.values["rtt_limit"].value) != "none"
    ]
    if not limits:
        return None
    _, text, profile = min(limits)
    return f"{text} ({profile})"
