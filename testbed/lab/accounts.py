"""The CPU ledgers of a lab's hosts: which host has one, and what its traffic is charged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from testbed.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.lab.directory import LabDirectory
    from testbed.topology.model import Topology


def ledger_path(directory: LabDirectory, host: str) -> Path:
    """The file of a host's ledger, if it has one."""
    return directory.path / "ledgers" / host


def terms(directory: LabDirectory, topology: Topology, name: str) -> dict[str, Any] | None:
    """Open a host's ledger, with the topology's figures from now on.

    Returns:
        Its path and prices, as `guest.nic.account.Account` takes them. None: nothing is charged
        there, as the host's profile names no cost, or the file no clock rate; or there is no such
        host yet.
    """
    host = next((one for one in topology.hosts if one.name == name), None)
    if host is None:
        return None
    profile = host.profile
    if host.mhz is None or not profile.charges_cpu:
        return None
    share_cores: dict[str, float] = {}
    if profile.vmotion_cores is not None:
        share_cores["vmotion"] = profile.vmotion_cores
    path = ledger_path(directory, host.name)
    path.parent.mkdir(exist_ok=True)
    Ledger.open(path, host.cores, host.mhz, share_cores)
    return {
        "path": str(path),
        "cycles_per_byte": profile.cycles_per_byte,
        "cycles_per_packet": profile.cycles_per_packet,
    }
