"""How many CPUs this machine has."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """The number of CPUs."""
    return os.cpu_count() or 1
