"""How the hosts' vMotion behaves: profiles, by name or of one's own, and what they ask of hosts."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from testbed import profiles
from testbed.errors import InputError, TopologyError
from testbed.profiles.profile import LEAST_WINDOW_BYTES, TEN_GBE_BPS
from testbed.topology.draft import Behaviour
from testbed.topology.network import MAX_1G_VMOTION_NICS, MAX_10G_VMOTION_NICS
from testbed.topology.node import Node, Refused
from testbed.topology.sizes import of_scale, size_text
from testbed.topology.teams import uplinks_of

if TYPE_CHECKING:
    from testbed.profiles import Profile
    from testbed.topology.draft import Draft
    from testbed.topology.problems import Path
    from testbed.topology.schema import Host


def check(draft: Draft) -> None:
    """Report profiles that can't be had, and hosts that they don't fit."""
    scale = Fraction(1) if draft.file.scale is None else draft.file.scale
    found: dict[str | int, Profile | None] = {}
    lab = _profile(draft, ("profile",), draft.file.profile, found)
    own = {
        name: _profile(draft, ("hosts", name, "profile"), host.profile, found)
        for name, host in draft.file.hosts.items()
        if host.profile is not None
    }
    _window(draft, ("profile",), lab, scale)
    for name, host in draft.file.hosts.items():
        path: Path = ("hosts", name)
        profile = own.get(name, lab)
        if name in own:
            _window(draft, (*path, "profile"), profile, scale)
        if profile is not None:
            _clock_rate(draft, path, host, profile)
            _adapters(draft, path, host, profile)
    if lab is not None:
        known = {name: profile for name, profile in own.items() if profile is not None}
        draft.behaviour = Behaviour(lab, known)


def _profile(
    draft: Draft, path: Path, given: str | Node | None, found: dict[str | int, Profile | None]
) -> Profile | None:
    """The profile that a key names or is; None if it can't be had, which is reported.

    What hosts of a pattern share is read, and reported, once.
    """
    if given is None:
        return None
    key = given if isinstance(given, str) else id(given)
    if key not in found:
        try:
            found[key] = _read(draft, given)
        except TopologyError as error:
            found[key] = None
            for problem in error.problems:
                draft.problems.take(problem)
        except InputError as error:
            found[key] = None
            message, _, remedy = str(error).rpartition("; ")
            draft.problems.add(path, message, remedy)
    return found[key]


def _read(draft: Draft, given: str | Node) -> Profile:
    def file(name: str) -> str:
        return draft.text_of(name, "a profile")

    if isinstance(given, str):
        return profiles.load(given, file)
    entry = _entry(given)
    assert isinstance(entry.value, dict)
    return profiles.own(entry.value, draft.problems.file, file)


def _entry(node: Node) -> profiles.Entry:
    value: str | dict[str, profiles.Entry] | None
    match node.value:
        case dict():
            value = {key: _entry(below) for key, below in node.value.items()}
        case list() | Refused() | None:
            value = None
        case bool():
            value = "on" if node.value else "off"
        case _:
            value = str(node.value)
    return profiles.Entry(value, node.line, node.column, node.key_line, node.key_column)


def _window(draft: Draft, path: Path, profile: Profile | None, scale: Fraction) -> None:
    """A window of less than two trains of segments would be limited by their size."""
    if profile is None or profile.window_bytes is None:
        return
    if profile.window_bytes * scale < LEAST_WINDOW_BYTES:
        draft.problems.add(
            path,
            f"the window of {profile.window_bytes} bytes of profile {profile.name}"
            f"{of_scale(scale)} is less than {size_text(LEAST_WINDOW_BYTES)}",
            f"use a scale of at least 1/{profile.window_bytes // LEAST_WINDOW_BYTES}",
        )


def _clock_rate(draft: Draft, path: Path, host: Host, profile: Profile) -> None:
    if profile.charges_cpu and host.cpu.mhz is None and not draft.is_broken(*path, "cpu"):
        draft.problems.add(
            (*path, "cpu"),
            f"profile {profile.name} costs CPU cycles, and how many the host has is not said",
            "add mhz, such as mhz: 2260",
        )


def _adapters(draft: Draft, path: Path, host: Host, profile: Profile) -> None:
    """No more vMotion adapters than the profile uses, where that is less than vSphere's maximum."""
    name = str(path[1])
    mine = [vmk for vmk, of in host.vmks.items() if "vmotion" in of.services]
    fast = [vmk for vmk in mine if _is_fast(draft, name, host, vmk)]
    later = ", or use vsphere-5.0 or later" if profile.vmks == 1 else ""
    for vmks, most, maximum, nics in (
        (mine, profile.vmks, MAX_1G_VMOTION_NICS, ""),
        (fast, profile.most_vmks(TEN_GBE_BPS), MAX_10G_VMOTION_NICS, " on NICs of 10 GbE"),
    ):
        if len(vmks) > most and most < maximum:
            draft.problems.add(
                (*path, "vmks", vmks[most]),
                f"{name} has {len(vmks)} vMotion adapters{nics}, and profile {profile.name} uses"
                f" at most {most}",
                f"take vmotion from the services of the others{later}",
                at_key=True,
            )
            return


def _is_fast(draft: Draft, name: str, host: Host, vmk: str) -> bool:
    """Whether a vmk's traffic may leave by a NIC of 10 GbE or more."""
    portgroup = host.vmks[vmk].portgroup
    switch = draft.switch_of(name, portgroup)
    if switch is None or portgroup is None:
        return False
    nics = [draft.nic(name, vmnic) for vmnic in uplinks_of(switch, portgroup)]
    return any(nic is not None and (nic.rate or 0) >= TEN_GBE_BPS for nic in nics)
