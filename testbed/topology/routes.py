"""Ways to other networks: gateways and routes that lead to a router, which knows the way on."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPAddress, IPNetwork

    from testbed.topology.draft import Draft
    from testbed.topology.problems import Path
    from testbed.topology.schema import Route


@dataclass(frozen=True, slots=True)
class _Adapter:
    """A vmk or a VM's adapter, with what of it was readable."""

    path: Path
    label: str
    addresses: list[IPNetwork]
    gateways: list[tuple[int, IPAddress]]
    vmotion: bool = False

    def network(self, address: IPAddress) -> IPNetwork | None:
        """The one of its networks that another's address is in."""
        if any(address == own.ip for own in self.addresses):
            return None
        return next((own.cidr for own in self.addresses if address in own), None)


class _Ways:
    """The adapters of a lab and the routers in each network."""

    def __init__(self, draft: Draft) -> None:
        self.adapters = tuple(_adapters(draft))
        self.owners = {a.ip: adapter for adapter in self.adapters for a in adapter.addresses}
        self.routers: dict[IPNetwork, dict[IPAddress, str]] = defaultdict(dict)
        self.networks: dict[str, set[IPNetwork]] = defaultdict(set)
        for name, router in draft.file.routers.items():
            for legs in router.interfaces.values():
                for address in _known(a for leg in legs for a in leg.ip):
                    self.routers[address.cidr][address.ip] = name
                    self.networks[name].add(address.cidr)

    def router(self, adapter: _Adapter, address: IPAddress) -> str | None:
        """The router that has an address in a network of the adapter."""
        network = adapter.network(address)
        return None if network is None else self.routers.get(network, {}).get(address)


def check(draft: Draft) -> None:
    """Report gateways that are no router, and routes that lead nowhere."""
    if "routers" in draft.incomplete or any(
        draft.is_broken("routers", name) for name in draft.names("routers")
    ):
        return
    ways = _Ways(draft)
    for adapter in ways.adapters:
        for number, gateway in adapter.gateways:
            _next_hop(draft, (*adapter.path, "gateway", number), adapter, gateway, ways)
        if adapter.path[0] == "hosts" and not draft.is_broken(*adapter.path):
            seen: set[IPNetwork] = set()
            routes = draft.file.hosts[str(adapter.path[1])].vmks[str(adapter.path[3])].routes
            for number, route in enumerate(routes):
                if not draft.is_broken(*adapter.path, "routes", number):
                    _route(draft, number, route, adapter, ways)
                if route.to is None:
                    continue
                if route.to in seen:
                    draft.problems.add(
                        (*adapter.path, "routes", number, "to"),
                        f"{adapter.label} has a route to {route.to} already",
                        "keep one of the two",
                    )
                seen.add(route.to)
    _common_routers(draft, ways)


def _adapters(draft: Draft) -> Iterator[_Adapter]:
    for host, of in draft.file.hosts.items():
        for name, vmk in of.vmks.items():
            yield _Adapter(
                ("hosts", host, "vmks", name),
                f"{name} of {host}",
                _known(vmk.ip),
                [(n, one) for n, one in enumerate(vmk.gateway) if one is not None],
                "vmotion" in vmk.services,
            )
    for name, vm in draft.file.vms.items():
        for number, nic in enumerate(vm.nics):
            yield _Adapter(
                ("vms", name, "nics", number),
                f"eth{number} of {name}",
                _known(nic.ip),
                [(n, one) for n, one in enumerate(nic.gateway) if one is not None],
            )


def _known(given: Iterable[IPNetwork | None]) -> list[IPNetwork]:
    return [one for one in given if one is not None]


def _next_hop(draft: Draft, path: Path, adapter: _Adapter, address: IPAddress, ways: _Ways) -> None:
    """The next hop in an adapter's own network is the router there, if there is one."""
    network = adapter.network(address)
    if network is None:
        return  # told by `addressing`, or by `_route`
    routers = ways.routers.get(network, {})
    owner = ways.owners.get(address)
    if address in routers:
        return
    if routers:
        right, router = next(iter(routers.items()))
        message = f"{address}, the gateway of {adapter.label}, is no router: {router} is {right}"
        draft.problems.add(path, message, f"write {right}")
    elif owner is not None and address not in {gateway for _, gateway in owner.gateways}:
        draft.problems.add(
            path,
            f"{address}, the gateway of {adapter.label}, is {owner.label}, which forwards nothing",
            f"name a router with an interface in {network}",
        )


def _route(draft: Draft, number: int, route: Route, adapter: _Adapter, ways: _Ways) -> None:
    place: Path = (*adapter.path, "routes", number)
    to, via = route.to, route.via
    if to is None or via is None:
        return
    if to.prefixlen == 0:
        message = f"{to} is every network, which the gateway stands for"
        draft.problems.add((*place, "to"), message, f"write gateway: {via} at the vmk")
    elif any(to in own.cidr for own in adapter.addresses):
        message = f"{adapter.label} is in {to} itself and needs no route to it"
        draft.problems.add((*place, "to"), message, "remove the route")
    elif to.version != via.version:
        message = f"{via} is IPv{via.version}, and the route leads to an IPv{to.version} network"
        draft.problems.add((*place, "via"), message, f"name an IPv{to.version} address")
    elif adapter.network(via) is None:
        networks = " or ".join(str(own.cidr) for own in adapter.addresses)
        draft.problems.add(
            (*place, "via"),
            f"{via} is no other address in {networks} of {adapter.label}",
            "name a router in the vmk's own network",
        )
    else:
        _next_hop(draft, (*place, "via"), adapter, via, ways)
        router = ways.router(adapter, via)
        if router is not None and not any(to in n or n in to for n in ways.networks[router]):
            draft.problems.add(
                (*place, "to"),
                f"the router {router} has no interface in {to}, and knows no other way",
                f"give {router} an interface there, or name another router",
            )


def _common_routers(draft: Draft, ways: _Ways) -> None:
    """Networks of vMotion's adapters that have the lab's routers as gateways share a router.

    Routers know the networks of their own interfaces only, so the vmk's gateway needs one in
    the network of the other host.
    """
    hosts: dict[IPNetwork, set[str]] = defaultdict(set)
    routed: dict[IPNetwork, tuple[_Adapter, int, str]] = {}
    for adapter in ways.adapters:
        if adapter.vmotion:
            for address in adapter.addresses:
                hosts[address.cidr].add(str(adapter.path[1]))
            for number, gateway in adapter.gateways:
                router, network = ways.router(adapter, gateway), adapter.network(gateway)
                if router is not None and network is not None:
                    routed.setdefault(network, (adapter, number, router))
    unknown = {
        router: [n for n in routed if n not in ways.networks[router]]
        for router in {router for _, _, router in routed.values()}
    }
    for network, (adapter, number, router) in routed.items():
        other = next(
            (
                n
                for n in unknown[router]
                if n.version == network.version and not hosts[n] & hosts[network]
            ),
            None,
        )
        if other is not None:
            draft.problems.add(
                (*adapter.path, "gateway", number),
                f"{router}, the gateway of {adapter.label}, has no interface in {other} of"
                f" {routed[other][0].label}, and routers know their own networks only",
                f"give {router} an interface in {other}",
            )
