"""The ports of a lab's virtual switches: who is plugged in, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.lab.planning import network_here
from testbed.plan.policies import Chain
from testbed.plan.steps import Netns
from testbed.report.port_view import UPLINK, VM, VMKERNEL, Port

if TYPE_CHECKING:
    from testbed.lab.journal import Journal
    from testbed.plan.network import Network
    from testbed.plan.ports import LocalPort
    from testbed.topology.model import Host

FIRST_PORTSET = 2
FIRST_LOCAL_PORT = 0x40
"""Port numbers are made as ESXi's look: the switch in the upper byte, uplinks first."""
_VMXNET3 = 9


@dataclass(frozen=True, slots=True)
class SwitchPort:
    """A port of a virtual switch: the bridge port `dev` in the host's namespace.

    `adapter` is the link that is plugged in, as (namespace, device), None for an uplink, whose
    port is the vmnic itself. `uplinks` are the switch's vmnics; `chained`: it has an IOChain.
    """

    host: str
    port: Port
    netns: str
    dev: str
    adapter: tuple[str, str] | None
    uplinks: tuple[str, ...]
    chained: bool


def switch_ports(journal: Journal, host: str | None = None) -> list[SwitchPort]:
    """All ports of a host's virtual switches, or of all hosts', uplinks first.

    Raises:
        InputError: there is no such host.
    """
    topology = journal.topology()
    hosts = [one for one in topology.hosts if host in (None, one.name)]
    if not hosts:
        names = ", ".join(one.name for one in topology.hosts)
        raise InputError(f"lab {topology.name!r} has no host {host!r}; it has: {names}")
    network = network_here(topology, journal.placement)
    chained = {(s.netns, s.dev) for s in journal.plan.steps if isinstance(s, Chain)}
    nodes = {s.name: s.node for s in journal.plan.steps if isinstance(s, Netns)}
    return [port for one in hosts for port in _of_host(network, one, chained, nodes)]


def _of_host(
    network: Network, host: Host, chained: set[tuple[str, str]], nodes: dict[str, str]
) -> list[SwitchPort]:
    netns = network.netns(host.name)
    found = []
    for place, switch in enumerate(host.vswitches, FIRST_PORTSET):
        for number, name in enumerate(switch.uplinks, 2):
            mac = next(uplink.mac for uplink in host.uplinks if uplink.name == name)
            _, end = network.uplinks[netns, name]
            port = Port(place << 24 | number, UPLINK, 0, switch.name, mac, name)
            has = (netns, end.name) in chained
            found.append(SwitchPort(host.name, port, netns, end.name, None, switch.uplinks, has))
        for local in network.ports[netns, network.bridge(host.name, switch.name)]:
            where, device = local.adapter
            own = where == netns
            port = Port(
                number=place << 24 | FIRST_LOCAL_PORT + local.number,
                kind=VMKERNEL if own else VM,
                subtype=0 if own else _VMXNET3,
                switch=switch.name,
                mac=local.mac,
                client=device if own else f"{nodes[where]}.{device}",
            )
            has = (netns, local.end.name) in chained
            found.append(_local(host.name, port, local, has))
    return found


def _local(host: str, port: Port, local: LocalPort, chained: bool) -> SwitchPort:
    end = local.end
    return SwitchPort(host, port, end.netns, end.name, local.adapter, local.uplinks, chained)
