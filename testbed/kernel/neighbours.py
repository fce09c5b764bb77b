"""What namespaces remember of one another's link addresses (ARP and NDP)."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING

from pyroute2.netlink.rtnl.ndmsg import ndmsg

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.kernel.channels import Channels
from testbed.kernel.netlink import RefusedError, attributes
from testbed.kernel.routing import family_of, packed_ip
from testbed.kernel.template import ACK, DUMP, Slots, Template

if TYPE_CHECKING:
    from collections.abc import Iterable

_DELNEIGH, _GETNEIGH = 29, 30
_NDMSG = struct.Struct("=Bxxxi")  # family, ifindex (linux/neighbour.h)
_NDA_DST = 1
_VERSION = {4: 4, 16: 6}


def forget(where: Iterable[str], addresses: Iterable[str]) -> None:
    """Make namespaces ask anew who has these addresses; another MAC may have them now.

    Without that, traffic to an address that has moved to another adapter is lost for the tens
    of seconds that an entry is held for reachable.

    Raises:
        KernelError: a namespace is gone, or the kernel refuses.
    """
    wanted = {packed_ip(address) for address in addresses}
    names = tuple(where)
    if wanted:
        netns.in_thread(lambda _: _forget(names, wanted))


def _forget(names: tuple[str, ...], wanted: set[bytes]) -> None:
    with Channels() as channels:
        for name in names:
            socket = channels.socket(name)
            try:
                known = [_parse(*found) for found in socket.dump(_dump().fill())]
                stale = [(index, address) for index, address in known if address in wanted]
                refusal = socket.request([_delete(*entry) for entry in stale]) if stale else None
            except (OSError, RefusedError) as error:
                raise KernelError("forget neighbours in", name, str(error)) from error
            if refusal is not None:
                raise KernelError("forget neighbours in", name, refusal.cause)


def _parse(data: bytes, start: int, end: int) -> tuple[int, bytes]:
    """A neighbour's ifindex and packed address."""
    _, index = _NDMSG.unpack_from(data, start)
    address = b""
    for kind, first, last in attributes(data, start + 12, end):
        if kind == _NDA_DST:
            address = bytes(data[first:last])
    return index, address


@functools.cache
def _dump() -> Template:
    return Template(ndmsg, _GETNEIGH, DUMP, {"family": 0})


@functools.cache
def _delete_template(version: int) -> Template:
    slots = Slots()
    family = int(family_of("0.0.0.0" if version == 4 else "::"))  # noqa: S104 - only its family
    fields = {"family": family, "ifindex": slots.u32("index")}
    return Template(
        ndmsg,
        _DELNEIGH,
        ACK,
        fields,
        attributes=[("NDA_DST", slots.ip("address", version))],
        slots=slots,
    )


def _delete(index: int, address: bytes) -> bytearray:
    return _delete_template(_VERSION[len(address)]).fill(index=index, address=address)
