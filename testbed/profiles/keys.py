"""The keys of a profile's file: how each value is written, read and shown, and what it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from testbed import units
from testbed.profiles.profile import LEAST_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

_PERCENT = re.compile(r"([0-9]{1,6}) ?%")
_NUMBER = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?")
_ALGORITHM = re.compile(r"[a-z][a-z0-9_]{1,14}")  # TCP_CA_NAME_MAX is 16, with the final zero
_SWITCH = {"on": True, "true": True, "off": False, "false": False}


@dataclass(frozen=True, slots=True)
class Key:
    """A key: the field of `Profile` that it sets, and how.

    `read` raises ValueError with what is wrong and, after a semicolon, what to write.
    """

    field: str
    read: Callable[[str], Any]
    show: Callable[[Any], str]
    example: str
    meaning: str


def _refuse(text: str, what: str, how: str) -> ValueError:
    shown = repr(text) if len(text) <= 60 else f"{text[:57]!r}..."
    return ValueError(f"{shown} is not {what}; {how}")


def _words(*words: str, none: bool = False) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        if text not in words and not (none and text == "none"):
            known = " or ".join((*words, *(("none",) if none else ())))
            raise _refuse(text, "known here", f"write {known}")
        return None if none and text == "none" else text

    return read


def _or_word(word: str, read: Callable[[str], Any], value: object = None) -> Callable[[str], Any]:
    """A word with a meaning of its own, or what `read` takes."""
    return lambda text: value if text == word else read(text)


def _count(most: int, least: int = 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise _refuse(text, "a number that makes sense here", f"write {least} to {most}")
        return int(text)

    return read


def _switch(text: str) -> bool:
    if text.casefold() not in _SWITCH:
        raise _refuse(text, "on or off", "write on or off")
    return _SWITCH[text.casefold()]


def _percent(text: str) -> int:
    """A whole percentage, which may be above 100."""
    found = _PERCENT.fullmatch(text)
    if found is None:
        raise _refuse(text, "a percentage", "write it like 130%")
    return int(found[1])


def _cycles(text: str) -> float:
    if _NUMBER.fullmatch(text) is None:
        raise _refuse(text, "a number of CPU cycles", "write it without a unit, like 7.13")
    return float(text)


def _algorithm(text: str) -> str:
    if _ALGORITHM.fullmatch(text) is None:
        how = "write it as /proc/sys/net/ipv4/tcp_available_congestion_control does: cubic"
        raise _refuse(text, "a congestion control", how)
    return text


def _duration(text: str) -> int:
    value = units.parse_duration_ns(text)
    if value == 0:
        raise _refuse(text, "a time that passes", "write it like 500ms")
    return value


def _window(text: str) -> int | str:
    if text in ("path", "kernel"):
        return text
    try:
        value = units.parse_size_bytes(text)
    except ValueError:
        raise _refuse(text, "a window", "write a size like 263536B, or path or kernel") from None
    if not LEAST_WINDOW_BYTES <= value <= 1 << 30:
        raise _refuse(text, "a window that can be kept", "write 128KiB to 1GiB")
    return value


def _message(text: str) -> int:
    value = units.parse_size_bytes(text)
    if value > 16 << 30:
        raise _refuse(text, "what a migration tells a host", "write at most 16GiB")
    return value


def _rate(text: str) -> int:
    value = units.parse_rate_bps(text)
    if value < 10**6:
        raise _refuse(text, "the rate of a NIC", "write it like 15Gbit")
    return value


def _bytes_text(value: int) -> str:
    """In bytes to the last: a fixed window is an exact number."""
    return f"{value}B"


def _rate_text(value: int) -> str:
    return f"{Fraction(value, 10**9)!s}Gbit" if value % 10**9 == 0 else f"{value // 10**6}Mbit"


def _show_or(word: str, show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: word if value is None else show(value)


def _switch_text(value: bool) -> str:
    return "on" if value else "off"


def _time(value: int) -> str:
    return units.format_duration(value)


KEYS: dict[str, Key] = {
    "congestion_control": Key(
        "congestion_control", _algorithm, str, "cubic", "TCP's congestion control"
    ),
    "window": Key(
        "window",
        _window,
        lambda value: value if isinstance(value, str) else _bytes_text(value),
        "263536B",
        "payload in flight of a stream; path: grown to the path, kernel: left to the kernel",
    ),
    "vmks": Key("vmks", _count(256), str, "16", "most vMotion vmks of a host"),
    "vmks_10gbe": Key("vmks_10gbe", _count(256), str, "4", "the same on NICs of 10 GbE and more"),
    "helpers_per_vmk": Key(
        "helpers_per_vmk", _count(64), str, "1", "stream helpers for each vmk, a core each"
    ),
    "helper_rate": Key(
        "helper_rate_bps",
        _or_word("none", _rate),
        _show_or("none", _rate_text),
        "15Gbit",
        "one more stream helper beyond each multiple of this NIC rate",
    ),
    "vmotion_cores": Key(
        "vmotion_cores",
        _or_word("all", _count(1024)),
        _show_or("all", str),
        "1",
        "cores of a host for all its migrations together",
    ),
    "cycles_per_byte": Key(
        "cycles_per_byte", _cycles, "{:g}".format, "7.13", "CPU cycles for a byte, at each end"
    ),
    "cycles_per_packet": Key(
        "cycles_per_packet",
        _cycles,
        "{:g}".format,
        "1256",
        "CPU cycles for a TCP segment, at each end",
    ),
    "trace": Key(
        "trace_stop",
        _words("stop-based", "loose", none=True),
        _show_or("none", str),
        "loose",
        "which vCPUs stop when page tracing is installed",
    ),
    "trace_granularity": Key(
        "trace_granularity",
        _words("4KiB", "2MiB", "1GiB"),
        str,
        "4KiB",
        "memory that one trace operation protects",
    ),
    "switchover_goal": Key(
        "switchover_goal_ns", _duration, _time, "500ms", "pre-copy ends when the rest takes this"
    ),
    "min_progress": Key(
        "min_progress_percent",
        _percent,
        "{}%".format,
        "130%",
        "least ratio of transmit to dirty rate",
    ),
    "sdps": Key("sdps", _switch, _switch_text, "on", "Stun During Page Send slows vCPUs down"),
    "sdps_target": Key(
        "sdps_target_percent",
        _percent,
        "{}%".format,
        "500%",
        "the ratio of transmit to dirty rate that it aims at",
    ),
    "quick_resume": Key(
        "quick_resume", _switch, _switch_text, "off", "resume before all pages arrived"
    ),
    "bitmap": Key(
        "bitmap",
        _words("full", "compacted", none=True),
        _show_or("none", str),
        "full",
        "the bitmap of pages still to come, at switchover",
    ),
    "remaining_pages": Key(
        "remaining_pages",
        _words("before resume", "after resume"),
        str,
        "before resume",
        "when those pages are sent",
    ),
    "encryption": Key(
        "encryption",
        _words("disabled", "opportunistic", "required"),
        str,
        "opportunistic",
        "encrypted vMotion",
    ),
    "zero_pages": Key("zero_pages", _switch, _switch_text, "on", "zero pages are not sent whole"),
    "rtt_limit": Key(
        "rtt_limit_ns",
        _or_word("none", _duration),
        _show_or("none", _time),
        "5ms",
        "longest round trip that is supported",
    ),
    "layer3": Key(
        "layer3_supported", _switch, _switch_text, "off", "vMotion over routers is supported"
    ),
    "concurrent_1gbe": Key(
        "concurrent_1gbe", _count(128), str, "4", "migrations of a host at a time, below 10 GbE"
    ),
    "concurrent_10gbe": Key(
        "concurrent_10gbe", _count(128), str, "8", "the same at 10 GbE and more"
    ),
    "timeout": Key("timeout_ns", _duration, _time, "20s", "longest silence of a connection"),
    "management": Key(
        "management_bytes",
        _message,
        _bytes_text,
        "256KiB",
        "sent over the management vmk before a migration",
    ),
    "heartbeat": Key(
        "heartbeat_bytes", _message, _bytes_text, "1KiB", "sent there at intervals meanwhile"
    ),
    "heartbeat_interval": Key(
        "heartbeat_interval_ns", _duration, _time, "1s", "the interval of these"
    ),
}
"""By their names in the file, in the order in which they are shown."""
