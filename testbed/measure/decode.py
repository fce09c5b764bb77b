"""Frames in words, by scapy, where it is installed (docs/decisions/0002-dependencies.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DIRECTIONS = {1: "in", 2: "out"}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame of a file: when since 1970, on which interface, which way ("" if unknown)."""

    unix_ns: int
    interface: str
    direction: str
    length: int
    summary: str


class Decoder:
    """scapy, loaded once: 0.5 s.

    Raises:
        InputError: it is not installed.
    """

    def __init__(self) -> None:
        try:
            # all.py would start to look for this machine's interfaces and routes
            from scapy.layers import dhcp, dns, inet, inet6, l2, ntp, vxlan  # noqa: F401, PLC0415
            from scapy.utils import RawPcapNgReader  # noqa: PLC0415
        except ImportError as error:
            raise InputError(
                f"decode frames: {error}; pip install 'testbed[decode]' installs scapy"
            ) from error
        self._ethernet: Any = l2.Ether
        self._reader: Any = RawPcapNgReader

    def summary(self, frame: bytes) -> str:
        """A frame in one line, from its outermost layer inwards."""
        return str(self._ethernet(frame).summary())

    def read(self, path: Path) -> Iterator[Decoded]:
        """The frames of a pcapng file.

        Raises:
            InputError: it can't be read as one.
        """
        try:
            with path.open("rb") as file, self._reader(file) as reader:
                for data, about in reader:
                    unix_units = (about.tshigh << 32) + about.tslow
                    yield Decoded(
                        unix_ns=unix_units * 10**9 // about.tsresol,
                        interface=(about.ifname or b"").decode(errors="replace"),
                        direction=_DIRECTIONS.get(about.direction or 0, ""),
                        length=about.wirelen,
                        summary=self.summary(data),
                    )
        except OSError as error:
            raise InputError(f"read {path}: {error.strerror}") from error
        except Exception as error:
            if type(error).__name__ != "Scapy_Exception":
                raise
            raise InputError(f"read {path}: {error}") from error
