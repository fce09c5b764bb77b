"""What two hosts' vMotion agree on for one migration: where they differ, the weaker one decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from testbed import profiles
from testbed.errors import LabError

if TYPE_CHECKING:
    from fractions import Fraction

    from testbed.profiles import Profile
    from testbed.topology.model import Host

Encryption: TypeAlias = Literal["disabled", "opportunistic", "required"]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for of one migration; None is as the hosts' profiles say.

    `profile` is in place of both hosts' own. `streams` are for each pair of adapters. `forced`:
    over the limit of the round trip too. Times are in nanoseconds, and limits: `timeout_ns` of all,
    `downtime_limit_ns` of the stun.
    """

    profile: str | None = None
    encryption: Encryption | None = None
    quick_resume: bool | None = None
    sdps: bool | None = None
    streams: int | None = None
    forced: bool = False
    switchover_goal_ns: int | None = None
    timeout_ns: int | None = None
    downtime_limit_ns: int | None = None


def as_asked(host: Host, options: Options, scale: Fraction) -> Host:
    """A host with the profile that it has for this migration.

    Raises:
        InputError: there is no such profile.
        LabError: it costs CPU cycles, and it isn't known how many the host has.
    """
    if options.profile is None:
        return host
    profile = profiles.load(options.profile).scaled(scale)
    if profile.charges_cpu and host.mhz is None:
        raise LabError(
            f"profile {profile.name} costs CPU cycles, and how many {host.name} has is not said;"
            f" add mhz to its cpu, such as mhz: 2260"
        )
    return replace(host, profile=profile)


def agreed(ours: Profile, theirs: Profile, options: Options = Options()) -> Profile:
    """The profile of a migration from a host with one to a host with the other.

    What the source does alone (congestion control, tracing, when to stop, SDPS) is as its profile
    says; what both take part in is as the weaker of them can. CPU costs remain each host's own.
    """
    windows = [one for one in (ours.window, theirs.window) if isinstance(one, int)]
    grows: Literal["path", "kernel"] = (
        "path" if "path" in (ours.window, theirs.window) else "kernel"
    )
    limits = [one for one in (ours.rtt_limit_ns, theirs.rtt_limit_ns) if one is not None]
    rates = [one.helper_rate_bps for one in (ours, theirs)]
    early = ours.remaining_pages == theirs.remaining_pages == "after resume"
    found = replace(
        ours,
        window=min(windows) if windows else grows,
        vmks=min(ours.vmks, theirs.vmks),
        vmks_10gbe=min(ours.vmks_10gbe, theirs.vmks_10gbe),
        helpers_per_vmk=min(ours.helpers_per_vmk, theirs.helpers_per_vmk),
        helper_rate_bps=None if None in rates else max(rate for rate in rates if rate),
        quick_resume=ours.quick_resume and theirs.quick_resume,
        bitmap=ours.bitmap if ours.bitmap == theirs.bitmap else ours.bitmap and "full",
        remaining_pages="after resume" if early else "before resume",
        zero_pages=ours.zero_pages and theirs.zero_pages,
        rtt_limit_ns=min(limits, default=None),
        layer3_supported=ours.layer3_supported and theirs.layer3_supported,
        timeout_ns=min(ours.timeout_ns, theirs.timeout_ns),
    )
    if options.quick_resume is not None:
        # Without it a guest never runs before all of its pages are there.
        remaining = found.remaining_pages if options.quick_resume else "before resume"
        found = replace(found, quick_resume=options.quick_resume, remaining_pages=remaining)
    if options.sdps is not None:
        found = replace(found, sdps=options.sdps)
    if options.switchover_goal_ns is not None:
        found = replace(found, switchover_goal_ns=options.switchover_goal_ns)
    return found


def encrypts(source: Host, destination: Host, asked: Encryption | None) -> bool:
    """Whether a migration is encrypted: the VM's setting is what was asked, or its host's.

    A host can if its profile says more than `disabled`, or models nothing.

    Raises:
        LabError: it is required, or disabled, and a host doesn't agree.
    """
    setting = asked or source.profile.encryption
    for host in (source, destination):
        name, own = host.profile.name, host.profile.encryption
        if setting == "required" and own == "disabled" and name != profiles.DEFAULT:
            raise LabError(
                f"encryption is required, and profile {name} of {host.name} has none; ask for"
                " --encryption opportunistic, or use vsphere-6.5 or later"
            )
        if setting == "disabled" and own == "required":
            raise LabError(
                f"encryption is disabled, and profile {name} of {host.name} requires it; leave"
                " out --encryption disabled"
            )
    if setting == "opportunistic":
        return all(
            host.profile.encryption != "disabled" or host.profile.name == profiles.DEFAULT
            for host in (source, destination)
        )
    return setting == "required"
