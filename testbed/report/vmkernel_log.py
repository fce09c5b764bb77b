"""A migration as lines of its hosts' logs, as the vmkernel writes them.

Lines that ESXi writes itself have its words (vmotion-facts.md, rows 1-3 and section 6), with
what was measured here. What it tells nobody, such as its iterations, stands in lines of a module
`Testbed`, so that no line pretends to be what ESXi would have written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from testbed.report.observed import Observed
    from testbed.report.result import Iteration

Form = Literal["syslog", "iso"]
Side = Literal["S", "D"]
BOTH: tuple[Side, Side] = ("S", "D")
SYSLOG_PROFILES = ("esx-3.5", "esx-4.0", "esx-4.1")
"""These wrote `Nov  7 21:13:14 HOST vmkernel: 10:06:06:18.104 cpu3:9131)` (rows 1-3)."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LONGEST_CAUSE = 300
PAGE_BYTES = 4096
NO_TEXT = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Host:
    """A host that writes: its VMX's process stands for the world, on the CPU it last ran on."""

    name: str
    booted_unix_ns: int
    world: int
    cpu: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that the source S or the destination D tells, `at_ns` after the begin.

    `source` is what tells it: the vmkernel, or hostd for what ESXi tells there. `forms` are the
    logs that have such a line.
    """

    side: Side
    at_ns: int
    text: str
    source: Literal["vmkernel", "hostd"] = "vmkernel"
    forms: tuple[Form, ...] = ("syslog", "iso")


def form_of(profiles: Iterable[str]) -> Form:
    """How a host begins its lines whose behaviour is of these profiles; since 5.0 by ISO times."""
    given = set(profiles)
    old = given & set(SYSLOG_PROFILES) and not any(name.startswith("vsphere-") for name in given)
    return "syslog" if old else "iso"


def entries(seen: Observed, worlds: tuple[int, int]) -> list[Entry]:
    """All that is to be told of a migration as far as it has been seen, in the order of time.

    As more is seen, entries are added and none changes, so that a log can be written as it goes
    on. `worlds` are those of source and destination. The migration has an ID.
    """
    found = [*_begin(seen, worlds), *_rounds(seen), *_end(seen, worlds[0])]
    return sorted(found, key=lambda entry: entry.at_ns)


def line(entry: Entry, form: Form, host: Host, unix_ns: int) -> str:
    """A line of the host's log, written at `unix_ns`."""
    when = datetime.fromtimestamp(unix_ns // 10**9, UTC)
    world = f"cpu{host.cpu}:{host.world})"
    if form == "syslog":
        day = f"{MONTHS[when.month - 1]} {when.day:2d} {when:%H:%M:%S}"
        uptime = _uptime(unix_ns - host.booted_unix_ns)
        return f"{day} {host.name} vmkernel: {uptime} {world}{entry.text}"
    time = f"{when:%Y-%m-%dT%H:%M:%S}.{unix_ns // 10**6 % 1000:03d}Z"
    return f"{time} {entry.text if entry.source == 'hostd' else world + entry.text}"


def _uptime(uptime_ns: int) -> str:
    """`d:hh:mm:ss.mmm`."""
    ms = max(0, uptime_ns) // 10**6
    s = ms // 1000
    return f"{s // 86400}:{s // 3600 % 24:02d}:{s // 60 % 60:02d}:{s % 60:02d}.{ms % 1000:03d}"


def _begin(seen: Observed, worlds: tuple[int, int]) -> Iterator[Entry]:
    moved = seen.migration_id
    if seen.source_address and seen.destination_address:
        ends = f"src ip = <{seen.source_address}> dest ip = <{seen.destination_address}>"
        roles = zip(BOTH, worlds, ("Source", "Dest"), (worlds[1], 0), strict=True)
        for side, world, role, other in roles:
            yield Entry(
                side,
                0,
                f"Migrate: vm {world}: 3284: Setting VMOTION info: {role} ts = {moved}, {ends} "
                f"Dest wid = {other} using SHARED swap",
            )
    if seen.vm and seen.source and seen.destination and seen.memory_bytes is not None:
        text = f"{seen.vm} from {seen.source} to {seen.destination}, memory {seen.memory_bytes} B"
        for side in BOTH:
            yield Entry(side, 0, f"Testbed: {moved} {side}: moving {text}")


def _rounds(seen: Observed) -> Iterator[Entry]:
    moved = seen.migration_id
    for one in seen.iterations:
        yield Entry("S", _end_ns(one), f"Testbed: {moved} S: {_iteration(one)}")
    before = [one for one in seen.iterations if not one.stunned]
    if seen.pages_left is None or not before:
        return
    stop_ns = _end_ns(before[-1])
    if seen.precopy_bytes_per_s is not None:
        rate = _megabytes(seen.precopy_bytes_per_s)
        text = f"VMotionRecv: 226: {moved} D: Estimated network bandwidth {rate} during pre-copy"
        yield Entry("D", stop_ns, text)
    goal, rate = _seconds(seen.switchover_goal_ns or 0, 3), _megabytes(seen.stop_bytes_per_s or 0)
    why = f"(network bandwidth ~{rate}, {seen.transmit_to_dirty_percent or 0}% t2d)"
    if fits_goal(seen):
        text = (
            f"VMotion: 4650: {moved} S: Stopping pre-copy: only {seen.pages_left} pages left to "
            f"send, which can be sent within the switchover time goal of {goal} seconds {why}"
        )
        yield Entry("S", stop_ns, text, forms=("iso",))
    else:
        yield Entry(
            "S",
            stop_ns,
            f"Testbed: {moved} S: stopping pre-copy with {seen.pages_left} pages left, more than "
            f"the switchover time goal of {goal} seconds allows {why}",
        )


def fits_goal(seen: Observed) -> bool:
    """Whether the pages left could be sent within the goal, so that the guest was stunned for it.

    Otherwise it was resumed before all of them were there (Quick Resume).
    """
    left_bytes = (seen.pages_left or 0) * PAGE_BYTES
    return left_bytes * 10**9 <= (seen.stop_bytes_per_s or 0) * (seen.switchover_goal_ns or 0)


def _end(seen: Observed, world: int) -> Iterator[Entry]:
    moved = seen.migration_id
    stun = next((one for one in seen.iterations if one.stunned), None)
    total_ns = seen.total_ns or 0
    if stun is not None and seen.page_in_bytes_per_s is not None:
        rate = _megabytes(seen.page_in_bytes_per_s)
        text = f"VMotionRecv: 1078: {moved} D: Estimated network bandwidth {rate} during page-in"
        yield Entry("D", total_ns, text)
    if stun is not None and seen.transmit_bytes_per_s is not None:
        rate = _megabytes(seen.transmit_bytes_per_s)
        yield Entry(
            "S",
            total_ns,
            f"VMotionSend: 2909: {moved} S: Sent all modified pages to destination "
            f"(network bandwidth ~{rate})",
        )
    if seen.pages_after_resume is not None:
        text = f"{seen.pages_after_resume} pages came after the guest ran"
        yield Entry("D", total_ns, f"Testbed: {moved} D: {text}")
    if seen.stun_ns is not None:
        stunned = f"Testbed: {moved} D: running here, stunned for {_seconds(seen.stun_ns, 6)} s"
        yield Entry("D", total_ns, stunned)
        text = (
            f"info hostd[{world:08X}] [Originator@6876 sub=Vcsvc.VMotionSrc ({moved})] "
            f"Set source task result precopyStunTime to {round(seen.stun_ns / 1000)}"
        )
        yield Entry("S", total_ns, text, "hostd", ("iso",))
    took = "" if seen.total_ns is None else f" in {_seconds(seen.total_ns, 6)} s"
    ended = "completed"
    if seen.failure is not None:
        ended = f"failed in phase {one_line(seen.failure.phase)}"
        cause = one_line(seen.failure.cause)
        yield Entry("S", total_ns, f"WARNING: Migrate: 269: {moved} S: Failed: {cause}")
    if seen.outcome != "unknown":
        for side in BOTH:
            yield Entry(side, total_ns, f"Testbed: {moved} {side}: {ended}{took}")


def one_line(text: str) -> str:
    """Text as it stands in a log: in one line, not longer than such a line should be."""
    return NO_TEXT.sub(" ", text).strip()[:LONGEST_CAUSE].rstrip()


def _iteration(one: Iteration) -> str:
    stunned = ", guest stunned" if one.stunned else ""
    zero = f" ({one.zero_pages} of them zero)" if one.zero_pages else ""
    return (
        f"iteration {one.number} from {_seconds(one.at_ns, 6)} s took "
        f"{_seconds(one.duration_ns, 6)} s: {one.pages} pages{zero}, {one.memory_bytes} B of "
        f"memory, {one.wire_bytes} B sent, {one.dirty_pages} pages dirtied{stunned}"
    )


def _end_ns(one: Iteration) -> int:
    return one.at_ns + one.duration_ns


def _megabytes(rate_bytes_per_s: int) -> str:
    """`280.495 MB/s`, decimal."""
    kb = round(rate_bytes_per_s / 1000)
    return f"{kb // 1000}.{kb % 1000:03d} MB/s"


def _seconds(duration_ns: int, decimals: int) -> str:
    number = round(duration_ns / 10 ** (9 - decimals))
    return f"{number // 10**decimals}.{number % 10**decimals:0{decimals}d}"
