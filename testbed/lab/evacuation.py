"""Where the VMs of a host go when it is emptied: a question to the topology and placement alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.lab.admission import reasons_against

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from testbed.topology.model import VM, Host, Topology


@dataclass(frozen=True, slots=True)
class Evacuation:
    """(VM, new host) in the order in which they are to move; why the others find no host."""

    moves: tuple[tuple[str, str], ...]
    stuck: tuple[tuple[str, str], ...]


def choose(
    topology: Topology, placement: Mapping[str, str], host: str, closed: Collection[str] = ()
) -> Evacuation:
    """A host for each VM of `host`: the one with most memory free that may take it.

    The largest VMs choose first, as the small ones find room anywhere. Room counts as if all that
    chose before had arrived.

    Args:
        topology: the lab's.
        placement: where VMs run now, if not where the topology says.
        host: which is emptied.
        closed: hosts that take no VM.
    """
    where = {vm.name: placement.get(vm.name, vm.host) for vm in topology.vms}
    others = [one for one in topology.hosts if one.name != host and one.name not in closed]
    leaving = [vm for vm in topology.vms if where[vm.name] == host]
    moves: list[tuple[str, str]] = []
    stuck: list[tuple[str, str]] = []
    for vm in sorted(leaving, key=lambda vm: (-vm.memory_bytes, vm.name)):
        against: dict[str, str] = {}
        for candidate in sorted(others, key=lambda one: (-_free(topology, where, one), one.name)):
            if not (reasons := reasons_against(topology, where, vm, candidate)):
                moves.append((vm.name, candidate.name))
                where[vm.name] = candidate.name
                break
            against[candidate.name] = "; and ".join(reasons)
        else:
            causes = "; ".join(against.values()) or "there is no other host that takes VMs"
            stuck.append((vm.name, causes))
    return Evacuation(tuple(moves), tuple(stuck))


def _free(topology: Topology, where: Mapping[str, str], host: Host) -> int:
    here: list[VM] = [vm for vm in topology.vms if where[vm.name] == host.name]
    return host.memory_bytes - sum(vm.resident_bytes for vm in here)
