"""Names in the kernel: namespaces carry the lab's name, interfaces fit 15 bytes."""

from __future__ import annotations

from base64 import b32encode
from dataclasses import dataclass, field
from hashlib import sha256

IFNAME_BYTES = 15
"""Linux: IFNAMSIZ is 16 with the closing NUL (include/uapi/linux/if.h)."""

PREFIX = "tb"


def netns_name(lab: str, node: str) -> str:
    """The namespace of a node; the prefix and the lab's name (which has no dot) tag its owner."""
    return f"{PREFIX}.{lab}.{node}"


def owner_of(netns: str) -> str | None:
    """The lab that a namespace of this name belongs to, or None if it isn't a lab's."""
    prefix, _, rest = netns.partition(".")
    lab, dot, node = rest.partition(".")
    return lab if prefix == PREFIX and dot and lab and node else None


def alias(lab: str, what: str) -> str:
    """The owner's tag on a link (`ip link` shows it): the lab and the whole, unshortened name."""
    return f"testbed {lab}: {what}"


def short_name(wanted: str) -> str:
    """`wanted` if it fits, else its beginning, three characters of its hash, and its last part.

    `esx-frankfurt-01-vmnic0` becomes `esx-fxq3-vmnic0`: a person still sees which it is.
    """
    if len(wanted) <= IFNAME_BYTES:
        return wanted
    mark = b32encode(sha256(wanted.encode()).digest()).decode().lower()[:3]
    head, dash, tail = wanted.rpartition("-")
    ending = f"{mark}-{tail}" if dash and len(tail) <= 7 else mark
    return f"{(head if dash and len(tail) <= 7 else wanted)[: IFNAME_BYTES - len(ending)]}{ending}"


@dataclass(slots=True)
class InterfaceNames:
    """The interface names given so far in each namespace; no two are alike."""

    given: dict[str, set[str]] = field(default_factory=dict)

    def give(self, netns: str, wanted: str) -> str:
        """A free name in `netns`, as near to `wanted` as it can be."""
        taken = self.given.setdefault(netns, {"lo"})
        name, salt = short_name(wanted), 0
        while name in taken:
            salt += 1
            name = short_name(f"{wanted}-{salt}".rjust(IFNAME_BYTES + 1, "x"))
        taken.add(name)
        return name
