"""The leaves of a VM's workloads and memory, as in `leaves`; None: the value was refused."""

import ipaddress
from fractions import Fraction
from typing import Annotated, Literal, TypeAlias

from testbed import units
from testbed.topology import later
from testbed.topology.leaf import Leaf, one_of, texts, whole
from testbed.topology.leaves import NUMBER, SIZE, quantity, working_set
from testbed.topology.problems import Refusal, shown


def _share_or_size(text: str) -> Fraction | int:
    """Nothing at all is a value here."""
    if "%" in text:
        return units.parse_percent(text)
    try:
        return units.parse_size_bytes(text)
    except ValueError as error:
        what = str(error).rpartition("; ")[0].replace("size", "size or percentage")
        raise Refusal(what, "write it like 50% or 512MiB") from None


def _positive(most: int, what: str, example: str) -> Leaf:
    """A number above 0, whole or not."""

    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refusal(f"{shown(value)} is not a number", f"write it like {example}")
        if not 0 < value <= most:
            raise Refusal(f"{value} is no {what}", f"write one above 0, up to {most}")
        return float(value)

    schema = {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": most,
        "examples": [float(example) if "." in example else int(example)],
    }
    return Leaf(parse, schema, f"a {what} such as {example}")


def _sized(least: int, most: int, what: str, example: str) -> Leaf:
    """A size between two bounds."""

    def parse(text: str) -> int:
        value = units.parse_size_bytes(text)
        if not least <= value <= most:
            low, high = units.format_size(least), units.format_size(most)
            raise Refusal(f"{shown(text)} is no {what}", f"write {low} to {high}, as {example}")
        return value

    return texts(quantity(SIZE, [example]), f"a size such as {example}", parse)


def _whole_percent(text: str) -> int:
    share = units.parse_percent(text) * 100
    if share.denominator != 1:
        raise Refusal(f"{shown(text)} is not a whole percentage", "write it like 67%")
    return int(share)


def _block(text: str) -> int:
    value = units.parse_size_bytes(text)
    if not 512 <= value <= 2**20 or value % 512:
        how = "write a multiple of 512 B up to 1 MiB, as 4KiB"
        raise Refusal(f"{shown(text)} is no size of a block", how)
    return value


def _peer(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError
        ip = ipaddress.ip_address(text)
    except ValueError:
        how = "write it without a prefix length, like 192.168.10.51"
        raise Refusal(f"{shown(text)} is not an address", how) from None
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified or ip.is_link_local:
        how = "write that of another VM or host, like 192.168.10.51"
        raise Refusal(f"{shown(text)} is not an address to send to", how)
    return str(ip)


def _trace(text: str) -> str:
    if not text or "\0" in text:
        raise Refusal(f"{shown(text)} is no path", "name a trace file, as traces/db01.csv")
    return text


ShareOrSize: TypeAlias = Annotated[
    Fraction | int | None,
    texts(
        quantity(f"{NUMBER}%|{SIZE}", ["50%", "512MiB"]),
        "a share or size such as 50%",
        _share_or_size,
    ),
]
AllocatedSize: TypeAlias = Annotated[
    Fraction | int | None,
    texts(quantity(f"{NUMBER}%|{SIZE}", ["80%", "1GiB"]), "a share or size as 80%", working_set),
]
Exponent: TypeAlias = Annotated[float | None, _positive(4, "exponent", "0.99")]
Commits: TypeAlias = Annotated[float | None, _positive(10**6, "rate of commits", "500")]
PagesPerCommit: TypeAlias = Annotated[
    int | None, whole(1, 1000, "a number", "pages for each commit", [10])
]
IometerFile: TypeAlias = Annotated[int | None, _sized(512, 2**44, "size of a file", "64MiB")]
Block: TypeAlias = Annotated[
    int | None, texts(quantity(SIZE, ["4KiB", "64KiB"]), "a size such as 4KiB", _block)
]
Reads: TypeAlias = Annotated[
    int | None, texts(quantity(f"{NUMBER}%", ["67%"]), "a percentage such as 67%", _whole_percent)
]
Outstanding: TypeAlias = Annotated[int | None, whole(1, 256, "a number", "requests", [16])]
Iops: TypeAlias = Annotated[float | None, _positive(10**7, "rate of I/Os", "1000")]
Port: TypeAlias = Annotated[int | None, whole(1, 65535, "a port", "a TCP port", [80])]
Peer: TypeAlias = Annotated[
    str | None,
    texts({"examples": ["192.168.10.51"]}, "an address such as 192.168.10.51", _peer),
]
WebFile: TypeAlias = Annotated[int | None, _sized(1, 2**40, "size of a file", "10MiB")]
Trace: TypeAlias = Annotated[
    str | None, texts({"examples": ["traces/db01.csv"]}, "a path such as traces/db01.csv", _trace)
]
Affinity: TypeAlias = Annotated[int | None, whole(0, 4095, "a CPU", "a CPU of this machine", [0])]
PageSize: TypeAlias = Annotated[
    Literal["4KiB", "2MiB"] | None, one_of("page size", ("4KiB", "2MiB"))
]
Backing: TypeAlias = Annotated[
    Literal["real", "synthetic"] | None, one_of("backing", ("real", "synthetic"))
]


def kind_of(*words: str) -> Leaf:
    """The word by which the workloads of one object are told from the others."""
    return one_of("workload", words, later.WORKLOADS, meanwhile="use oltp, zipf or iometer")
