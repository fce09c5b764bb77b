"""The IOChains of ports put in the kernel, replaced, taken away and read back."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import messages
from testbed.kernel.iochain import bpf, compiling, filters
from testbed.kernel.iochain.cells import (
    DIRECTIONS,
    INCOMING,
    PORT_MAP,
    SWITCH_MAP,
)
from testbed.kernel.iochain.compiling import PROGRAM_NAMES, directions_of
from testbed.kernel.iochain.loading import Loading, mirror_indexes, target_of
from testbed.kernel.iochain.ports import Attached, attached, open_map
from testbed.kernel.iochain.stages import PORT, SWITCH
from testbed.kernel.netlink import RefusedError
from testbed.kernel.refusals import describe, kernel_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.kernel.channels import Channels
    from testbed.plan.policies import Chain

_REMEDY = "another program may have changed it: 'testbed down' and 'up' put it right"
_GONE = {errno.ENODEV, errno.ENOENT, errno.EINVAL}  # EINVAL: there is no clsact


def attach(channels: Channels, step: Chain) -> None:
    """Put a port's chain in place, its cells new.

    Raises:
        KernelError: the kernel refused (then nothing is left), or the port has one.
    """
    attach_all(channels, (step,))


def attach_all(channels: Channels, steps: Sequence[Chain]) -> None:
    """`attach` of many, all or none; the messages to one namespace go together.

    Raises:
        KernelError: the kernel refused.
    """
    with Loading(channels, bare=steps) as work:
        for step in steps:
            if directions_of(step):
                work.add(step, {}, step.listed)
        work.attach()


def replace(channels: Channels, old: Chain, new: Chain) -> None:
    """Put a chain in another's place, each direction at once; counters and pin are kept.

    A listed address that differs is exchanged.

    Raises:
        KernelError: the kernel refused; a direction may have been replaced.
    """
    index = channels.index(old.netns, old.dev)
    have = attached(channels.socket(old.netns), index, target_of(old))
    moved = (old.switch, old.address) != (new.switch, new.address)
    if moved:
        _unlist(channels, old)
    with Loading(channels) as work:
        if directions_of(new):
            work.add(new, have, new.listed and moved)
        work.attach()
    going = [one for one in have if one not in directions_of(new)]
    _delete(channels, old, [filters.delete_filter(index, one) for one in going])


def detach(channels: Channels, step: Chain) -> None:
    """Take a port's chain away, and its clsact if nothing else is in it.

    What is gone already is no error.

    Raises:
        KernelError: there is no such port, or the kernel refused.
    """
    index = channels.index(step.netns, step.dev)
    _unlist(channels, step)
    _delete(channels, step, [filters.delete_filter(index, one) for one in DIRECTIONS])
    socket = channels.socket(step.netns)
    try:
        left = [filters.read_filters(socket, index, one) for one in DIRECTIONS]
    except (OSError, RefusedError) as error:
        raise KernelError("read the filters of", target_of(step), str(error)) from error
    if not any(left):
        _delete(channels, step, [filters.delete_clsact(index)])


def check(channels: Channels, step: Chain) -> None:
    """Compare a port's filters and programs with a step; not the uplink, which failover changes.

    Raises:
        KernelError: something is missing or differs.
    """
    index = channels.index(step.netns, step.dev)
    found = attached(channels.socket(step.netns), index, target_of(step))
    for direction in DIRECTIONS:
        have, wanted = found.get(direction), direction in directions_of(step)
        name = PROGRAM_NAMES[direction]
        if (have is not None) != wanted:
            words = ("a program", "none") if wanted else ("none", "a program")
            raise _differs(step, f"{name} of {step.dev}", *words)
        if have is not None:
            _compare(channels, step, direction, have)
    if len({have.maps[PORT_MAP] for have in found.values()}) > 1:
        raise _differs(step, f"map of {step.dev}", "one for both directions", "two")
    if step.switch and step.listed and step.address is not None:
        _compare_address(step, step.address, found[INCOMING].maps[SWITCH_MAP])


def _compare(channels: Channels, step: Chain, direction: int, have: Attached) -> None:
    values = {**mirror_indexes(channels, step), PORT: 0, SWITCH: 0}  # a tag leaves maps out
    tags = bpf.tags(compiling.program(step, direction, values))
    maps = {PORT_MAP, SWITCH_MAP} if step.switch else {PORT_MAP}
    name = PROGRAM_NAMES[direction]
    wanted = have.program.tag if have.program.tag in tags else tags[0]
    for what, want, value in (
        ("name", name, have.program.name),
        ("direct action", True, have.filter.direct_action),
        ("protocol", filters.ALL_PROTOCOLS, have.filter.protocol),
        ("tag", wanted.hex(), have.program.tag.hex()),
        ("maps", sorted(maps), sorted(have.maps)),
    ):
        if want != value:
            raise _differs(step, f"{name}'s {what}", want, value)


def _compare_address(step: Chain, address: str, switch_map: int) -> None:
    try:
        fd = bpf.open_map(switch_map)
        try:
            listed = bpf.Element(fd, messages.packed_mac(address)).is_in()
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError("read the addresses of", target_of(step), str(error)) from error
    if not listed:
        raise _differs(step, f"addresses of {step.switch}", address, "others")


def _unlist(channels: Channels, step: Chain) -> None:
    if step.switch and step.address is not None:
        index = channels.index(step.netns, step.dev)
        fd = open_map(channels.socket(step.netns), index, SWITCH_MAP, target_of(step))
        if fd is not None:
            try:
                bpf.Element(fd, messages.packed_mac(step.address)).remove()
            except OSError as error:
                raise KernelError("remove the address of", target_of(step), str(error)) from error
            finally:
                os.close(fd)


def _delete(channels: Channels, step: Chain, batch: Sequence[bytearray]) -> None:
    for refusal in channels.socket(step.netns).outcomes(batch):
        if refusal is not None and refusal.number not in _GONE:
            raise kernel_error(step, refusal, "remove")


def _differs(step: Chain, what: str, wanted: object, found: object) -> KernelError:
    kind, target = describe(step)
    cause = f"{what}: wanted {wanted}, the kernel has {found}"
    return KernelError(f"keep {kind}", target, cause, _REMEDY)
