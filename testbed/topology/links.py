"""Links: delays and losses by direction, and physical switches' queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.leaf import ALL
from testbed.topology.policies import impairment
from testbed.topology.problems import shown
from testbed.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.topology.draft import Draft
    from testbed.topology.fabric import Link, Switch
    from testbed.topology.problems import Path

MAX_QUEUES = 8  # IEEE 802.1Q: traffic classes of a port


def check(draft: Draft) -> None:
    """Report contradicting delays, directions that don't exist, and queues that can't be."""
    for number, link in enumerate(draft.file.links):
        path: Path = ("links", number)
        _directions(draft, path, link)
        if link.rtt is not None and link.latency:
            draft.problems.add(
                (*path, "latency"),
                "the link has an rtt too, which says the same",
                "keep rtt (both ways together) or latency (each way)",
                at_key=True,
            )
        else:
            _jitter(draft, path, link)
        if link.vlans == () and not draft.is_broken(*path):
            draft.problems.add(
                (*path, "vlans"),
                "the link carries no VLAN at all",
                "name some, or leave vlans out to carry all",
            )
    rated = set(_rated(draft))
    for name, switch in draft.file.switches.items():
        path = ("switches", name, "qos")
        _queues(draft, path, switch)
        if switch.qos is not None and name not in rated and not draft.is_broken(*path):
            draft.problems.add(
                path,
                f"no port of {name} has a rate, so that nothing ever waits in its queues",
                "give its links, or the vmnics cabled to it, a rate",
                at_key=True,
            )


def _rated(draft: Draft) -> Iterator[str]:
    """The switches at whose ports frames can wait; where it is unclear, too."""
    for number, link in enumerate(draft.file.links):
        if link.rate is not None or draft.is_broken("links", number):
            yield from (end for end in link.between if end is not None)
    for host, of in draft.file.hosts.items():
        for vmnic, nic in of.nics.items():
            unsure = draft.is_broken("hosts", host, "nics", vmnic)
            if nic.switch is not None and (nic.rate is not None or unsure):
                yield nic.switch


def _directions(draft: Draft, path: Path, link: Link) -> None:
    ends = [end for end in link.between if end is not None]
    if len(ends) != len(link.between) or draft.is_broken(*path):
        return
    for key in ("latency", "jitter", "loss"):
        for switch in getattr(link, key):
            if switch != ALL and switch not in ends:
                draft.problems.add(
                    (*path, key, switch),
                    f"{shown(switch)} is not an end of this link",
                    f"name the switch that the frames leave: {' or '.join(ends)}",
                    at_key=True,
                )


def _jitter(draft: Draft, path: Path, link: Link) -> None:
    if draft.is_broken(*path) or not link.jitter or len(link.between) != 2:
        return
    worst: dict[str, tuple[int, int, str]] = {}  # by key: the shortest delay that it is of
    for number, end in enumerate(link.between):
        of = impairment(link, end or "", first=number == 0)
        key = ALL if ALL in link.jitter else end or ""
        if of.jitter_ns > of.delay_ns and (key not in worst or of.delay_ns < worst[key][0]):
            worst[key] = of.delay_ns, of.jitter_ns, end or ""
    for key, (delay_ns, jitter_ns, end) in worst.items():
        most = f"write at most {format_duration(delay_ns)}, or a longer delay"
        draft.problems.add(
            (*path, "jitter", *([key] if key != ALL else [])),
            f"a jitter of {format_duration(jitter_ns)} is more than the delay of"
            f" {format_duration(delay_ns)} from {end}: frames would arrive before they left",
            most if delay_ns else "give the link a latency or an rtt too",
        )


def _queues(draft: Draft, path: Path, switch: Switch) -> None:
    qos = switch.qos
    if qos is None or qos.by is None or draft.is_broken(*path):
        return
    if not 1 <= len(qos.queues) <= MAX_QUEUES:
        draft.problems.add(
            (*path, "queues"),
            f"a port with {len(qos.queues)} queues can't be built",
            f"give it 1 to {MAX_QUEUES}",
        )
    most = 7 if qos.by == "cos" else 63
    taken: dict[int, int] = {}
    for number, queue in enumerate(qos.queues):
        place = (*path, "queues", number, "values")
        if not queue.values and not draft.is_broken(*path, "queues", number):
            draft.problems.add(place, "no frame waits in this queue", "name at least one value")
        for index, value in enumerate(queue.values):
            if value is None:
                continue
            if value > most:
                message = f"{value} is no {qos.by.upper()} value"
                draft.problems.add((*place, index), message, f"write numbers from 0 to {most}")
            elif value in taken:
                message = f"{value} waits in queue {taken[value] + 1} already"
                draft.problems.add((*place, index), message, "name each value once")
            taken.setdefault(value, number)
