"""What a VM does, as it is asked for: one dataclass a kind, at the lab's scale.

A VM does all that its list says at once; an empty list is an idle VM. Rates are asked of all
vCPUs together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

MOST_WORKLOADS = 8
"""How many workloads one VM may have at a time: guest memory has records for so many."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes pages of a working set of its own, at a rate.

    The rate is page writes x 4096 bytes a second. `sequential` goes through the working set in
    order, again and again; `uniform` picks any page of W, so that n writes hit W(1 - e^(-n/W));
    `zipf` prefers few of them, the r-th with probability ~ r^-exponent.
    """

    kind: Literal["uniform", "sequential", "zipf"]
    dirty_rate_bytes_per_s: int
    working_set_bytes: int
    exponent: float = 0.99


@dataclass(frozen=True, slots=True)
class Allocate:
    """Fills memory that was zero, once, then rests: the memory allocation tool of facts row 4.

    A rate of 0: as fast as it can.
    """

    size_bytes: int
    rate_bytes_per_s: int = 0
    kind: Literal["allocate"] = "allocate"


@dataclass(frozen=True, slots=True)
class Oltp:
    """Transactions over a buffer pool: each reads and writes pages, then a log page, and commits.

    `pages_per_commit` pages of the pool are read and written, zipf by `exponent`, and one page of
    the log, in order. The pool takes nine tenths of the working set, the log the rest.
    """

    commits_per_s: float
    working_set_bytes: int
    pages_per_commit: int = 10
    exponent: float = 0.99
    kind: Literal["oltp"] = "oltp"


@dataclass(frozen=True, slots=True)
class Iometer:
    """Reads and writes blocks of a file on the VM's datastore, so many outstanding at a time.

    Blocks are picked at random; `read_percent` of the requests read. An `iops` of 0: as many as
    it can.
    """

    file_bytes: int
    block_bytes: int = 4096
    read_percent: int = 67
    outstanding: int = 16
    iops: float = 0
    kind: Literal["iometer"] = "iometer"


@dataclass(frozen=True, slots=True)
class Web:
    """A web server (HTTP/1.1): `GET /N` downloads file number N of `file_bytes`."""

    port: int = 80
    file_bytes: int = 10_485_760
    kind: Literal["web"] = "web"


@dataclass(frozen=True, slots=True)
class Media:
    """A media stream without buffering: whoever connects is sent a paced stream, in 10 ms parts."""

    port: int = 554
    rate_bps: int = 8_000_000
    kind: Literal["media"] = "media"


@dataclass(frozen=True, slots=True)
class Echo:
    """TCP echo."""

    port: int = 7
    kind: Literal["echo"] = "echo"


@dataclass(frozen=True, slots=True)
class Bulk:
    """Sends to whoever listens at an address, over one TCP connection, as fast as it may.

    At a `rate_bps` it sends no more than that. A connection that is lost is opened again.
    """

    address: str
    port: int = 9
    rate_bps: int = 0
    kind: Literal["bulk"] = "bulk"


@dataclass(frozen=True, slots=True)
class Sink:
    """Takes whatever is sent to it, and counts it: TCP discard (RFC 863)."""

    port: int = 9
    kind: Literal["sink"] = "sink"


@dataclass(frozen=True, slots=True)
class Ping:
    """Answers ICMP and ICMPv6 echo requests by vCPU code, the kernel being told not to."""

    kind: Literal["ping"] = "ping"


@dataclass(frozen=True, slots=True)
class TraceRange:
    """From `at_ns` on pages first_page .. first_page + pages - 1 are written at a rate, in order.

    Until the next range of the same pages, or the trace's end.
    """

    at_ns: int
    until_ns: int
    first_page: int
    pages: int
    rate_bytes_per_s: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Writes what a trace says; pages count from the first that is not the guest's own state."""

    ranges: tuple[TraceRange, ...]
    repeat: bool = False
    file: str = ""
    kind: Literal["replay"] = "replay"


NetworkWorkload: TypeAlias = Web | Media | Echo | Bulk | Sink | Ping
Workload: TypeAlias = Writer | Allocate | Oltp | Iometer | Replay | NetworkWorkload

_KINDS: dict[str, type[Workload]] = {
    "uniform": Writer,
    "sequential": Writer,
    "zipf": Writer,
    "allocate": Allocate,
    "oltp": Oltp,
    "iometer": Iometer,
    "web": Web,
    "media": Media,
    "echo": Echo,
    "bulk": Bulk,
    "sink": Sink,
    "ping": Ping,
    "replay": Replay,
}


def to_json(workload: Workload) -> dict[str, Any]:
    """A workload as a JSON object."""
    return asdict(workload)


def from_json(data: dict[str, Any]) -> Workload:
    """What `to_json` made.

    Raises:
        ValueError: it is none.
    """
    kind = _KINDS.get(data.get("kind", ""))
    if kind is None:
        raise ValueError(f"there is no workload of kind {data.get('kind')!r}")
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"workload {data['kind']}: unknown {', '.join(unknown)}")
    if kind is Replay:
        ranges = tuple(TraceRange(**row) for row in data["ranges"])
        return Replay(**{**data, "ranges": ranges})
    return kind(**data)


def of_network(workloads: tuple[Workload, ...]) -> tuple[NetworkWorkload, ...]:
    """Those that the VM's NIC process serves."""
    return tuple(one for one in workloads if isinstance(one, NetworkWorkload))
