"""The leaves of a topology file: each kind of value, how it is read and how editors see it.

A leaf's type admits None: the file's value was refused, and its mistake reported.
"""

import ipaddress
import re
from fractions import Fraction
from typing import Annotated, Any, TypeAlias

from netaddr import IPAddress, IPNetwork

from testbed import units
from testbed.topology.leaf import Leaf, named, texts, whole
from testbed.topology.node import Node
from testbed.topology.problems import Refusal, shown
from testbed.topology.profile_leaf import PROFILE

MIN_MTU, MAX_MTU = 576, 9216
MIN_RATE_BPS, MAX_RATE_BPS = 8_000, 10**12
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
NUMBER = r"[0-9]{1,15}(\.[0-9]{1,9})? ?"
SIZE = NUMBER + r"([kMGT]|[KMGT]i)?B"


def _rate(text: str) -> int:
    value = units.parse_rate_bps(text)
    if not MIN_RATE_BPS <= value <= MAX_RATE_BPS:
        what = "is no rate that can be shaped"
        raise Refusal(f"{shown(text)} {what}", "write 8kbit to 1Tbit, or nothing for no limit")
    return value


def _memory(text: str) -> int:
    value = units.parse_size_bytes(text)
    if not 2**20 <= value <= 2**46:
        raise Refusal(f"{shown(text)} is no memory size", "write 1MiB to 64TiB, such as 2GiB")
    return value


def _dirty_rate(text: str) -> int:
    value = units.parse_rate_bytes_per_s(text)
    if not 0 < value <= 10**12:
        raise Refusal(
            f"{shown(text)} is no rate to write at",
            "write one up to 1TB/s, such as 400MB/s, or kind: idle for none",
        )
    return value


def working_set(text: str) -> Fraction | int:
    """A share or a size of memory that is to be written.

    Raises:
        ValueError: it is neither, or nothing.
    """
    try:
        value = units.parse_percent(text) if "%" in text else units.parse_size_bytes(text)
    except ValueError as error:
        if "%" in text:
            raise
        what = str(error).rpartition("; ")[0].replace("size", "size or percentage")
        raise Refusal(what, "write it like 20% or 512MiB") from None
    if value == 0:
        raise Refusal(f"{shown(text)} leaves nothing to write", "write it like 20% or 512MiB")
    return value


def _scale(value: object) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Refusal(f"{shown(value)} is not a scale", "write 1 or 1/10")
    return units.parse_scale(str(value))


def _address(text: str) -> IPNetwork:
    """A host address with its prefix length."""
    how = "write it like 192.168.20.11/24 or fd00::11/64"
    _, slash, prefix = text.partition("/")
    if not slash:
        raise Refusal(f"{shown(text)} lacks the prefix length of its network", how)
    try:
        if "%" in text or not re.fullmatch(r"[0-9]{1,3}", prefix):
            raise ValueError
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise Refusal(f"{shown(text)} is not an address with a prefix length", how) from None
    ip, network = interface.ip, interface.network
    if network.prefixlen == 0:
        raise Refusal(f"{shown(text)} makes every address local", how)
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified:
        raise Refusal(f"{shown(text)} is not an address of a host", how)
    if ip.version == 6 and ip.is_link_local:
        raise Refusal(f"{shown(text)} is link-local: the same on every link", "use one of fd00::/8")
    if network.num_addresses > 2 and ip == network.network_address:
        raise Refusal(f"{shown(text)} is the address of the network {network} itself", how)
    if ip.version == 4 and network.num_addresses > 2 and ip == network.broadcast_address:
        raise Refusal(f"{shown(text)} is the broadcast address of {network}", how)
    return IPNetwork(f"{ip}/{network.prefixlen}")


def _gateway(text: str) -> IPAddress:
    try:
        if "%" in text:
            raise ValueError
        ip = ipaddress.ip_address(text)
    except ValueError:
        how = "write it without a prefix length, like 192.168.20.1"
        raise Refusal(f"{shown(text)} is not an address", how) from None
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified:
        raise Refusal(f"{shown(text)} is not an address of a router", "write one like 192.168.20.1")
    return IPAddress(str(ip))


def _mac(text: str) -> str:
    how = "write six bytes like 00:50:56:00:00:01"
    if re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text) is None:
        raise Refusal(f"{shown(text)} is not a MAC address", how)
    if int(text[:2], 16) & 1 or set(text) <= set("0:"):
        raise Refusal(f"{shown(text)} is not the MAC address of one adapter", how)
    return text.lower()


