"""A series: values of one quantity at times of one clock."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Series:
    """Values of `unit`, each from its `at_ns` (CLOCK_MONOTONIC) until the next one's.

    Raises:
        ValueError: the numbers of times and values differ, or times don't ascend.
    """

    name: str
    unit: str
    at_ns: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.at_ns) != len(self.values):
            raise ValueError(
                f"series {self.name}: {len(self.at_ns)} times but {len(self.values)} values"
            )
        if any(a >= b for a, b in pairwise(self.at_ns)):
            raise ValueError(f"series {self.name}: its times do not ascend")

    def __len__(self) -> int:
        return len(self.values)

    def window(self, from_ns: int, until_ns: int) -> Series:
        """The points with from_ns <= at_ns < until_ns."""
        first, last = bisect_left(self.at_ns, from_ns), bisect_left(self.at_ns, until_ns)
        last = max(first, last)
        return Series(self.name, self.unit, self.at_ns[first:last], self.values[first:last])

    def value_at(self, at_ns: int) -> float | None:
        """The value that stands at a time; None before the first."""
        index = bisect_right(self.at_ns, at_ns)
        return self.values[index - 1] if index else None


def _one_unit(parts: Sequence[Series]) -> str:
    if not parts:
        raise ValueError("no series to join")
    units = {part.unit for part in parts}
    if len(units) > 1:
        raise ValueError(f"series of different units: {', '.join(sorted(units))}")
    return units.pop()


def sequential(name: str, parts: Sequence[Series]) -> Series:
    """Runs one after another on one time axis: nothing is added up.

    Raises:
        ValueError: no parts, different units, or two that overlap in time.
    """
    unit = _one_unit(parts)
    ordered = sorted((part for part in parts if part.at_ns), key=lambda part: part.at_ns[0])
    for a, b in pairwise(ordered):
        if a.at_ns[-1] >= b.at_ns[0]:
            raise ValueError(f"series {a.name} and {b.name} overlap in time: they ran in parallel")
    return Series(
        name,
        unit,
        tuple(at for part in ordered for at in part.at_ns),
        tuple(value for part in ordered for value in part.values),
    )


def parallel(
    name: str, parts: Sequence[Series], combine: Callable[[Sequence[float]], float] = sum
) -> Series:
    """Runs at the same time, combined (added up, by default) where all of them have a value.

    Raises:
        ValueError: no parts, different units, or no time at which all had begun and none ended.
    """
    unit = _one_unit(parts)
    if any(not part.at_ns for part in parts):
        raise ValueError("an empty series runs in parallel with nothing")
    begin, end = max(p.at_ns[0] for p in parts), min(p.at_ns[-1] for p in parts)
    if begin > end:
        raise ValueError("the series do not overlap in time: they ran one after another")
    times = sorted({at for part in parts for at in part.at_ns if begin <= at <= end} | {begin})
    values = (
        combine([value for part in parts if (value := part.value_at(at)) is not None])
        for at in times
    )
    return Series(name, unit, tuple(times), tuple(values))
