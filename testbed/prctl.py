"""What a process tells the kernel of itself: its name, when it is to die, how exactly it wakes."""

from __future__ import annotations

import ctypes
import os

_SET_PDEATHSIG, _SET_NAME, _SET_TIMERSLACK = 1, 15, 29  # linux/prctl.h
_NAME_BYTES = 15


def die_with_parent(signal_number: int) -> None:
    """Get this signal when the parent's thread that forked this process ends.

    Look at the parent's process id afterwards: it may have ended before.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_SET_PDEATHSIG, signal_number)


def set_name(name: str) -> None:
    """Be called so in lists of processes; what is longer than 15 bytes is cut.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_SET_NAME, name.encode()[:_NAME_BYTES])


def wake_exactly() -> None:
    """Have sleeps end when asked for, to 1 ns, instead of up to 50 us later.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_SET_TIMERSLACK, 1)


def _prctl(option: int, value: int | bytes) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl {option}")
