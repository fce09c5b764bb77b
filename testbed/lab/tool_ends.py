"""From where to where a tool of a host sends: names as a user gives them, addresses as it needs."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.kernel import netns
from testbed.lab.adapters import adapter, adapters
from testbed.lab.enter import netns_of
from testbed.measure.endpoint import Endpoint
from testbed.measure.source import source_address
from testbed.plan.steps import Bridge, Netns, Veth

if TYPE_CHECKING:
    from testbed.lab.journal import Journal
    from testbed.plan.plan import Plan


def ends(journal: Journal, node: str, vmk: str | None, to: str) -> tuple[Endpoint, Endpoint]:
    """Where a tool of `node` sends from, and to.

    `to` is an address or NODE/ADAPTER. With `vmk` the way out is that adapter; without one the
    kernel's routing chooses it and the address.

    Raises:
        InputError: there is no such node, adapter or address of one IP version.
        MeasurementError: no route leads there.
    """
    plan, name = journal.plan, netns_of(journal, node)
    here = netns.path_of(name)
    targets = destinations(plan, to)
    if vmk is not None:
        ours = adapter(plan, f"{node}/{vmk}")
        for version in (4, 6):
            sources = [address for address, v in ours.addresses if v == version]
            wanted = [address for address, v in targets if v == version]
            if sources and wanted:
                return Endpoint(here, sources[0], ours.device), Endpoint(here, wanted[0])
        raise InputError(f"{ours.name} has no address of the IP version of {to}")
    target = targets[0][0]
    return Endpoint(here, source_address(here, target)), Endpoint(here, target)


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
