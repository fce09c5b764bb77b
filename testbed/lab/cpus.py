"""How many CPUs this process may use: wires are spread over them."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """The number of CPUs."""
    return os.cpu_count() or 1
