"""The leaves of policies: VLANs, delays, shares, marks; each read and shown as in `leaves`.

A leaf's type admits None: the file's value was refused, and its mistake reported.
"""

import ipaddress
import re
from fractions import Fraction
from typing import Annotated, Literal, TypeAlias

from netaddr import IPNetwork

from testbed import units
from testbed.topology.leaf import Leaf, one_of, texts, whole
from testbed.topology.policy import GUEST_TAGGING_VLAN, HIGHEST_VLAN
from testbed.topology.problems import Refusal, shown
from testbed.topology.traffic import SERVICE_TRAFFIC, SYSTEM_TRAFFIC

MAX_DELAY_NS = 2_000_000_000
SHARES = {"low": 25, "normal": 50, "high": 100}
"""NIOC's words for shares (vmotion-facts.md, section 6)."""

PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
"""IANA's protocol numbers."""

_RANGE = re.compile(r"([0-9]{1,5}) ?- ?([0-9]{1,5})")
_Pair: TypeAlias = tuple[int, int]


def _duration(text: str) -> int:
    value = units.parse_duration_ns(text)
    if value > MAX_DELAY_NS:
        raise Refusal(f"{shown(text)} is longer than any link takes", "write at most 2s")
    return value


def _loss(text: str) -> Fraction:
    value = units.parse_percent(text)
    if value == 1:
        raise Refusal("a link that loses 100% is no link", "write less, or remove the link")
    return value


def _shaped_burst(text: str) -> int:
    value = units.parse_size_bytes(text)
    if not 0 < value <= 2**32:
        raise Refusal(f"{shown(text)} is no burst", "write one such as 1MiB, up to 4GiB")
    return value


def _numbers(
    most: int, what: str, example: str, never: dict[int, tuple[str, str]] | None = None
) -> Leaf:
    """A number, or a range of them as a string; `never` are refused by reason and remedy."""
    how = f"write numbers from 0 to {most}, such as {example}"

    def parse(value: object) -> _Pair:
        if isinstance(value, str):
            found = _RANGE.fullmatch(value.strip())
            if found is None:
                raise Refusal(f"{shown(value)} is not {what}", how)
            first, last = int(found[1]), int(found[2])
            if first > last:
                raise Refusal(f"{shown(value)} is a range that runs backwards", how)
        elif isinstance(value, int) and not isinstance(value, bool):
            first = last = value
        else:
            raise Refusal(f"{shown(value)} is not {what}", how)
        if never and last in never:
            raise Refusal(f"{shown(value)}: {never[last][0]}", never[last][1])
        if not 0 <= first <= last <= most:
            raise Refusal(f"{shown(value)} is not {what}", how)
        return first, last

    return Leaf(
        parse,
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": most},
                {"type": "string", "pattern": "^[0-9]{1,5} ?- ?[0-9]{1,5}$"},
            ],
            "examples": [int(re.split("[ ,]", example)[0])],
        },
        what,
    )


def _cidr(text: str) -> IPNetwork:
    how = "write it like 192.168.20.0/24 or fd00:20::/64"
    try:
        if "%" in text:
            raise ValueError
        return IPNetwork(str(ipaddress.ip_network(text)))
    except ValueError as error:
        bits = "host bits" in str(error)
        what = "has bits after its prefix length" if bits else "is not a network"
        raise Refusal(f"{shown(text)} {what}", how) from None


