"""Other workloads for running VMs: they hold until changed again, or until `apply`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from testbed.guest.workloads import from_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.topology.model import Topology


def changed_workloads(topology: Topology, changes: Mapping[str, list[dict[str, Any]]]) -> Topology:
    """The topology with the workloads that VMs have been switched to (`Journal.workloads`)."""
    return replace(
        topology,
        vms=tuple(
            replace(vm, workloads=tuple(map(from_json, changes[vm.name])))
            if vm.name in changes
            else vm
            for vm in topology.vms
        ),
    )
