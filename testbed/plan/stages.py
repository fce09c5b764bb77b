"""The stages of a port's IOChain: pure data, each one rule that a frame passes.

A stage belongs to one direction. *In* is what the port receives from whatever is plugged into
it (a vmk, a VM, a cable), *out* is what it sends there. The order is that of vmotion-facts.md
row 47: the port group (VLAN, security, marking), the virtual switch (teaming), the uplink.

What the stages tell each other about a frame is in its mark, within one namespace only:
bits 0-6 the number of the uplink it leaves by (none: 0) or, with bit 7 set, that it came in by;
bits 8-11 its system traffic type; bits 16-31 the minor number of its HTB class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Numbers as (first, last) pairs, both included."""

ARRIVED = 1 << 7
UPLINK_MASK = 0x7F
TRAFFIC_SHIFT = 8
CLASS_SHIFT = 16
LOSS_UNIT = 1 << 32


@dataclass(frozen=True, slots=True)
class Tag:
    """In: drops tagged frames and tags the others with `vid` and `cos` (vid 0: leaves untagged).

    Of an access port; at a VM's own end of its wire, going out, it is the guest's tagging.
    """

    kind: ClassVar[str] = "tag"
    vid: int
    cos: int = 0


@dataclass(frozen=True, slots=True)
class Untag:
    """Out: passes frames of this VLAN only, without their tag (vid 0: untagged ones only)."""

    kind: ClassVar[str] = "untag"
    vid: int


@dataclass(frozen=True, slots=True)
class Carry:
    """Both: passes tagged frames of these VLANs, and untagged ones if `untagged`."""

    kind: ClassVar[str] = "carry"
    vids: Ranges
    untagged: bool = False


@dataclass(frozen=True, slots=True)
class ForgedTransmits:
    """In: drops frames whose source isn't `mac` (policy `forged transmits: reject`)."""

    kind: ClassVar[str] = "forged_transmits"
    mac: str


@dataclass(frozen=True, slots=True)
class MacChanges:
    """Out: drops unicast frames that aren't for `mac` (policy `MAC changes: reject`)."""

    kind: ClassVar[str] = "mac_changes"
    mac: str


@dataclass(frozen=True, slots=True)
class Mirror:
    """In: clones unicast frames that aren't for `mac` to a promiscuous port that is open."""

    kind: ClassVar[str] = "mirror"
    dev: str
    mac: str


@dataclass(frozen=True, slots=True)
class MarkRule:
    """Sets CoS (0-7) and DSCP (0-63), each unless None, on frames that match all qualifiers.

    `traffic` is a system traffic type's number, `protocol` IP's (6, 17, 1, 58), both 0 for any;
    addresses are CIDRs, "" for any; ports are ranges, () for any. A frame without IP matches
    only a rule without address, protocol and ports, and gets its CoS alone.
    """

    cos: int | None = None
    dscp: int | None = None
    traffic: int = 0
    protocol: int = 0
    source: str = ""
    destination: str = ""
    source_ports: Ranges = ()
    destination_ports: Ranges = ()


@dataclass(frozen=True, slots=True)
class Marking:
    """Both: the first rule that matches a frame marks it. CoS needs a tag to be in."""

    kind: ClassVar[str] = "marking"
    rules: tuple[MarkRule, ...]


@dataclass(frozen=True, slots=True)
class Classify:
    """In: notes the frame's system traffic type and its HTB class (minor, 0: the default)."""

    kind: ClassVar[str] = "classify"
    traffic: int
    minor: int = 0


@dataclass(frozen=True, slots=True)
class Team:
    """In: the frame will leave by the uplink that the port is pinned to now (a cell of its map).

    Out: passes what comes from local ports, and from outside what came in by that uplink.
    """

    kind: ClassVar[str] = "team"


@dataclass(frozen=True, slots=True)
class Arrive:
    """In, at an uplink: notes its number, forgets all else.

    With `reflections` it drops frames whose source is an address of the switch's own ports: a
    broadcast that the physical switch sends back by the team's other uplinks.
    """

    kind: ClassVar[str] = "arrive"
    uplink: int
    reflections: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """Out, at an uplink: passes only frames that are to leave by it."""

    kind: ClassVar[str] = "leave"
    uplink: int


@dataclass(frozen=True, slots=True)
class Queue:
    """Out, at an uplink: the frame's HTB class is the one noted in its mark.

    Minors from 0x8000 on are of major 2, others of major 1 (`TrafficClass`).
    """

    kind: ClassVar[str] = "queue"


@dataclass(frozen=True, slots=True)
class QueueByCos:
    """Out, at a physical switch: HTB class by the tag's CoS; `minors[cos]`, 0: the default."""

    kind: ClassVar[str] = "queue_by_cos"
    minors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QueueByDscp:
    """Out, at a physical switch: HTB class by DSCP; `minors[dscp]`, 0: the default."""

    kind: ClassVar[str] = "queue_by_dscp"
    minors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MaxSize:
    """Out: drops packets longer than `mtu` (of their network layer), whole trains of TCP too.

    The kernel forwards a train of segments whatever their size; a switch would not.
    """

    kind: ClassVar[str] = "max_size"
    mtu: int


@dataclass(frozen=True, slots=True)
class Lose:
    """In, at the receiving end of a link: drops `probability` / 2**32 of the frames, at random.

    A train of TCP segments is one frame here.
    """

    kind: ClassVar[str] = "lose"
    probability: int


Stage: TypeAlias = (
    Tag | Untag | Carry | ForgedTransmits | MacChanges | Mirror | Marking | Classify | Team
    | Arrive | Leave | Queue | QueueByCos | QueueByDscp | MaxSize | Lose
)  # fmt: skip


def _types() -> dict[str, type[Stage]]:
    kinds: tuple[type[Stage], ...] = (
        Tag, Untag, Carry, ForgedTransmits, MacChanges, Mirror, Marking, Classify, Team,
        Arrive, Leave, Queue, QueueByCos, QueueByDscp, MaxSize, Lose,
    )  # fmt: skip
    return {kind.kind: kind for kind in kinds}


def stage_to_json(stage: Stage) -> dict[str, Any]:
    """A stage as a JSON object; `kind` names its type."""
    return {"kind": stage.kind, **asdict(stage)}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def stage_from_json(data: dict[str, Any]) -> Stage:
    """The stage that `stage_to_json` wrote.

    Raises:
        KeyError, TypeError: it is not of that form.
    """
    if data["kind"] == Marking.kind:
        rules = ({name: _frozen(value) for name, value in rule.items()} for rule in data["rules"])
        return Marking(tuple(MarkRule(**rule) for rule in rules))
    fields = {name: _frozen(value) for name, value in data.items() if name != "kind"}
    return _types()[data["kind"]](**fields)
