"""What a topology file can't say yet, and why: refused, never accepted and ignored.

An entry goes when its mechanism is built.
"""

from __future__ import annotations

WORKLOADS: dict[str, str] = dict.fromkeys(
    ("mail", "exchange", "compile"),
    "what it does to memory, disk and network at once needs a trace of the real one",
)
