"""Workloads of a VM's network: each with an address and a port, and their resolved form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netaddr import IPAddress

from testbed.guest import workloads as guest
from testbed.topology import machines as written

if TYPE_CHECKING:
    from fractions import Fraction

    from testbed.topology.draft import Draft
    from testbed.topology.machines import Vm, Workload
    from testbed.topology.problems import Path

_LISTENING = (
    written.WebWorkload,
    written.MediaWorkload,
    written.EchoWorkload,
    written.SinkWorkload,
)
_PORTS = {
    "web": guest.Web().port,
    "media": guest.Media().port,
    "echo": guest.Echo().port,
    "sink": guest.Sink().port,
}


def check(draft: Draft, path: Path, vm: Vm, sound: list[tuple[int, Workload]]) -> None:
    """Report those of a VM that has no address, and services without a port of their own."""
    ports: dict[int, str] = {}
    for number, one in sound:
        if not isinstance(one, (*_LISTENING, written.BulkWorkload, written.PingWorkload)):
            continue
        does = "sends" if isinstance(one, written.BulkWorkload) else "answers"
        if not vm.nics:
            message = f"workload {one.kind} {does} over the network, and the VM has no NIC"
            draft.problems.add((*path, number), message, "give the VM nics, with an ip")
        elif not any(nic.ip for nic in vm.nics):
            message = f"workload {one.kind} {does} over the network, and the VM has no address"
            draft.problems.add((*path, number), message, "give one of its nics an ip")
        elif isinstance(one, written.BulkWorkload):
            _peer(draft, (*path, number, "to"), vm, one)
        if isinstance(one, _LISTENING) and one.kind is not None:
            port = one.port or _PORTS[one.kind]
            if port in ports:
                draft.problems.add(
                    (*path, number, "port"),
                    f"TCP port {port} of the VM is taken already, by its {ports[port]} workload",
                    "give every service a port of its own",
                )
            ports.setdefault(port, one.kind)


def _peer(draft: Draft, path: Path, vm: Vm, one: written.BulkWorkload) -> None:
    """Its connection is of one IP version, and leads to somebody else."""
    if one.to is None:
        return
    own = [address for nic in vm.nics for address in nic.ip if address is not None]
    peer = IPAddress(one.to)
    if any(address.ip == peer for address in own):
        draft.problems.add(path, f"{one.to} is an address of the VM itself", "name another's")
    elif not any(address.version == peer.version for address in own):
        draft.problems.add(
            path,
            f"{one.to} is IPv{peer.version}, of which the VM has no address",
            "name an address of the version that it has, or give it one",
        )


def resolved(one: Workload, scale: Fraction) -> guest.NetworkWorkload:
    """What the VM does over its network, at the lab's scale."""
    match one:
        case written.WebWorkload():
            size = int((one.file or guest.Web().file_bytes) * scale)
            return guest.Web(file_bytes=max(size, 1), **given(port=one.port))
        case written.MediaWorkload():
            rate = int((one.rate or guest.Media().rate_bps) * scale)
            return guest.Media(rate_bps=rate, **given(port=one.port))
        case written.EchoWorkload():
            return guest.Echo(**given(port=one.port))
        case written.BulkWorkload():
            rate = int((one.rate or 0) * scale)
            return guest.Bulk(one.to or "", rate_bps=rate, **given(port=one.port))
        case written.SinkWorkload():
            return guest.Sink(**given(port=one.port))
        case _:
            return guest.Ping()


def given(**values: Any) -> dict[str, Any]:
    """Those that the file gives; the others are as the workload has them."""
    return {name: value for name, value in values.items() if value is not None}
