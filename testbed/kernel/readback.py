"""What the kernel has, beside what the steps say."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import facts, htb, netns, routing, sysctl
from testbed.kernel.channels import Channels
from testbed.kernel.links import Link, read_links
from testbed.kernel.netlink import RefusedError, Socket
from testbed.kernel.refusals import describe
from testbed.plan.steps import Address, Bridge, End, KernelStep, Netns, Route, Rule, Shape, Veth

if TYPE_CHECKING:
    from collections.abc import Sequence

_RUNNING_DEADLINE_NS = 5 * 10**9  # a veth is operational within ms of its two ends being up
_REMEDY = "another program may have changed it: 'testbed down' and 'up' put it right"


@dataclass
class _Wanted:
    """The steps that concern one namespace."""

    netns: list[Netns] = field(default_factory=list)
    links: list[tuple[KernelStep, End | Bridge]] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)

    def add(self, step: Bridge | Address | Route | Rule | Shape) -> None:
        match step:
            case Bridge():
                self.links.append((step, step))
            case Address():
                self.addresses.append(step)
            case Route():
                self.routes.append(step)
            case Rule():
                self.rules.append(step)
            case Shape():
                self.shapes.append(step)


def verify(steps: Sequence[KernelStep]) -> None:
    """Compare a running lab with its steps, sysctls and CPU pinning included.

    Whether a bridge port is open is left out: migrations change it.

    Raises:
        KernelError: something is missing or differs: says what was wanted and what is there.
    """

    def away() -> None:
        with Channels() as channels:
            compare(channels, steps)
            _compare_files(channels, steps)

    netns.in_thread(lambda _: away())


def compare(channels: Channels, steps: Sequence[KernelStep]) -> None:
    """`verify` of all that netlink tells, with sockets that are open already.

    Raises:
        KernelError: something is missing or differs.
    """
    for where, wanted in _by_netns(steps).items():
        socket = channels.socket(where)
        try:
            links = _compare_links(socket, wanted)
            _compare_addresses(socket, wanted.addresses, links)
            _compare_routes(socket, wanted.routes, links)
            _compare_rules(socket, wanted.rules)
            for shape in wanted.shapes:
                _compare_shape(socket, shape, links)
        except (OSError, RefusedError) as error:
            cause = error.cause if isinstance(error, RefusedError) else str(error)
            raise KernelError("read back", where, cause) from error


def _by_netns(steps: Sequence[KernelStep]) -> dict[str, _Wanted]:
    found: defaultdict[str, _Wanted] = defaultdict(_Wanted)
    for step in steps:
        if isinstance(step, Netns):
            found[step.name].netns.append(step)
        elif isinstance(step, Veth):
            for end in (step.a, step.b):
                found[end.netns].links.append((step, end))
        else:
            found[step.netns].add(step)
    return found


def _differs(step: KernelStep, what: str, wanted: object, found: object) -> KernelError:
    kind, target = describe(step)
    cause = f"{what}: wanted {wanted}, the kernel has {found}"
    return KernelError(f"keep {kind}", target, cause, _REMEDY)


def _compare_links(socket: Socket, wanted: _Wanted) -> dict[str, Link]:
    deadline = time.monotonic_ns() + _RUNNING_DEADLINE_NS
    while True:
        links = read_links(socket)
        idle: tuple[KernelStep, str] | None = None
        for step, end in wanted.links:
            _compare_link(step, end, links)
            if isinstance(end, End) and not links[end.name].running:
                idle = (step, end.name)
        if idle is None:
            return links
        if time.monotonic_ns() > deadline:
            raise _differs(idle[0], f"state of {idle[1]}", "up", "no carrier for 5 s")
        os.sched_yield()  # the kernel's link-watch work runs meanwhile


def _compare_link(step: KernelStep, end: End | Bridge, links: dict[str, Link]) -> None:
    link = links.get(end.name)
    if link is None:
        raise _differs(step, f"link {end.name}", "one", "none of that name")
    if link.mtu != end.mtu:
        raise _differs(step, f"MTU of {end.name}", end.mtu, link.mtu)
    if end.mac is not None and link.mac != end.mac.lower():
        raise _differs(step, f"MAC of {end.name}", end.mac.lower(), link.mac)
    if link.alias != end.alias:
        raise _differs(step, f"alias of {end.name}", repr(end.alias), repr(link.alias))
    if not link.up:
        raise _differs(step, f"state of {end.name}", "up", "down")
    master = end.master if isinstance(end, End) else None
    if link.master != (links[master].index if master in links else 0) or (
        master is not None and master not in links
    ):
        names = {other.index: other.name for other in links.values()}
        found = names.get(link.master, "none")
        raise _differs(step, f"bridge of {end.name}", master or "none", found)


def _index(step: KernelStep, dev: str, links: dict[str, Link]) -> int:
    if dev not in links:
        raise _differs(step, f"link {dev}", "one", "none of that name")
    return links[dev].index


def _compare_addresses(socket: Socket, steps: Sequence[Address], links: dict[str, Link]) -> None:
    families = {6 if ":" in step.address else 4 for step in steps}
    found = {fact for family in families for fact in facts.read_addresses(socket, family)}
    for step in steps:
        host, _, prefix = step.address.partition("/")
        packed = routing.packed_ip(host)
        index = _index(step, step.dev, links)
        wanted = facts.AddressFact(index, packed, int(prefix or len(packed) * 8))
        if wanted not in found:
            others = [fact for fact in found if fact.link == index]
            raise _differs(step, "address", step.address, _texts(others) or "none")


def _texts(addresses: Sequence[facts.AddressFact]) -> str:
    return ", ".join(f"{routing.ip_text(fact.address)}/{fact.prefix}" for fact in addresses)


def _compare_routes(socket: Socket, steps: Sequence[Route], links: dict[str, Link]) -> None:
    families = {step.family for step in steps}
    found = {(f, fact) for f in families for fact in facts.read_routes(socket, f)}
    for step in steps:
        host, _, prefix = step.destination.partition("/")
        packed = b"" if host == "default" else routing.packed_ip(host)
        wanted = facts.RouteFact(
            step.table,
            b"" if prefix == "0" else packed,
            int(prefix or len(packed) * 8),
            _index(step, step.dev, links),
            routing.packed_ip(step.via) if step.via else b"",
            routing.packed_ip(step.source) if step.source else b"",
        )
        if (step.family, wanted) not in found:
            near = [fact for _, fact in found if fact.table == step.table]
            raise _differs(step, "route", "it", f"{len(near)} others in table {step.table}")


def _compare_rules(socket: Socket, steps: Sequence[Rule]) -> None:
    families = {step.family for step in steps}
    found = {fact for family in families for fact in facts.read_rules(socket, family)}
    for step in steps:
        packed = routing.packed_ip(step.source)
        if facts.RuleFact(packed, len(packed) * 8, step.table) not in found:
            tables = sorted(fact.table for fact in found if fact.source == packed)
            raise _differs(step, "rule", f"table {step.table}", f"tables {tables} for it")


def _compare_shape(socket: Socket, step: Shape, links: dict[str, Link]) -> None:
    classes = facts.read_classes(socket, _index(step, step.dev, links))
    found = next((fact for fact in classes if fact.handle == htb.HTB_CLASS), None)
    if found is None:
        raise _differs(step, f"HTB class of {step.dev}", "one", "none")
    rate = step.htb_rate_bytes_per_s
    ticks = htb.burst_ticks(step.burst_bytes, rate)
    for what, want, have in (
        ("rate in bytes/s", rate, found.rate),
        ("ceil in bytes/s", rate, found.ceil),
        ("burst in ticks of 64 ns", ticks, found.burst),
        ("cburst in ticks of 64 ns", ticks, found.cburst),
        ("quantum in bytes", htb.QUANTUM_BYTES, found.quantum),
    ):
        if want != have:
            raise _differs(step, what, want, have)


def _compare_files(channels: Channels, steps: Sequence[KernelStep]) -> None:
    ends: list[End] = []
    for where, wanted in _by_netns(steps).items():
        channels.step_into(where)
        for step in wanted.netns:
            sysctl.check(step.sysctls, where)
        ends += [end for _, end in wanted.links if isinstance(end, End)]
    sysctl.check_receiving(ends)
