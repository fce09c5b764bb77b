"""Addresses: each used once, in a network that its gateway shares; MAC addresses likewise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from netaddr import IPAddress, IPNetwork

from testbed.topology.problems import Path, dotted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.topology.draft import Draft

IPV6_LEAST_MTU = 1280  # RFC 8200, section 5


_Given: TypeAlias = tuple[IPNetwork | None, ...]


@dataclass(frozen=True, slots=True)
class _Adapter:
    """Anything with addresses: a vmk, a VM's adapter, a router's interface."""

    path: Path
    what: str
    addresses: _Given
    gateways: tuple[IPAddress | None, ...]
    mac: str | None
    mtu: int | None
    mtu_path: Path


def check(draft: Draft) -> None:
    """Report addresses used twice, gateways out of reach, and networks that overlap."""
    adapters = list(_adapters(draft))
    _duplicate_addresses(draft, adapters)
    _overlaps(draft, adapters)
    _duplicate_macs(draft, adapters)
    _router_networks(draft)
    for adapter in adapters:
        _families(draft, adapter)
        _gateways(draft, adapter)
        _ipv6_mtu(draft, adapter)


def _adapters(draft: Draft) -> Iterator[_Adapter]:
    file = draft.file
    for name, router in file.routers.items():
        for switch, legs in router.interfaces.items():
            of = file.switches.get(switch)
            mtu = None if of is None else of.mtu
            place: Path = ("switches", switch, "mtu")
            for number, leg in enumerate(legs):
                path: Path = ("routers", name, "interfaces", switch, number)
                yield _Adapter(path, f"router {name}", leg.ip, (), None, mtu, place)
    for name, host in file.hosts.items():
        for vmk, of_vmk in host.vmks.items():
            path = ("hosts", name, "vmks", vmk)
            yield _Adapter(
                path,
                f"{vmk} of {name}",
                of_vmk.ip,
                of_vmk.gateway,
                of_vmk.mac,
                of_vmk.mtu,
                (*path, "mtu"),
            )
    for name, vm in file.vms.items():
        for number, nic in enumerate(vm.nics):
            path = ("vms", name, "nics", number)
            vswitch = draft.switch_of(vm.host or "", nic.portgroup)
            mtu = None if vswitch is None else vswitch.mtu
            place = path if vswitch is None else (*vswitch.path, "mtu")
            label = f"eth{number} of {name}"
            yield _Adapter(path, label, nic.ip, nic.gateway, nic.mac, mtu, place)


def _ip_path(adapter: _Adapter, number: int) -> Path:
    """Where an address stands: one value is not a list, and is found all the same."""
    return (*adapter.path, "ip", number)


def _duplicate_addresses(draft: Draft, adapters: list[_Adapter]) -> None:
    seen: dict[IPAddress, _Adapter] = {}
    for adapter in adapters:
        for number, network in enumerate(adapter.addresses):
            if network is None:
                continue
            first = seen.setdefault(network.ip, adapter)
            if first is adapter and adapter.addresses.index(network) == number:
                continue
            draft.problems.add(
                _ip_path(adapter, number),
                f"the address {network.ip} is used already, by {first.what} ({dotted(first.path)})",
                "give every adapter an address of its own",
            )


def _overlaps(draft: Draft, adapters: list[_Adapter]) -> None:
    """One network inside another means that some adapter has the wrong prefix length."""
    used: dict[IPNetwork, tuple[_Adapter, int, IPNetwork]] = {}
    for adapter in adapters:
        for number, address in enumerate(adapter.addresses):
            if address is not None:
                used.setdefault(address.cidr, (adapter, number, address))
    around: IPNetwork | None = None
    for network in sorted(used):
        if around is not None and network in around:
            adapter, number, address = used[network]
            other = used[around][0]
            draft.problems.add(
                _ip_path(adapter, number),
                f"{address} is in the network {network}, inside {around} of {other.what}",
                "use one prefix length in one network, and networks that don't overlap",
            )
        else:
            around = network


def _duplicate_macs(draft: Draft, adapters: list[_Adapter]) -> None:
    seen: dict[str, str] = {}
    given = [(a.path, a.what, a.mac) for a in adapters]
    for name, host in draft.file.hosts.items():
        for vmnic, nic in host.nics.items():
            given.append((("hosts", name, "nics", vmnic), f"{vmnic} of {name}", nic.mac))
    for path, what, mac in given:
        if mac is None:
            continue
        first = seen.setdefault(mac, what)
        if first != what:
            draft.problems.add(
                (*path, "mac"),
                f"the MAC address {mac} is used already, by {first}",
                "give every adapter one of its own, or leave mac out",
            )


def _router_networks(draft: Draft) -> None:
    """A router with one network on two interfaces would not know which to use."""
    for name, router in draft.file.routers.items():
        seen: dict[IPNetwork, tuple[str, int]] = {}
        for switch, legs in router.interfaces.items():
            for leg, interface in enumerate(legs):
                for number, address in enumerate(interface.ip):
                    if address is None:
                        continue
                    first = seen.setdefault(address.cidr, (switch, leg))
                    if first != (switch, leg):
                        draft.problems.add(
                            ("routers", name, "interfaces", switch, leg, "ip", number),
                            f"{address} is in the network that the router has at {first[0]}"
                            " already",
                            "use another network, or one interface",
                        )


def _families(draft: Draft, adapter: _Adapter) -> None:
    if adapter.path[0] == "routers":
        return
    for version in (4, 6):
        numbers = [
            n for n, a in enumerate(adapter.addresses) if a is not None and a.version == version
        ]
        for number in numbers[1:]:
            draft.problems.add(
                _ip_path(adapter, number),
                f"{adapter.addresses[number]} is a second IPv{version} address of {adapter.what}",
                "give an adapter at most one address of each family",
            )


def _gateways(draft: Draft, adapter: _Adapter) -> None:
    seen: set[int] = set()
    unsure = draft.is_broken(*adapter.path)
    for number, gateway in enumerate(adapter.gateways):
        if gateway is None:
            continue
        path = (*adapter.path, "gateway", number)
        own = [a for a in adapter.addresses if a is not None and a.version == gateway.version]
        if gateway.version in seen:
            message = f"{gateway} is a second IPv{gateway.version} gateway of {adapter.what}"
            draft.problems.add(path, message, "keep one for each family")
        elif not own and not unsure:
            message = f"the gateway {gateway} is IPv{gateway.version}, {adapter.what} is not"
            draft.problems.add(path, message, f"give it an IPv{gateway.version} address too")
        elif own and gateway in {a.ip for a in own}:
            message = f"the gateway {gateway} is the address of {adapter.what} itself"
            draft.problems.add(path, message, "name the router's address")
        elif own and not any(_is_host_in(gateway, a) for a in own):
            nets = " or ".join(str(a.cidr) for a in own)
            message = f"the gateway {gateway} is not a host's address in {nets}"
            draft.problems.add(path, message, "name a router in the adapter's own network")
        seen.add(gateway.version)


def _is_host_in(address: IPAddress, network: IPNetwork) -> bool:
    if address not in network:
        return False
    if network.size <= 2:
        return True
    if address.value == network.first:
        return False
    return network.version == 6 or address.value != network.last


def _ipv6_mtu(draft: Draft, adapter: _Adapter) -> None:
    if adapter.mtu is None or adapter.mtu >= IPV6_LEAST_MTU:
        return
    six = next((a for a in adapter.addresses if a is not None and a.version == 6), None)
    if six is not None:
        draft.problems.add(
            adapter.mtu_path,
            f"MTU {adapter.mtu} is too small for {six} of {adapter.what}",
            f"IPv6 needs at least {IPV6_LEAST_MTU}",
        )
