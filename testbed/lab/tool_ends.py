"""From where to where a tool of a host sends: names as a user gives them, addresses as it needs."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING

from testbed.errors import InputError, MeasurementError
from testbed.kernel import netns
from testbed.lab.adapters import adapter, adapters
from testbed.lab.enter import netns_of
from testbed.measure.endpoint import Endpoint
from testbed.measure.source import source_address
from testbed.plan.steps import Address, Bridge, Netns, Route, Veth

if TYPE_CHECKING:
    from testbed.lab.journal import Journal
    from testbed.plan.plan import Plan


def ends(
    journal: Journal, node: str, vmk: str | None, to: str, netstack: str | None = None
) -> tuple[Endpoint, Endpoint]:
    """Where a tool of `node` sends from, and to.

    `to` is an address or NODE/ADAPTER. With `vmk` the way out is that adapter, with `netstack`
    one of that TCP/IP stack; without them the kernel's routing chooses it and the address, as
    it does for the host's default stack.

    Raises:
        InputError: there is no such node, adapter, stack, or address of one IP version.
        MeasurementError: no route leads there.
    """
    plan, name = journal.plan, netns_of(journal, node)
    here = netns.path_of(name)
    targets = destinations(plan, to)
    if netstack is not None:
        members = _members(journal, node, netstack)
        if vmk is not None and vmk not in members:
            raise InputError(f"{vmk} of {node} isn't in its stack {netstack!r}: {members} are")
        vmk = vmk or _nearest(plan, node, members, targets)
    if vmk is None:
        target = targets[0][0]
        return Endpoint(here, source_address(here, target)), Endpoint(here, target)
    ours = adapter(plan, f"{node}/{vmk}")
    for version in (4, 6):
        sources = [address for address, v in ours.addresses if v == version]
        wanted = [address for address, v in targets if v == version]
        if sources and wanted:
            _require_route(plan, name, ours.device, wanted[0])
            return Endpoint(here, sources[0], ours.device), Endpoint(here, wanted[0])
    raise InputError(f"{ours.name} has no address of the IP version of {to}")


def _members(journal: Journal, node: str, netstack: str) -> list[str]:
    """The vmks of a host's TCP/IP stack."""
    topology = journal.topology()
    vmks = next((host.vmks for host in topology.hosts if host.name == node), ())
    members = [vmk.name for vmk in vmks if vmk.netstack == netstack]
    if not members:
        stacks = ", ".join(sorted({vmk.netstack for vmk in vmks})) or "none"
        raise InputError(f"{node} has no TCP/IP stack {netstack!r} with a vmk; it has: {stacks}")
    return members


def _nearest(
    plan: Plan, node: str, members: list[str], targets: tuple[tuple[str, int], ...]
) -> str:
    """The member whose network a target is in, else the first: its gateway is the stack's."""
    where = {step.name for step in plan.steps if isinstance(step, Netns) and step.node == node}
    for step in plan.steps:
        if isinstance(step, Address) and step.netns in where and step.dev in members:
            network = ip_interface(step.address).network
            if any(ip_address(address) in network for address, _ in targets):
                return step.dev
    return members[0]


def _require_route(plan: Plan, where: str, device: str, address: str) -> None:
    """A socket bound to a device takes any address for a neighbour's where no route leads there."""
    ip = ip_address(address)
    networks = []
    for step in plan.steps:
        if not isinstance(step, Address | Route) or (step.netns, step.dev) != (where, device):
            continue
        if isinstance(step, Route) and step.destination == "default":
            if step.family == ip.version:
                return
            continue
        networks.append(step.address if isinstance(step, Address) else step.destination)
        if ip in ip_interface(networks[-1]).network:
            return
    raise MeasurementError(
        f"find the way from {device} to {address}: no route; its networks are"
        f" {', '.join(dict.fromkeys(networks))}; give it a gateway or a route"
    )


def destinations(plan: Plan, to: str) -> tuple[tuple[str, int], ...]:
    """The (address, IP version) pairs that `to` means: an address, or an adapter's own.

    Raises:
        InputError: it is neither.
    """
    try:
        return ((to, ip_address(to).version),)
    except ValueError:
        return adapter(plan, to).addresses


def device_of(plan: Plan, node: str, address: str) -> str | None:
    """The adapter of a node that has an address; None if none of the plan's has."""
    return next(
        (
            found.device
            for name, found in adapters(plan).items()
            if name.partition("/")[0] == node and address in dict(found.addresses)
        ),
        None,
    )


def mtu_of(plan: Plan, netns_name: str, device: str) -> int | None:
    """The MTU that the plan gives a link."""
    for step in plan.steps:
        if isinstance(step, Bridge) and (step.netns, step.name) == (netns_name, device):
            return step.mtu
        if isinstance(step, Veth):
            for end in (step.a, step.b):
                if (end.netns, end.name) == (netns_name, device):
                    return end.mtu
    return None


def node_of_address(plan: Plan) -> dict[str, str]:
    """The name of the node that each address of the lab belongs to."""
    roles = {step.node: step.role for step in plan.steps if isinstance(step, Netns)}
    found: dict[str, str] = {}
    for name, its in adapters(plan).items():
        node = name.partition("/")[0]
        shown = node if roles.get(node) == "router" else name
        found |= dict.fromkeys((address for address, _ in its.addresses), shown)
    return found
