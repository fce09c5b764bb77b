"""What the parts of a plan share: names, steps so far, and how a wire is made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from zlib import crc32

from testbed.plan.names import InterfaceNames, alias, netns_name
from testbed.plan.shaping import queue_bytes, shape
from testbed.plan.steps import Address, Bridge, End, Netns, Step, Veth
from testbed.plan.sysctls import sysctls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress, IPNetwork

    from testbed.plan.policies import Chain, DelayLine, TrafficClass
    from testbed.plan.ports import LocalPort

MAIN_TABLE = 254


class Network:
    """Collects the steps of a network, giving names as it goes.

    Args:
        lab: the topology's name.
        cpus: how many CPUs this machine has; one of them handles all the lab's wires.
        netem: whether this kernel has it, so that wires need no delay line.
        longest_mtu: of all that sends packets here; only ports with a smaller one check sizes.
        longest_rtt_ns: that its links' latency makes between any two switches.
    """

    def __init__(
        self, lab: str, cpus: int, *, netem: bool, longest_mtu: int, longest_rtt_ns: int
    ) -> None:
        self.lab = lab
        self.cpu = self.cpu_of(lab, cpus)
        self.netem = netem
        self.longest_mtu = longest_mtu
        self.longest_rtt_ns = longest_rtt_ns
        self.names = InterfaceNames()
        self.bridges: dict[tuple[str, str], str] = {}
        self.steps: list[Step] = []
        self.ports: dict[tuple[str, str], list[LocalPort]] = {}
        """The local ports of each virtual switch, by namespace and bridge."""
        self.uplinks: dict[tuple[str, str], tuple[Veth, End]] = {}
        """Each vmnic's wire and end, by namespace and name."""
        self.chains: list[Chain] = []
        self.delay_lines: list[DelayLine] = []

    @staticmethod
    def cpu_of(lab: str, cpus: int) -> int:
        """The CPU that handles what a lab's wires receive."""
        return crc32(lab.encode()) % cpus

    def netns(self, node: str) -> str:
        """The namespace name of a node of this lab."""
        return netns_name(self.lab, node)

    def add_node(self, node: str, role: str) -> str:
        """A namespace for a node; its name."""
        netns = self.netns(node)
        self.steps.append(Netns(netns, node, role, sysctls(role)))
        return netns

    def add_bridge(
        self, netns: str, name: str, mtu: int, mac: str | None = None, *, remembers: bool = False
    ) -> str:
        """A bridge in `netns`; the name that it got."""
        given = self.names.give(netns, name)
        self.steps.append(Bridge(netns, given, mtu, alias(self.lab, name), mac, remembers))
        self.bridges[netns, name] = given
        return given

    def end(
        self,
        netns: str,
        name: str,
        mtu: int,
        master: str | None = None,
        mac: str | None = None,
    ) -> End:
        """One end of a wire, to be given to `add_wire`.

        One CPU handles what all the lab's wires receive (docs/decisions/0007-one-cpu.md).
        """
        given = self.names.give(netns, name)
        return End(
            netns,
            given,
            mtu,
            alias(self.lab, name),
            mac,
            master,
            self.cpu,
        )

    def add_wire(self, a: End, b: End) -> Veth:
        """A wire, without a rate."""
        wire = Veth(a, b)
        self.steps.append(wire)
        return wire

    def shape(
        self,
        wire: Veth,
        end: End,
        rate_bps: int | None,
        classes: tuple[TrafficClass, ...] = (),
        default: int | None = None,
        *,
        lends_idle: bool = True,
        frames: int | None = None,
    ) -> None:
        """The rate at which an end sends, if it has one; the first class is the default.

        `frames` is how many may wait; None is what a link of this lab needs (`queue_bytes`).
        """
        if rate_bps is None:
            return
        step = replace(
            shape(end.netns, end.name, rate_bps, end.mtu, wire.key),
            queue_bytes=queue_bytes(rate_bps, end.mtu, frames, self.longest_rtt_ns),
        )
        if classes:
            step = replace(
                step,
                classes=classes,
                default=default or classes[0].minor,
                lends_idle=lends_idle,
            )
        self.steps.append(step)

    def add_addresses(
        self,
        netns: str,
        dev: str,
        wire: str,
        addresses: Iterable[IPNetwork],
        *,
        connected: bool = True,
    ) -> list[Address]:
        """Addresses on a link, which the step `wire` makes."""
        made = [Address(netns, dev, str(address), wire, connected) for address in addresses]
        self.steps += made
        return made

    def add_chain(self, chain: Chain | None) -> None:
        """A port's chain, put on when all wires are there."""
        if chain is not None:
            self.chains.append(chain)

    def is_narrow(self, end: End) -> bool:
        """Whether packets may come to this end that are too long for it."""
        return end.mtu < self.longest_mtu

    def bridge(self, node: str, name: str) -> str:
        """The kernel's name of a node's bridge."""
        return self.bridges[self.netns(node), name]


def gateway_for(address: IPNetwork, gateways: Iterable[IPAddress]) -> str | None:
    """The gateway within the address's own network, if one is given."""
    return next((str(gateway) for gateway in gateways if gateway in address), None)
