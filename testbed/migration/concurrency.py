"""Which of the migrations in a queue may start now, and why the others wait: plain values alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PER_DATASTORE = 128  # vSphere's limit of migrations with vMotion on one datastore
ASKED_BPS = 250_000_000  # for each migration (facts section 6)


@dataclass(frozen=True, slots=True)
class Move:
    """A VM's migration from host to host, over a vMotion network; the VM's files stay."""

    vm: str
    source: str
    destination: str
    network: str = ""
    datastores: tuple[str, ...] = ()

    def needs(self) -> Iterator[_Place]:
        """What has to have room for it."""
        yield "VM", self.vm
        yield "host", self.source
        yield "host", self.destination
        if self.network:
            yield "network", self.network
        for name in self.datastores:
            yield "datastore", name


_Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Limits:
    """How many migrations at once each host and network has room for; none named: any number."""

    hosts: Mapping[str, int] = field(default_factory=dict)
    networks: Mapping[str, int] = field(default_factory=dict)
    per_datastore: int = PER_DATASTORE

    def __post_init__(self) -> None:
        every = [*self.hosts.values(), *self.networks.values(), self.per_datastore]
        if min(every) < 1:
            raise ValueError("a limit must be 1 or more, or nothing would ever start")

    def most(self, place: _Place) -> int | None:
        """How many there; None: any number. A VM is moved once at a time."""
        kind, name = place
        if kind == "host":
            return self.hosts.get(name)
        if kind == "network":
            return self.networks.get(name)
        return 1 if kind == "VM" else self.per_datastore


@dataclass(frozen=True, slots=True)
class Waiting:
    """A migration that can't start yet, and each reason."""

    move: Move
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """What may start now, and what waits, both in the order of the queue."""

    start: tuple[Move, ...]
    waiting: tuple[Waiting, ...]


def admit(queue: Sequence[Move], running: Sequence[Move], limits: Limits) -> Admission:
    """Start what has room, in the order of the queue, and keep nobody waiting for ever.

    What has room may overtake what has none, but never takes the last room that the first of those
    who wait needs: as what runs comes to its end, that one starts, whatever else is asked for.
    """
    taken = Counter(place for move in running for place in move.needs())
    kept: Counter[_Place] = Counter()
    kept_for = ""
    start: list[Move] = []
    waiting: list[Waiting] = []
    for move in queue:
        causes = []
        for place in dict.fromkeys(move.needs()):
            most = limits.most(place)
            if most is None:
                continue
            if taken[place] >= most:
                causes.append(_full(place, taken[place]))
            elif taken[place] + kept[place] >= most:
                causes.append(f"{place[0]} {place[1]} keeps its last room for {kept_for}")
        if not causes:
            start.append(move)
            taken.update(move.needs())
            continue
        waiting.append(Waiting(move, tuple(causes)))
        if not kept:
            kept.update(move.needs())
            kept_for = move.vm
    return Admission(tuple(start), tuple(waiting))


def _full(place: _Place, count: int) -> str:
    kind, name = place
    if kind == "VM":
        return f"{name} is being migrated"
    return f"{kind} {name} has {count} migration{'s' if count > 1 else ''} already, the most"


def network_limit(nominal_bps: int) -> int:
    """How many fit a path between sites of this nominal rate, at 250 Mb/s each; one always."""
    return max(1, nominal_bps // ASKED_BPS)
