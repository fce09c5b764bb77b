"""Which adapters of two hosts reach each other, and so carry a service between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.plan.network import gateway_for

if TYPE_CHECKING:
    from netaddr import IPNetwork

    from testbed.topology.model import Host, VmkernelAdapter


@dataclass(frozen=True, slots=True)
class AdapterPath:
    """An adapter of each of two hosts, and the addresses that a service's traffic uses."""

    source_vmk: str
    source_network: IPNetwork
    destination_vmk: str
    destination_network: IPNetwork
    mtu: int

    @property
    def source_address(self) -> str:
        """Where the stream comes from."""
        return str(self.source_network.ip)

    @property
    def destination_address(self) -> str:
        """Where the stream goes to."""
        return str(self.destination_network.ip)

    @property
    def ip_version(self) -> int:
        """4 or 6."""
        return int(self.source_network.version)

    @property
    def routed(self) -> bool:
        """Whether routers join its two networks."""
        return bool(self.source_network.cidr != self.destination_network.cidr)


def adapter_paths(source: Host, destination: Host, service: str) -> tuple[AdapterPath, ...]:
    """All pairs of adapters with a service that reach each other, none twice; the best come first.

    Those in one network are paired in their order, the rest over their gateways and routes. An
    adapter has the first of its addresses that serves.
    """
    ours, theirs = source.vmks_for(service), destination.vmks_for(service)
    every = [
        AdapterPath(a.name, here, b.name, there, min(a.mtu, b.mtu))
        for a in ours
        for here in a.addresses
        for b in theirs
        for there in b.addresses
        if here.version == there.version
        and (here.cidr == there.cidr or (_leads(a, here, there) and _leads(b, there, here)))
    ]
    found: list[AdapterPath] = []
    for path in sorted(every, key=lambda path: path.routed):
        if path.source_vmk not in {one.source_vmk for one in found} and (
            path.destination_vmk not in {one.destination_vmk for one in found}
        ):
            found.append(path)
    return tuple(found)


def vmotion_paths(source: Host, destination: Host) -> tuple[AdapterPath, ...]:
    """`adapter_paths` of vMotion, at least one.

    Raises:
        LabError: there is none.
    """
    found = adapter_paths(source, destination, "vmotion")
    if not found:
        raise LabError(_no_way(source, destination))
    return found


def _no_way(source: Host, destination: Host) -> str:
    what = f"migrate from {source.name} to {destination.name}"
    for host, other in ((source, destination), (destination, source)):
        for vmk, address in _addresses(host):
            for _, to in _addresses(other):
                if address.version == to.version and not _leads(vmk, address, to):
                    return (
                        f"{what}: {vmk.name} of {host.name} ({address}) is in another network than"
                        f" the other's and has no gateway or route to {to.cidr}; give it one, or"
                        " put both in one network"
                    )
    return (
        f"{what}: their vMotion vmks have no address of the same IP version; give both an IPv4 or"
        " both an IPv6 address"
    )


def _addresses(host: Host) -> list[tuple[VmkernelAdapter, IPNetwork]]:
    return [(vmk, address) for vmk in host.vmks_for("vmotion") for address in vmk.addresses]


def _leads(vmk: VmkernelAdapter, address: IPNetwork, to: IPNetwork) -> bool:
    """Whether a vmk's stack has a way to another network: a gateway, or a route of its own."""
    static = any(route.via in address and to.ip in route.to for route in vmk.routes)
    return static or gateway_for(address, vmk.gateways) is not None
