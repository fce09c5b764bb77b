"""What a topology file can't say yet, and why: refused, never accepted and ignored.

An entry goes when its mechanism is built. A path names mappings' entries and lists' items
by `*`.
"""

from __future__ import annotations

from typing import TypeAlias

Shape: TypeAlias = tuple[str, ...]

_CPU = "the CPU ledger of a host comes later, so clock rates have no effect"
_PROFILE = "profiles of vMotion's behaviour come later; the present engine is the only one"
_MEMORY = "other memory backings come later; a VM's memory is 4 KiB pages"

KEYS: dict[Shape, str] = {
    ("profile",): _PROFILE,
    ("hosts", "*", "profile"): _PROFILE,
    ("hosts", "*", "cpu", "mhz"): _CPU,
    ("vms", "*", "backing"): _MEMORY,
    ("vms", "*", "page_size"): _MEMORY,
    ("vms", "*", "reservation"): "admission by reservations comes later",
}

WORKLOADS: dict[str, str] = dict.fromkeys(
    ("oltp", "iometer", "web", "exchange", "zipf", "mail", "compile"),
    "only idle, uniform and sequential writers exist so far",
)
