"""Slow down during page send: how much a guest's vCPUs have to sleep so that pre-copy ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SdpsSpec:
    """When vCPUs are slowed down, and how far.

    `target_percent` is the transmit rate aimed at, in per cent of the dirty rate (facts section 6).
    `longest_sleep_ns` is the most that a vCPU sleeps for a millisecond that it has run ("a few
    milliseconds at most": facts row 25).
    """

    target_percent: int = 500
    longest_sleep_ns: int = 5_000_000
