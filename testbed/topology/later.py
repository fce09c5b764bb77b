"""What a topology file can't say yet, and why: refused, never accepted and ignored.

An entry goes when its mechanism is built. A path names mappings' entries and lists' items
by `*`.
"""

from __future__ import annotations

from typing import TypeAlias

Shape: TypeAlias = tuple[str, ...]

_CPU = "the CPU ledger of a host comes later, so clock rates have no effect"
_PROFILE = "profiles of vMotion's behaviour come later; the present engine is the only one"

KEYS: dict[Shape, str] = {
    ("profile",): _PROFILE,
    ("hosts", "*", "profile"): _PROFILE,
    ("hosts", "*", "cpu", "mhz"): _CPU,
}

WORKLOADS: dict[str, str] = dict.fromkeys(
    ("mail", "exchange", "compile"),
    "what it does to memory, disk and network at once needs a trace of the real one",
)
