"""Quantities: strings with units at the edge, one base unit inside.

Rates are decimal bits per second, byte rates decimal bytes per second, sizes bytes
(KiB, MiB, GiB are powers of 1024; kB, MB, GB powers of 1000), durations nanoseconds.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_NUMBER = r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?) ?"
_RATE = re.compile(_NUMBER + r"(?P<prefix>[kKMGT]?)(?:bit|bps|bit/s|b/s)")
_SIZE = re.compile(_NUMBER + r"(?P<prefix>[kMGT]|[KMGT]i)?B")
_BYTE_RATE = re.compile(_NUMBER + r"(?P<prefix>[kMGT]|[KMGT]i)?B/s")
_DURATION = re.compile(_NUMBER + r"(?P<unit>ns|us|ms|s|min)")
_PERCENT = re.compile(_NUMBER + r"%")
_SCALE = re.compile(r"(?P<up>[0-9]{1,9})(?: ?/ ?(?P<down>[0-9]{1,9}))?")
_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9}


def _match(pattern: re.Pattern[str], text: str, what: str, example: str) -> re.Match[str]:
    found = pattern.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{_quote(text)} is not a {what}; write it like {example}")
    return found


def _quote(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}... ({len(text)} characters)"


def _whole(number: str, factor: int, text: str, unit: str) -> int:
    value = Fraction(number) * factor
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of {unit}; choose a finer prefix")
    return int(value)


def parse_rate_bps(text: str) -> int:
    """A link rate in bits per second: `10Gbit`, `2.5Gbit`, `100Mbit`.

    Raises:
        ValueError: it is not a rate.
    """
    found = _match(_RATE, text, "rate", "10Gbit or 100Mbit")
    return _whole(found["number"], _DECIMAL[found["prefix"]], text, "bits per second")


def parse_size_bytes(text: str) -> int:
    """A size in bytes: `2GiB`, `512MiB`, `64kB`.

    Raises:
        ValueError: it is not a size.
    """
    found = _match(_SIZE, text, "size", "2GiB or 512MiB")
    prefix = found["prefix"] or ""
    return _whole(found["number"], {**_DECIMAL, **_BINARY}[prefix], text, "bytes")


def parse_rate_bytes_per_s(text: str) -> int:
    """A byte rate in bytes per second: `400MB/s`, `1.5GB/s`.

    Raises:
        ValueError: it is not a byte rate.
    """
    found = _match(_BYTE_RATE, text, "byte rate", "400MB/s")
    prefix = found["prefix"] or ""
    return _whole(found["number"], {**_DECIMAL, **_BINARY}[prefix], text, "bytes per second")


def parse_duration_ns(text: str) -> int:
    """A duration in nanoseconds: `500ms`, `5s`, `20us`.

    Raises:
        ValueError: it is not a duration.
    """
    found = _match(_DURATION, text, "duration", "500ms or 5s")
    return _whole(found["number"], _NANOSECONDS[found["unit"]], text, "nanoseconds")


def parse_percent(text: str) -> Fraction:
    """A share of a whole, from 0 to 1: `20%`.

    Raises:
        ValueError: it is not a percentage, or above 100 %.
    """
    share = Fraction(_match(_PERCENT, text, "percentage", "20%")["number"]) / 100
    if share > 1:
        raise ValueError(f"{text!r} is more than 100%; write it like 20%")
    return share


def parse_scale(text: str) -> Fraction:
    """A scale, from above 0 to 1: `1`, `1/10`.

    Raises:
        ValueError: it is not of the form 1/k with a whole k.
    """
    found = _match(_SCALE, text, "scale", "1 or 1/10")
    down = int(found["down"] or 1)
    if int(found["up"]) != 1 or down < 1:
        raise ValueError(f"{text!r} is not of the form 1/k; write it like 1/10")
    return Fraction(1, down)


def _shortest(value: float, unit: str, steps: tuple[tuple[str, int], ...]) -> str:
    prefix, factor = next((step for step in steps if value >= step[1]), ("", 1))
    number = value / factor
    return f"{number:.3g} {prefix}{unit}" if number < 999.5 else f"{number:.0f} {prefix}{unit}"


def format_rate(rate_bps: float) -> str:
    """Bits per second for people: `9.87 Gbit/s`."""
    return _shortest(rate_bps, "bit/s", (("G", 10**9), ("M", 10**6), ("k", 10**3)))


def format_size(size_bytes: float) -> str:
    """Bytes for people, in powers of 1024: `1.5 GiB`."""
    return _shortest(size_bytes, "B", (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)))


def format_byte_rate(rate_bytes_per_s: float) -> str:
    """Bytes per second for people, decimal: `400 MB/s`."""
    return _shortest(rate_bytes_per_s, "B/s", (("G", 10**9), ("M", 10**6), ("k", 10**3)))


def format_duration(duration_ns: float) -> str:
    """Nanoseconds for people: `6.12 ms`."""
    for unit in ("s", "ms", "us"):
        number = duration_ns / _NANOSECONDS[unit]
        if abs(number) >= 1:
            return f"{number:.3g} {unit}" if abs(number) < 999.5 else f"{number:.0f} {unit}"
    return f"{duration_ns:.0f} ns"
