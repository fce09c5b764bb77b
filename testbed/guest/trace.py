"""How pages are traced, and what tracing did: asked for by a migration, told in its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

Stop: TypeAlias = Literal["stop-based", "loose"]
Granularity: TypeAlias = Literal["4KiB", "2MiB", "1GiB"]


@dataclass(frozen=True, slots=True)
class TraceMode:
    """Who stands still meanwhile, and how much memory one operation protects.

    At 1 GiB, which only ESX has, a region is broken down to 2 MiB and 4 KiB as pages of it fire.
    The tracking is then real at the finest grain that the memory has, its operations are
    counted as 1 GiB protection would have done them, and their time is modelled.
    """

    stop: Stop
    granularity: Granularity


@dataclass(frozen=True, slots=True)
class TraceReport:
    """What tracing did until now, in all vCPUs' page tables together.

    `operations` are the page table entries protected by the install, by what one maps;
    `broken_down` the tables that page fires made of one such entry, by what theirs map.
    `measured_install_ns` is the install that was done, `protect_ns` the part of it in which
    the kernel protected, `cost_ns` that per entry. `install_ns` is the same as measured, or, if
    `modelled`, operations x `cost_ns`; `break_down_ns` is modelled always, 512 entries a table.
    `page_fires` are first writes to protected pages. `stopped_ns` says how long each vCPU stood
    still, from being told to stop until it ran again, measured; `longest_stop_ns` at a time.
    """

    mode: TraceMode
    mechanism: str
    modelled: bool
    install_ns: int
    measured_install_ns: int
    protect_ns: int
    cost_ns: float
    operations: dict[Granularity, int]
    broken_down: dict[Granularity, int]
    break_down_ns: int
    page_fires: int
    stopped_ns: tuple[int, ...]
    longest_stop_ns: int


def parse_mode(text: str) -> TraceMode:
    """`loose`, `stop-based`, or one of them with a granularity, as `loose/1GiB`; 4 KiB if without.

    Raises:
        ValueError: it is none of these.
    """
    stop, _, granularity = text.partition("/")
    granularity = granularity or "4KiB"
    if stop in get_args(Stop) and granularity in get_args(Granularity):
        return TraceMode(cast("Stop", stop), cast("Granularity", granularity))
    raise ValueError(
        f"{text!r} is no way to trace pages: write {' or '.join(get_args(Stop))},"
        f" with a granularity or without: loose/{', loose/'.join(get_args(Granularity))}"
    )


def describe_mode(mode: TraceMode) -> str:
    """What `parse_mode` reads."""
    return f"{mode.stop}/{mode.granularity}"
