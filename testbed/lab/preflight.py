"""Before a migration: do the vMotion adapters reach each other, with full packets, near enough?

For whoever conducts a migration (testbed/lab/vmotion.py), once it is admitted:

    found = await preflight(
        End(source_host, source_netns), End(destination_host, destination_netns),
        paths, forced=request["force"], busy=others_are_under_way,
    )
    found.require(f"migrate {vm} to {host}")   # LabError, with every reason
    found.rtts_ns[0]                           # of paths[0]: for Profile.window_for
    found.notes, found.to_json()               # for the result

With all well it takes one round trip and some 20 ms. What the topology alone says (memory, CPU,
networks and labels) is testbed/lab/admission.py's; the CPUs of all hosts are alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from statistics import median_low
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.kernel import netns
from testbed.lab import path_echoes
from testbed.lab.child import Child, checked
from testbed.lab.path_echoes import Answers
from testbed.measure.endpoint import Endpoint
from testbed.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.lab.adapter_paths import AdapterPath
    from testbed.lab.lines import Message
    from testbed.profiles import Profile
    from testbed.topology.model import Host

DEADLINE_S = 30.0
TOLERANCE_PERCENT, TOLERANCE_NS = 5, 500_000
"""A path of exactly the limit is within it, though what stands at its ends takes some time too."""


@dataclass(frozen=True, slots=True)
class End:
    """A host, and the name of the network namespace in which its vmks are."""

    host: Host
    netns: str


@dataclass(frozen=True, slots=True)
class Way:
    """A path in one direction, and what was found; `source` and the other are HOST/VMK."""

    source: str
    destination: str
    address: str
    mtu: int
    routed: bool
    answers: Answers


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found. `rtts_ns` are the paths' round trips, in their order; `notes` are for people.

    `refusals` are the reasons not to begin, each with what to do; empty if there are none.
    """

    ways: tuple[Way, ...]
    rtts_ns: tuple[int, ...]
    refusals: tuple[str, ...]
    notes: tuple[str, ...]

    def require(self, attempt: str) -> None:
        """Go on only if nothing is against it.

        Raises:
            LabError: something is; it says all of that.
        """
        if self.refusals:
            raise LabError(f"{attempt}: " + "; and ".join(self.refusals))

    def to_json(self) -> Message:
        """All of it."""
        return asdict(self)


async def preflight(
    source: End,
    destination: End,
    paths: Sequence[AdapterPath],
    *,
    forced: bool = False,
    busy: bool = False,
) -> Preflight:
    """Send echoes over all paths, both ways, and judge.

    Args:
        source: where the VM runs.
        destination: where it is to run.
        paths: the vMotion adapters that the migration would use, at least one.
        forced: go on over the profile's limit of the round trip.
        busy: other migrations use the path now, so that echoes wait in queues: a round trip over
            the limit is told then, and no reason.

    Raises:
        LabError: the process that asks ended, or didn't come to an end.
    """
    ends = (source, destination)
    ways = [way for path in paths for way in _both_ways(ends, path)]
    endpoints = [(here, there, path.mtu) for path, here, there in ways]
    child = await Child.spawn(partial(path_echoes.run, ways=endpoints))
    try:
        said = checked(await child.receive(DEADLINE_S))
    finally:
        await child.end()
    names = [way for path in paths for way in _names(ends, path)]
    found = [
        Way(*name, there.address, path.mtu, path.routed, _answers(one))
        for name, (path, _, there), one in zip(names, ways, said["answers"], strict=True)
    ]
    return judged(found, source.host.profile, destination.host.profile, forced=forced, busy=busy)


def _both_ways(
    ends: tuple[End, End], path: AdapterPath
) -> list[tuple[AdapterPath, Endpoint, Endpoint]]:
    here, there = (
        Endpoint(netns.path_of(end.netns), address, vmk)
        for end, address, vmk in zip(
            ends,
            (path.source_address, path.destination_address),
            (path.source_vmk, path.destination_vmk),
            strict=True,
        )
    )
    return [(path, here, there), (path, there, here)]