def quantity(regex: str, examples: list[str]) -> dict[str, Any]:
    """The JSON Schema of a number with its unit, or of a pattern of them."""
    return {"pattern": rf"^({regex}|.*\[.+\].*)$", "examples": examples}


_LETTERS = "letters, digits, - and _ only, at most 63, a letter or digit first"
Name: TypeAlias = Annotated[str, named(_NAME, "a name", f"use {_LETTERS}", ["esx01"])]
LabName: TypeAlias = Annotated[
    str,
    named(
        r"[a-z0-9][a-z0-9_-]{0,30}",
        "a name of a lab",
        "use small letters, digits, - and _ only, at most 31, a letter or digit first",
        ["quickstart"],
    ),
]
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
VmkName: TypeAlias = Annotated[
    str, named("vmk" + _BYTE, "a name of a vmk", "write vmk0 to vmk255", ["vmk0", "vmk1"])
]
VmnicName: TypeAlias = Annotated[
    str, named("vmnic" + _BYTE, "a name of a vmnic", "write vmnic0 to vmnic255", ["vmnic0"])
]
UplinkName: TypeAlias = Annotated[
    str | None,
    named(
        f"{_NAME}/{_NAME}",
        "an uplink of a distributed switch",
        "write the switch and the uplink, like DSwitch/uplink1",
        ["DSwitch/uplink1"],
    ),
]
Reference: TypeAlias = Annotated[str | None, texts({}, "a name", lambda text: text)]
Rate: TypeAlias = Annotated[
    int | None,
    texts(
        quantity(NUMBER + "[kKMGT]?(bit|bps|bit/s|b/s)", ["10Gbit", "100Mbit"]),
        "a rate such as 10Gbit",
        _rate,
    ),
]
Memory: TypeAlias = Annotated[
    int | None,
    texts(quantity(SIZE, ["64GiB", "512MiB"]), "a size such as 2GiB", _memory),
]
DirtyRate: TypeAlias = Annotated[
    int | None,
    texts(quantity(SIZE + "/s", ["400MB/s"]), "a byte rate such as 400MB/s", _dirty_rate),
]
WorkingSet: TypeAlias = Annotated[
    Fraction | int | None,
    texts(quantity(f"{NUMBER}%|{SIZE}", ["20%", "512MiB"]), "a share such as 20%", working_set),
]
Scale: TypeAlias = Annotated[
    Fraction | None,
    Leaf(
        _scale,
        {
            "anyOf": [
                {"type": "integer", "const": 1},
                {"type": "string", "pattern": "^1( ?/ ?[1-9][0-9]{0,8})?$"},
            ],
            "examples": [1, "1/10"],
        },
        "a scale such as 1/10",
    ),
]
Mtu: TypeAlias = Annotated[int | None, whole(MIN_MTU, MAX_MTU, "an MTU", "bytes", [1500, 9000])]
Cores: TypeAlias = Annotated[int | None, whole(1, 1024, "a number", "cores", [8])]
Mhz: TypeAlias = Annotated[int | None, whole(100, 10_000, "a clock rate", "MHz", [2260])]
Profile: TypeAlias = Annotated[str | Node | None, PROFILE]
Vcpus: TypeAlias = Annotated[int | None, whole(1, 768, "a number", "vCPUs", [2])]
Address: TypeAlias = Annotated[
    IPNetwork | None,
    texts(
        {
            "pattern": r"^[0-9A-Fa-f.:,\[\]-]+/[0-9]{1,3}$",
            "examples": ["192.168.20.11/24", "192.168.20.[11-12]/24", "fd00::11/64"],
        },
        "an address with its prefix length such as 192.168.20.11/24",
        _address,
    ),
]
Gateway: TypeAlias = Annotated[
    IPAddress | None,
    texts(
        {"pattern": r"^[0-9A-Fa-f.:,\[\]-]+$", "examples": ["192.168.20.1"]},
        "an address such as 192.168.20.1",
        _gateway,
    ),
]
Mac: TypeAlias = Annotated[
    str | None,
    texts(
        quantity("[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", ["00:50:56:00:00:01"]),
        "a MAC address such as 00:50:56:00:00:01",
        _mac,
    ),
]
