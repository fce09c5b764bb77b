"""What one line of an ESXi host's log says of a migration, in every form that is known.

Forms of the prefix (vmotion-facts.md, rows 1-3 and section 6, and public logs of ESX 4 to 8):
`Nov  7 21:13:14 HOST vmkernel: 10:06:06:18.104 cpu3:9131)` with or without the space before
`vmkernel:`; `2026-04-14T15:38:20.160Z cpu0:151370)`, also with a host's name, a severity or a
syslog server's own prefix before `cpu`; and hostd's `VMotionSrc (ID)`.
The testbed's own lines are those of testbed/report/vmkernel_log.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from testbed.report.result import Iteration

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Said:
    """A line: `fields` are those of an `Observed`, and what it says beside them.

    `host` and the times are None where the prefix has none. `begins` and `ends` mark the lines
    between which the migration lasted on that host, `arrived` those that are written once all
    memory is at the destination.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    migration_id: int | None = None
    side: Literal["S", "D"] | None = None
    iteration: Iteration | None = None
    cause: str | None = None
    phase: str | None = None
    begins: bool = False
    ends: bool = False
    arrived: bool = False
    host: str | None = None
    unix_ns: int | None = None
    uptime_ns: int | None = None


def said(line: str) -> Said | None:
    """What a line says of a migration; None if nothing that is known."""
    world = _WORLD.search(line)
    prefix, text = (line[: world.start()], line[world.end() :]) if world else (line, line)
    found = _begin(text) or _entry(text) or _stun(line)
    if found is None:
        return None
    times = [_unix_ns(*parts) for parts in _ISO.findall(prefix)]
    return replace(
        found,
        host=_host(prefix),
        unix_ns=times[-1] if times else None,  # before it stands that of a syslog server
        uptime_ns=_uptime_ns(prefix),
    )


# ---------------------------------------------------------------- the prefix
# Quantifiers are bounded or possessive, so that no line takes more than linear time.
_WORLD = re.compile(r"cpu\d{1,5}:[^)]{0,99}\)")
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?(?![\d:.])", re.ASCII
)
_UPTIME = re.compile(r"(?<!\S)(\d{1,5}):(\d\d):(\d\d):(\d\d)\.(\d{3})(?!\S)", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}", re.ASCII)


def _host(prefix: str) -> str | None:
    """The word before `vmkernel:`, if there is one and it is a name."""
    for name in ("vmkernel:", "vmkwarning:"):
        before, found, _ = prefix.partition(name)
        words = before.split()
        if found and words:
            return words[-1] if _HOST.fullmatch(words[-1]) else None
    return None


