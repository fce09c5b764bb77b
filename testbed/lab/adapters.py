"""Names an adapter of a running lab the way a user does: NODE/ADAPTER."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import InputError
from testbed.plan.steps import Address, Netns

if TYPE_CHECKING:
    from testbed.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that has addresses: its namespace, device and (address, IP version) pairs."""

    name: str
    netns: str
    device: str
    addresses: tuple[tuple[str, int], ...]


def adapters(plan: Plan) -> dict[str, Adapter]:
    """All adapters of a lab that have addresses, by NODE/ADAPTER."""
    node_of = {step.name: step.node for step in plan.steps if isinstance(step, Netns)}
    found: dict[str, Adapter] = {}
    for step in plan.steps:
        if isinstance(step, Address):
            name = f"{node_of[step.netns]}/{step.dev}"
            address = step.address.partition("/")[0]
            pair = (address, 6 if ":" in address else 4)
            before = found[name].addresses if name in found else ()
            found[name] = Adapter(name, step.netns, step.dev, (*before, pair))
    return found


def adapter(plan: Plan, wanted: str) -> Adapter:
    """The adapter called NODE/ADAPTER, or the only one of NODE.

    Raises:
        InputError: there is none; the message lists those that there are.
    """
    all_of_them = adapters(plan)
    if wanted in all_of_them:
        return all_of_them[wanted]
    of_node = [a for name, a in all_of_them.items() if name.partition("/")[0] == wanted]
    if len(of_node) == 1:
        return of_node[0]
    listed = ", ".join(sorted(all_of_them)) or "none"
    raise InputError(
        f"{wanted!r} names no single adapter of lab {plan.lab!r}; adapters with addresses: {listed}"
    )


def common_addresses(a: Adapter, b: Adapter) -> tuple[str, str]:
    """An address of each, of the same IP version; IPv4 if both have it.

    Raises:
        InputError: they have no version in common.
    """
    for version in (4, 6):
        ours = [address for address, v in a.addresses if v == version]
        theirs = [address for address, v in b.addresses if v == version]
        if ours and theirs:
            return ours[0], theirs[0]
    raise InputError(f"{a.name} and {b.name} have no address of the same IP version")