def _on_off(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("on", "off"):
        return value == "on"
    raise Refusal(f"{shown(value)} is neither on nor off", "write on or off (or true or false)")


def _shares(value: object) -> int:
    if isinstance(value, str) and value in SHARES:
        return SHARES[value]
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100:
        return value
    how = "write low (25), normal (50), high (100) or a number from 1 to 100"
    raise Refusal(f"{shown(value)} is no number of shares", how)


def _standard_vlan(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= GUEST_TAGGING_VLAN:
        return value
    raise Refusal(
        f"{shown(value)} is not one VLAN, which a standard switch's port group has",
        "write 0 (untagged), 1 to 4094, or 4095 for guest tagging",
    )


_GUEST_TAGGING = "4095 stands for guest tagging, and only in a standard switch's port group"
Duration: TypeAlias = Annotated[
    int | None,
    texts(
        {"pattern": r"^([0-9.]{1,25} ?(ns|us|ms|s)|.*\[.+\].*)$", "examples": ["5ms", "300us"]},
        "a duration such as 5ms",
        _duration,
    ),
]
Loss: TypeAlias = Annotated[
    Fraction | None,
    texts(
        {"pattern": r"^([0-9.]{1,25} ?%|.*\[.+\].*)$", "examples": ["0.1%"]},
        "a share such as 0.1%",
        _loss,
    ),
]
Percent: TypeAlias = Annotated[
    Fraction | None,
    texts(
        {"pattern": r"^([0-9.]{1,25} ?%|.*\[.+\].*)$", "examples": ["30%"]},
        "a share such as 30%",
        units.parse_percent,
    ),
]
Burst: TypeAlias = Annotated[
    int | None,
    texts(
        {"pattern": r"^([0-9.]{1,25} ?([kMGT]|[KMGT]i)?B|.*\[.+\].*)$", "examples": ["1MiB"]},
        "a size such as 1MiB",
        _shaped_burst,
    ),
]
Vlans: TypeAlias = Annotated[
    _Pair | None,
    _numbers(
        HIGHEST_VLAN,
        "a VLAN",
        '10 or "100-199"',
        {GUEST_TAGGING_VLAN: (_GUEST_TAGGING, 'leave vlans out to carry all, or write "0-4094"')},
    ),
]
TrunkVlan: TypeAlias = Annotated[
    _Pair | None,
    _numbers(
        HIGHEST_VLAN,
        "a VLAN",
        '10 or "100-199"',
        {GUEST_TAGGING_VLAN: (_GUEST_TAGGING, 'write a trunk, such as "0-4094"')},
    ),
]
StandardVlan: TypeAlias = Annotated[
    int | None,
    Leaf(
        _standard_vlan,
        {"type": "integer", "minimum": 0, "maximum": GUEST_TAGGING_VLAN, "examples": [10]},
        "one VLAN; write 0 (untagged), 1 to 4094, or 4095 for guest tagging",
    ),
]
Vlan: TypeAlias = Annotated[int | None, whole(1, HIGHEST_VLAN, "a VLAN", "a VLAN", [10])]
Ports: TypeAlias = Annotated[_Pair | None, _numbers(65535, "a port", '8000 or "8000-8010"')]
Cos: TypeAlias = Annotated[int | None, whole(0, 7, "a CoS", "a priority", [4])]
Dscp: TypeAlias = Annotated[int | None, whole(0, 63, "a DSCP", "a code point", [26])]
Weight: TypeAlias = Annotated[int | None, whole(1, 1000, "a weight", "a weight", [4])]
QueueValue: TypeAlias = Annotated[int | None, whole(0, 63, "a CoS or DSCP", "a value", [4])]
Ring: TypeAlias = Annotated[int | None, whole(64, 4096, "a ring", "frames", [512])]
Shares: TypeAlias = Annotated[
    int | None,
    Leaf(
        _shares,
        {
            "anyOf": [
                {"type": "string", "enum": list(SHARES)},
                {"type": "integer", "minimum": 1, "maximum": 100},
            ],
            "examples": ["high"],
        },
        "shares such as high",
    ),
]
OnOff: TypeAlias = Annotated[
    bool | None, Leaf(_on_off, {"enum": [True, False, "on", "off"]}, "on or off")
]
Accept: TypeAlias = Annotated[
    Literal["accept", "reject"] | None, one_of("security policy", ("accept", "reject"))
]
Cidr: TypeAlias = Annotated[
    IPNetwork | None,
    texts(
        {"pattern": "^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$", "examples": ["192.168.20.0/24"]},
        "a network such as 192.168.20.0/24",
        _cidr,
    ),
]
Protocol: TypeAlias = Annotated[
    Literal["tcp", "udp", "icmp", "icmpv6"] | None, one_of("protocol", tuple(PROTOCOLS))
]
Traffic: TypeAlias = Annotated[str | None, one_of("system traffic type", SYSTEM_TRAFFIC)]
Service: TypeAlias = Annotated[
    str | None,
    one_of(
        "service",
        tuple(SERVICE_TRAFFIC),
        never={
            "faultTolerance": (
                "the service of fault tolerance is its logging",
                "write faultToleranceLogging",
            )
        },
    ),
]
Netstack: TypeAlias = Annotated[
    Literal["default", "vmotion", "provisioning"] | None,
    one_of("TCP/IP stack", ("default", "vmotion", "provisioning")),
]
QueueBy: TypeAlias = Annotated[Literal["cos", "dscp"] | None, one_of("mark", ("cos", "dscp"))]
IdleReservations: TypeAlias = Annotated[
    Literal["lost", "lent"] | None, one_of("rule for idle reservations", ("lost", "lent"))
]
_NO_HASH = (
    "it needs a port channel on the physical switch, and none runs one here",
    "write originating_port or mac_hash",
)
TeamingPolicy: TypeAlias = Annotated[
    Literal["originating_port", "mac_hash", "explicit"] | None,
    one_of(
        "teaming policy",
        ("originating_port", "mac_hash", "explicit"),
        never={
            "ip_hash": _NO_HASH,
            "lacp": _NO_HASH,
            "load_based": (
                "it moves ports by a 30 s average of their uplinks' load, which no run here lasts",
                "write originating_port, or explicit with an active uplink for each port group",
            ),
        },
    ),
]
Detection: TypeAlias = Annotated[
    Literal["link"] | None,
    one_of(
        "failure detection",
        ("link",),
        never={"beacon": ("no beacons are sent; a failure is seen by the link", "write link")},
    ),
]
