"""What can be changed on a link of a running lab, and the topology that comes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError
from testbed.topology.bandwidth import RESERVABLE
from testbed.topology.policy import Impairment
from testbed.units import format_duration, format_rate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.topology.model import Host, PhysicalLink, Topology, Uplink


@dataclass(frozen=True, slots=True)
class LinkChange:
    """New values for a link; None leaves one as it is.

    `ends` are two physical switches, or a host's vmnic (`esx01/vmnic0`) and its switch. Delay
    is one way, as are jitter and loss, and hold for both directions. `up` True and False
    restores and cuts the link.
    """

    ends: tuple[str, str]
    delay_ns: int | None = None
    jitter_ns: int | None = None
    loss: float | None = None
    rate_bps: int | None = None
    mtu: int | None = None
    up: bool | None = None

    @property
    def lasting(self) -> LinkChange | None:
        """What of it becomes part of the lab's description; None if it only cuts or restores."""
        values = (self.delay_ns, self.jitter_ns, self.loss, self.rate_bps, self.mtu)
        return None if all(value is None for value in values) else replace(self, up=None)

    def __str__(self) -> str:
        """`tor-a - tor-b: 5 ms one way, loss 1 %`."""
        words = []
        if self.delay_ns is not None:
            words.append(f"{format_duration(self.delay_ns)} one way")
        if self.jitter_ns is not None:
            words.append(f"jitter {format_duration(self.jitter_ns)}")
        if self.loss is not None:
            words.append(f"loss {100 * self.loss:.3g} %")
        if self.rate_bps is not None:
            words.append(format_rate(self.rate_bps))
        if self.mtu is not None:
            words.append(f"MTU {self.mtu}")
        if self.up is not None:
            words.append("up" if self.up else "down")
        return f"{' - '.join(self.ends)}: {', '.join(words)}"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LinkChange:
        """What `to_json` wrote.

        Raises:
            TypeError: it is not of that form.
        """
        return cls(**data | {"ends": tuple(data["ends"])})


def changed_links(topology: Topology, changes: Iterable[dict[str, Any]]) -> Topology:
    """A topology with changes of its links, in order.

    Raises:
        InputError: there is no such link, or it can't have such a value.
    """
    for data in changes:
        topology = changed(topology, LinkChange.from_json(data))
    return topology


def without(changes: tuple[dict[str, Any], ...], one: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Changes without the last one that is like `one`; all of them if none is."""
    found = [number for number, change in enumerate(changes) if change == one]
    return tuple(change for number, change in enumerate(changes) if number not in found[-1:])


def changed(topology: Topology, change: LinkChange) -> Topology:
    """A topology with one change of a link.

    Raises:
        InputError: there is no such link, or it can't have such a value.
    """
    found = find(topology, change.ends)
    if isinstance(found, tuple):
        host, uplink = found
        if (change.delay_ns, change.jitter_ns, change.loss) != (None, None, None):
            raise InputError(
                f"link {' - '.join(change.ends)}: delay, jitter and loss belong to links between"
                " physical switches; put a second switch and a link between them"
            )
        new = replace(
            uplink,
            rate_bps=uplink.rate_bps if change.rate_bps is None else change.rate_bps,
            mtu=uplink.mtu if change.mtu is None else change.mtu,
        )
        _check_reservations(host, new, change)
        return _with_uplink(topology, host, new)
    new_link = replace(
        found,
        rate_bps=found.rate_bps if change.rate_bps is None else change.rate_bps,
        mtu=found.mtu if change.mtu is None else change.mtu,
        there=_impaired(found.there, change),
        back=_impaired(found.back, change),
    )
    links = tuple(new_link if link is found else link for link in topology.links)
    return replace(topology, links=links)


def _impaired(old: Impairment, change: LinkChange) -> Impairment:
    new = Impairment(
        old.delay_ns if change.delay_ns is None else change.delay_ns,
        old.jitter_ns if change.jitter_ns is None else change.jitter_ns,
        old.loss if change.loss is None else change.loss,
    )
    if new.jitter_ns > new.delay_ns:
        raise InputError(
            f"link {' - '.join(change.ends)}: a jitter of {new.jitter_ns / 1e6:g} ms is more than"
            f" the delay of {new.delay_ns / 1e6:g} ms one way; give a smaller one"
        )
    return new


def _check_reservations(host: Host, uplink: Uplink, change: LinkChange) -> None:
    """More than the link carries would overrun it: HTB keeps what it has guaranteed."""
    switch = next((v for v in host.vswitches if uplink.name in v.uplinks), None)
    if change.rate_bps is None or switch is None or switch.nioc is None:
        return
    reserved = sum(given.reservation_bps for _, given in switch.nioc.allocations)
    if reserved > change.rate_bps * RESERVABLE:
        raise InputError(
            f"link {' - '.join(change.ends)}: {format_rate(reserved)} are reserved on the uplinks"
            f" of {switch.name}, more than 75 % of {format_rate(change.rate_bps)}; give at least"
            f" {format_rate(float(reserved / RESERVABLE))}, or apply smaller reservations first"
        )


def _with_uplink(topology: Topology, host: Host, uplink: Uplink) -> Topology:
    uplinks = tuple(uplink if one.name == uplink.name else one for one in host.uplinks)
    new = replace(host, uplinks=uplinks)
    return replace(topology, hosts=tuple(new if h is host else h for h in topology.hosts))


def find(topology: Topology, ends: tuple[str, str]) -> PhysicalLink | tuple[Host, Uplink]:
    """The link between two nodes: of two switches, or a host's vmnic and its switch.

    Raises:
        InputError: there is none, or a host has several to that switch.
    """
    for link in topology.links:
        if set(ends) == set(link.ends):
            return link
    for here, there in (ends, ends[::-1]):
        name, _, vmnic = here.partition("/")
        host = next((h for h in topology.hosts if h.name == name), None)
        if host is None:
            continue
        cables = [u for u in host.uplinks if u.switch == there and (not vmnic or u.name == vmnic)]
        if len(cables) == 1:
            return host, cables[0]
        if cables:
            names = ", ".join(f"{name}/{cable.name}" for cable in cables)
            raise InputError(f"{name} has several links to {there}; name one: {names}")
    there_are = [" ".join(link.ends) for link in topology.links]
    there_are += [f"{h.name}/{u.name} {u.switch}" for h in topology.hosts for u in h.uplinks]
    raise InputError(
        f"there is no link between {ends[0]} and {ends[1]}; there are: {', '.join(there_are)}"
    )
