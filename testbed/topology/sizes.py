"""Sizes and rates after `scale`: shares of a VM's memory, and what is whole."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from testbed.guest.layout import first_data_page
from testbed.topology.leaves import MIN_RATE_BPS
from testbed.units import format_size

if TYPE_CHECKING:
    from testbed.topology.draft import Draft
    from testbed.topology.machines import Vm
    from testbed.topology.problems import Path

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Sizes:
    """A VM whose memory is known."""

    vm: Vm
    scale: Fraction

    @property
    def memory_bytes(self) -> int:
        """Its memory."""
        return int((self.vm.memory or 0) * self.scale)

    def of(self, wanted: Fraction | int) -> int:
        """A share of its memory, or a size, in whole pages, rounded down."""
        share = isinstance(wanted, Fraction)
        size = self.memory_bytes * wanted if share else wanted * self.scale
        return int(size) // PAGE_BYTES * PAGE_BYTES


def own_bytes(vm: Vm) -> int:
    """The pages of its memory that hold the guest's state."""
    return first_data_page(vm.vcpus or 1) * PAGE_BYTES


def of_scale(scale: Fraction) -> str:
    """` at scale 1/10`, or nothing."""
    return "" if scale == 1 else f" at scale {scale}"


def size_text(size: Fraction | int) -> str:
    """A size for people."""
    return format_size(float(size))


def check_rate(draft: Draft, path: Path, rate: int | None, scale: Fraction) -> None:
    """Report a rate that is none after scaling."""
    if rate is None:
        return
    scaled = rate * scale
    if scaled.denominator != 1 or scaled < MIN_RATE_BPS:
        draft.problems.add(
            path,
            f"{draft.problems.written(path)}{of_scale(scale)} is not a whole rate of at least"
            " 8 kbit/s",
            f"use a multiple of {1 / scale} bit/s, or another scale",
        )