def _names(ends: tuple[End, End], path: AdapterPath) -> list[tuple[str, str]]:
    here, there = (
        f"{ends[0].host.name}/{path.source_vmk}",
        f"{ends[1].host.name}/{path.destination_vmk}",
    )
    return [(here, there), (there, here)]


def _answers(said: Message) -> Answers:
    return Answers(**{**said, "rtts_ns": tuple(said["rtts_ns"])})


# ---------------------------------------------------------------- judged, of plain values


def judged(
    ways: Sequence[Way], ours: Profile, theirs: Profile, *, forced: bool, busy: bool
) -> Preflight:
    """What speaks against a migration, and what is worth telling.

    Args:
        ways: what was found, of each path both directions, one after the other.
        ours: the source's profile.
        theirs: the destination's; of both limits the stricter one holds.
        forced: as `preflight`.
        busy: as `preflight`.
    """
    refusals = [reason for way in ways if (reason := unreachable(way))]
    pairs = list(zip(ways[::2], ways[1::2], strict=True))
    rtts_ns = tuple(round_trip_ns(*pair) for pair in pairs)
    notes: list[str] = []
    for (way, _), rtt_ns in zip(pairs, rtts_ns, strict=True):
        profile = _stricter(ours, theirs)
        over = over_limit(way, rtt_ns, profile) if rtt_ns else None
        if over and (forced or busy):
            why = "forced" if forced else "other migrations use it, which may be why"
            notes.append(f"{over}; {why}")
        elif over:
            refusals.append(f"{over}; move it nevertheless with --force, or use another profile")
        notes += [note] if (note := layer3(way, ours, theirs)) else []
    return Preflight(tuple(ways), rtts_ns, tuple(refusals), tuple(dict.fromkeys(notes)))


def unreachable(way: Way) -> str | None:
    """Why packets don't pass one way, or don't as large as the adapters send them."""
    answers = way.answers
    host, _, vmk = way.source.partition("/")
    try_it = f"'testbed vmkping {host} {way.address} -I {vmk}"
    if not answers.rtts_ns:
        cause = f" ({answers.cause})" if answers.cause else ""
        return (
            f"{way.source} gets no answer from {way.destination} ({way.address}){cause}; check the"
            f" links and VLANs between them: {try_it}' tries it"
        )
    if not answers.full:
        said = f", a hop passes {answers.narrow_mtu}" if answers.narrow_mtu else ""
        return (
            f"packets of {way.mtu} bytes, the adapters' MTU, don't get from {way.source} to"
            f" {way.destination}{said}; raise the MTU on the way or lower the adapters':"
            f" {try_it} --find-mtu' tells what passes"
        )
    return None


def round_trip_ns(there: Way, back: Way) -> int:
    """The path's round trip, of echoes from both ends; 0 if none was answered."""
    every = (*there.answers.rtts_ns, *back.answers.rtts_ns)
    return median_low(every) if every else 0


def over_limit(way: Way, rtt_ns: int, profile: Profile) -> str | None:
    """What is wrong with a round trip that the profile doesn't support, with both figures."""
    limit_ns = profile.rtt_limit_ns
    if limit_ns is None or rtt_ns <= limit_ns * (100 + TOLERANCE_PERCENT) // 100 + TOLERANCE_NS:
        return None
    return (
        f"the round trip between {way.source} and {way.destination} is {format_duration(rtt_ns)},"
        f" and profile {profile.name} supports {format_duration(limit_ns)}"
    )


def layer3(way: Way, ours: Profile, theirs: Profile) -> str | None:
    """That vMotion over routers works, though a profile doesn't support it (facts row 32)."""
    if not way.routed or (ours.layer3_supported and theirs.layer3_supported):
        return None
    name = theirs.name if ours.layer3_supported else ours.name
    return (
        f"routers are between {way.source} and {way.destination}: profile {name} does not support"
        " that, though it works"
    )


def _stricter(ours: Profile, theirs: Profile) -> Profile:
    """Of two profiles the one with the shorter round trip."""
    if theirs.rtt_limit_ns is None:
        return ours
    if ours.rtt_limit_ns is None or theirs.rtt_limit_ns < ours.rtt_limit_ns:
        return theirs
    return ours
