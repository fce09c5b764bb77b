"""Plans for this machine: with its CPUs, and by what its kernel has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.kernel.probe import has_netem
from testbed.lab.cpus import cpu_count
from testbed.plan.compile import compile_network, compile_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.plan.network import Network
    from testbed.plan.plan import Plan
    from testbed.topology.model import Topology


def plan_here(topology: Topology, placement: Mapping[str, str] | None = None) -> Plan:
    """The plan of a lab on this machine, as `plan.compile_plan`.

    Raises:
        LabError: a VM is placed on a host that lacks its port group.
    """
    netem = _delays(topology) and has_netem()
    return compile_plan(topology, cpus=cpu_count(), placement=placement, netem=netem)


def network_here(topology: Topology, placement: Mapping[str, str] | None = None) -> Network:
    """The network of a lab on this machine, as `plan.compile_network`.

    Raises:
        LabError: a VM is placed on a host that lacks its port group.
    """
    return compile_network(topology, cpus=cpu_count(), placement=placement)


def _delays(topology: Topology) -> bool:
    return any(link.there.delays or link.back.delays for link in topology.links)