def _unix_ns(second: str, fraction: str, zone: str) -> int | None:
    try:
        when = datetime.fromisoformat(second + (zone if zone not in ("", "Z") else "+00:00"))
    except ValueError:
        return None
    if not 1971 <= when.year <= 2999:  # of others the seconds are no time that can be written
        return None
    return int(when.timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def _uptime_ns(prefix: str) -> int | None:
    if (found := _UPTIME.search(prefix)) is None:
        return None
    days, hours, minutes, seconds, ms = map(int, found.groups())
    return ((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000 + ms) * 10**6


# ---------------------------------------------------------------- the forms


def _form(text: str) -> re.Pattern[str]:
    """A form as written here: a blank is any blanks, a word in capitals a number or the like."""
    for word, pattern in (
        (" ", r"\s++"),
        ("RATE", r"~?(?P<rate>\d{1,9}(?:\.\d{1,9})?) *MB/s?"),
        ("SECONDS", r"(\d{1,9}(?:\.\d{1,9})?)"),
        ("NUMBER", r"(\d{1,18})"),
        ("NAME", r"([^\s<>]{1,255})"),
    ):
        text = text.replace(word, pattern)
    return re.compile(text, re.ASCII)


_BEGIN = (
    _form(r"Setting VMOTION info: (Source|Dest) ts = (\d{1,20}), src ip = <NAME> dest ip = <NAME>"),
    _form(
        r"vmotion: (Source|Dest) vmmLeaderID = \d{1,20}, ts =\s*+(\d{1,20}), srcIP = <NAME>,?"
        r" dstIP = <NAME>"
    ),
)
_ENTRY = re.compile(r"(?<![^\s:])(\d{1,20})\s++([SD]):\s*+(.{1,999})", re.ASCII)
_HOSTD = re.compile(r"VMotionSrc\s*+\((\d{1,20})\)", re.ASCII)
_STUN = _form(r"precopyStunTime to (\d{1,15})(?!\d)")


def _begin(text: str) -> Said | None:
    """The first line, which gives the addresses."""
    found = _BEGIN[0].search(text) or _BEGIN[1].search(text)
    if found is None:
        return None
    role, moved, source, destination = found.groups()
    return Said(
        {"source_address": source, "destination_address": destination},
        migration_id=int(moved),
        side="S" if role == "Source" else "D",
        begins=True,
    )


def _stun(line: str) -> Said | None:
    """The stun in microseconds, which hostd tells; without an ID where the line was cut so."""
    if (found := _STUN.search(line)) is None:
        return None
    moved = _HOSTD.search(line)
    return Said(
        {"stun_ns": int(found[1]) * 1000},
        migration_id=int(moved[1]) if moved else None,
        side="S",
        arrived=True,
    )


def _entry(text: str) -> Said | None:
    """`ID S: ...` or `ID D: ...`."""
    if (found := _ENTRY.search(text)) is None:
        return None
    told = found[3].rstrip()
    for pattern, meaning in _FORMS:
        if match := pattern.match(told):
            side: Literal["S", "D"] = "S" if found[2] == "S" else "D"
            return replace(meaning(match), migration_id=int(found[1]), side=side)
    return None


def _rate(text: str) -> int:
    """Decimal megabytes per second in bytes per second, exactly."""
    whole, _, part = text.partition(".")
    return int(whole) * 10**6 + int(part[:6].ljust(6, "0"))


def _ns(seconds: str) -> int:
    whole, _, part = seconds.partition(".")
    return int(whole) * 10**9 + int(part[:9].ljust(9, "0"))


def _of_estimate(found: re.Match[str]) -> Said:
    early = found["when"].startswith("pre")
    name = "precopy_bytes_per_s" if early else "page_in_bytes_per_s"
    return Said({name: _rate(found["rate"])}, ends=not early, arrived=not early)


def _of_stop(found: re.Match[str]) -> Said:
    fields = {"pages_left": int(found[1]), "switchover_goal_ns": _ns(found[2])}
    if found["rate"]:
        fields["stop_bytes_per_s"] = _rate(found["rate"])
    if found["percent"]:
        fields["transmit_to_dirty_percent"] = int(found["percent"])
    return Said(fields)


def _of_sent(found: re.Match[str]) -> Said:
    fields = {"transmit_bytes_per_s": _rate(found["rate"])} if found["rate"] else {}
    return Said(fields, ends=True, arrived=True)


def _of_failure(found: re.Match[str]) -> Said:
    """Without the status code and the place in the code that ESXi adds."""
    bare = re.sub(r" ?\(0x[0-9a-f]{1,16}\)(?: @0x[0-9a-f]{1,16})?$", "", found[1])
    return Said(cause=bare or found[1])


def _of_moving(found: re.Match[str]) -> Said:
    names = dict(zip(("vm", "source", "destination"), found.groups()[:3], strict=True))
    return Said({**names, "memory_bytes": int(found[4])})


def _of_iteration(found: re.Match[str]) -> Said:
    number, at, took, pages, zero, memory, wire, dirty, stunned = found.groups()
    iteration = Iteration(
        number=int(number),
        pages=int(pages),
        memory_bytes=int(memory),
        wire_bytes=int(wire),
        at_ns=_ns(at),
        duration_ns=_ns(took),
        dirty_pages=int(dirty),
        stunned=stunned is not None,
        zero_pages=int(zero or 0),
    )
    return Said(iteration=iteration)


def _of_end(found: re.Match[str]) -> Said:
    phase, took = found.groups()
    fields = {} if took is None else {"total_ns": _ns(took)}
    return Said(fields, phase=phase, ends=True, arrived=phase is None)


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Said]], ...] = (
    (_form(r"Estimated network bandwidth RATE during (?P<when>pre-?copy|page-?in)"), _of_estimate),
    (
        _form(
            r"Stopping pre-?copy: only NUMBER pages left to send, which can be sent within the "
            r"switchover time goal of SECONDS seconds"
            r"(?: \(network bandwidth RATE(?:, (?P<percent>\d{1,18})% t2d)?\))?"
        ),
        _of_stop,
    ),
    (
        _form(
            r"stopping pre-copy with NUMBER pages left, more than the switchover time goal of "
            r"SECONDS seconds allows \(network bandwidth RATE, (?P<percent>\d{1,18})% t2d\)"
        ),
        _of_stop,
    ),
    (_form(r"Sent all modified pages to destination(?: \(network bandwidth RATE\))?"), _of_sent),
    (_form(r"Failed: (\S.{0,399})"), _of_failure),
    (
        _form(r"Migration considered a failure by the VMX"),
        lambda _: Said(cause="the VMX considered it a failure, most likely a timeout"),
    ),
    (
        _form(r".*?precopyStunTime to (\d{1,15})(?!\d)"),
        lambda found: Said({"stun_ns": int(found[1]) * 1000}, arrived=True),
    ),
    (_form(r"moving NAME from NAME to NAME, memory NUMBER B$"), _of_moving),
    (
        _form(
            r"iteration (-1|\d{1,6}) from SECONDS s took SECONDS s: NUMBER pages"
            r"(?: \(NUMBER of them zero\))?, NUMBER B of memory, NUMBER B sent, "
            r"NUMBER pages dirtied(, guest stunned)?$"
        ),
        _of_iteration,
    ),
    (
        _form(r"NUMBER pages came after the guest ran$"),
        lambda found: Said({"pages_after_resume": int(found[1])}, arrived=True),
    ),
    (
        _form(r"running here, stunned for SECONDS s$"),
        lambda found: Said({"stun_ns": _ns(found[1])}, arrived=True),
    ),
    (_form(r"(?:completed|failed in phase (\S.{0,99}?))(?: in SECONDS s)?$"), _of_end),
)
