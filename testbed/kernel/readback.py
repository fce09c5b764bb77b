"""What the kernel has, beside what the steps say."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import facts, netns, routing, sysctl
from testbed.kernel.channels import Channels
from testbed.kernel.iochain import attaching
from testbed.kernel.links import Link, PortSettings, port_settings, read_links
from testbed.kernel.netlink import RefusedError, Socket
from testbed.kernel.offloads import check_offloads
from testbed.kernel.qdisc_readback import compare_netems, compare_shapes
from testbed.kernel.refusals import differs
from testbed.plan.policies import Chain, Netem, Offloads, Shape
from testbed.plan.steps import Address, Bridge, End, KernelStep, Netns, Route, Rule, Veth

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_RUNNING_DEADLINE_NS = 5 * 10**9  # a veth is operational within ms of its two ends being up
# What `routing.rule` and `messages.create_bridge` ask for, written down a second time on purpose.
_RULE_PRIORITY, _TO_TABLE = 1000, 1
_AGEING = 300 * 100
_REMEMBERED = 365 * 24 * 3600 * 100


@dataclass
class _Wanted:
    """The steps that concern one namespace."""

    netns: list[Netns] = field(default_factory=list)
    links: list[tuple[KernelStep, End | Bridge]] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    offloads: list[Offloads] = field(default_factory=list)
    netems: list[Netem] = field(default_factory=list)

    def add(self, step: Bridge | Address | Route | Rule | Shape | Chain | Offloads | Netem) -> None:
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
            case Chain():
                self.chains.append(step)
            case Offloads():
                self.offloads.append(step)
            case Netem():
                self.netems.append(step)


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
            _compare_ports(wanted, links)
            _compare_bridges(socket, wanted.links, links)
            _compare_addresses(socket, wanted.addresses, links)
            _compare_routes(socket, wanted.routes, links)
            _compare_rules(socket, wanted.rules)
            indexes = {link.name: link.index for link in links.values()}
            compare_shapes(socket, wanted.shapes, indexes)
            compare_netems(socket, wanted.netems, indexes)
        except (OSError, RefusedError) as error:
            cause = error.cause if isinstance(error, RefusedError) else str(error)
            raise KernelError("read back", where, cause) from error
        for offloads in wanted.offloads:
            check_offloads(channels, offloads)
        for chain in wanted.chains:
            attaching.check(channels, chain)


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


def _compare_links(socket: Socket, wanted: _Wanted) -> dict[str, Link]:
    deadline = time.monotonic_ns() + _RUNNING_DEADLINE_NS
    while True:
        links = read_links(socket)
        for own in wanted.netns:
            if "lo" not in links or not links["lo"].up:
                raise differs(own, "state of lo", "up", "down" if "lo" in links else "no lo")
        idle: tuple[KernelStep, str] | None = None
        for step, end in wanted.links:
            _compare_link(step, end, links)
            if isinstance(end, End) and not links[end.name].running:
                idle = (step, end.name)
        if idle is None:
            return links
        if time.monotonic_ns() > deadline:
            raise differs(idle[0], f"state of {idle[1]}", "up", "no carrier for 5 s")
        os.sched_yield()  # the kernel's link-watch work runs meanwhile


def _compare_link(step: KernelStep, end: End | Bridge, links: dict[str, Link]) -> None:
    link = links.get(end.name)
    if link is None:
        raise differs(step, f"link {end.name}", "one", "none of that name")
    if link.mtu != end.mtu:
        raise differs(step, f"MTU of {end.name}", end.mtu, link.mtu)
    if end.mac is not None and link.mac != end.mac.lower():
        raise differs(step, f"MAC of {end.name}", end.mac.lower(), link.mac)
    if link.alias != end.alias:
        raise differs(step, f"alias of {end.name}", repr(end.alias), repr(link.alias))
    if not link.up:
        raise differs(step, f"state of {end.name}", "up", "down")
    master = end.master if isinstance(end, End) else None
    if link.master != (links[master].index if master in links else 0) or (
        master is not None and master not in links
    ):
        names = {other.index: other.name for other in links.values()}
        found = names.get(link.master, "none")
        raise differs(step, f"bridge of {end.name}", master or "none", found)


def _compare_ports(wanted: _Wanted, links: dict[str, Link]) -> None:
    for step, end in wanted.links:
        if isinstance(end, End) and end.master is not None:
            settings = PortSettings(end.isolated, end.learning, end.flooding)
            found = port_settings(links[end.name])
            if found != settings:
                raise differs(step, f"bridge port {end.name}", settings, found)


def _compare_bridges(
    socket: Socket, steps: Sequence[tuple[KernelStep, End | Bridge]], links: dict[str, Link]
) -> None:
    bridges = [step for _, step in steps if isinstance(step, Bridge)]
    found = facts.read_bridges(socket) if bridges else {}
    for step in bridges:
        have = found.get(links[step.name].index)
        if have is None:
            raise differs(step, f"kind of {step.name}", "bridge", "another")
        for what, want, value in (
            ("spanning tree", 0, have.stp),
            ("ageing in 1/100 s", _ageing(step), have.ageing),
            ("multicast snooping", 0, have.multicast_snooping),
            ("forward delay in 1/100 s", 0, have.forward_delay),
        ):
            if want != value:
                raise differs(step, f"{what} of {step.name}", want, value)


def _ageing(step: Bridge) -> int:
    if step.mac is not None:
        return 0
    return _REMEMBERED if step.remembers else _AGEING


def _index(step: KernelStep, dev: str, links: dict[str, Link]) -> int:
    if dev not in links:
        raise differs(step, f"link {dev}", "one", "none of that name")
    return links[dev].index


def _compare_addresses(socket: Socket, steps: Sequence[Address], links: dict[str, Link]) -> None:
    families = {6 if ":" in step.address else 4 for step in steps}
    found = {fact for family in families for fact in facts.read_addresses(socket, family)}
    for step in steps:
        host, _, prefix = step.address.partition("/")
        packed = routing.packed_ip(host)
        index = _index(step, step.dev, links)
        length = int(prefix or len(packed) * 8)
        wanted = facts.AddressFact(index, packed, length, step.connected)
        if wanted not in found:
            others = [fact for fact in found if fact.link == index]
            raise differs(step, "address", step.address, _texts(others) or "none")


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
            raise differs(step, "route", "it", f"{len(near)} others in table {step.table}")


def _compare_rules(socket: Socket, steps: Sequence[Rule]) -> None:
    families = {step.family for step in steps}
    found = {fact for family in families for fact in facts.read_rules(socket, family)}
    for step in steps:
        packed = routing.packed_ip(step.source)
        wanted = facts.RuleFact(packed, len(packed) * 8, step.table, _RULE_PRIORITY, _TO_TABLE)
        if wanted not in found:
            near = [_rule_text(fact) for fact in sorted(found) if fact.source == packed]
            raise differs(step, "rule", _rule_text(wanted), "; ".join(near) or "none for it")


def _rule_text(rule: facts.RuleFact) -> str:
    return f"table {rule.table}, priority {rule.priority}, action {rule.action}"


def _compare_files(channels: Channels, steps: Sequence[KernelStep]) -> None:
    ends: list[End] = []
    for where, wanted in _by_netns(steps).items():
        channels.step_into(where)
        for step in wanted.netns:
            sysctl.check(sysctl.applicable(step.sysctls), where)
        sysctl.check(_device_sysctls(wanted), where)
        ends += [end for _, end in wanted.links if isinstance(end, End)]
    sysctl.check_receiving(ends)


def _device_sysctls(wanted: _Wanted) -> Iterator[tuple[str, str]]:
    """What the builder sets per device: `sysctl.keep_neighbours` and `sysctl.enable_ipv6`."""
    for _, link in wanted.links:
        if isinstance(link, Bridge) and link.mac is not None:
            for name in (
                f"net/ipv4/conf/{link.name}/arp_evict_nocarrier",
                f"net/ipv6/conf/{link.name}/ndisc_evict_nocarrier",
            ):
                if os.access(f"/proc/sys/{name}", os.F_OK):  # since Linux 5.16
                    yield name, "0"
    for dev in dict.fromkeys(step.dev for step in wanted.addresses if ":" in step.address):
        yield f"net/ipv6/conf/{dev}/disable_ipv6", "0"
