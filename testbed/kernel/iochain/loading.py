"""Programs of IOChains loaded, then attached together."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import messages
from testbed.kernel.iochain import bpf, compiling, filters
from testbed.kernel.iochain.cells import (
    PORT_MAP,
    SWITCH_MAP,
    create_addresses,
    create_cells,
)
from testbed.kernel.iochain.compiling import PROGRAM_NAMES, directions_of
from testbed.kernel.iochain.ports import open_map
from testbed.kernel.iochain.stages import PORT, SWITCH
from testbed.kernel.links import read_links
from testbed.kernel.netlink import RefusedError
from testbed.kernel.refusals import kernel_error
from testbed.plan.stages import Mirror

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from testbed.kernel.channels import Channels
    from testbed.kernel.iochain.ports import Attached
    from testbed.plan.policies import Chain


@dataclass(frozen=True, slots=True)
class _Message:
    """What to send, and what takes it back; None where something was there before."""

    step: Chain
    data: bytearray
    back: bytearray | None
    may_exist: bool = False


def mirror_indexes(channels: Channels, step: Chain) -> dict[str, int]:
    """The ifindexes of the ports that a chain's `Mirror` stages send to, by name.

    Raises:
        KernelError: there is no such port.
    """
    mirrors = [one for one in (*step.incoming, *step.outgoing) if isinstance(one, Mirror)]
    return {one.dev: channels.index(step.netns, one.dev) for one in mirrors}


class Loading:
    """Programs that wait to be attached; within the block, which closes their descriptors.

    Args:
        channels: where to.
        bare: the ports that have no chain yet.
    """

    def __init__(self, channels: Channels, bare: Iterable[Chain] = ()) -> None:
        self._channels = channels
        self._bare = {(step.netns, step.dev) for step in bare}
        self._closing = ExitStack()
        self._switches: dict[tuple[str, str], int] = {}
        self._messages: dict[str, list[_Message]] = {}
        self._listings: list[tuple[Chain, bpf.Element]] = []

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def add(self, step: Chain, have: Mapping[int, Attached], listed: bool) -> None:
        """Load a step's programs.

        Args:
            step: the chain.
            have: those that run now, to be replaced, their cells kept.
            listed: enter its address into the switch's set.

        Raises:
            KernelError: there is no such port, or the kernel refuses a program or map.
        """
        try:
            self._add(step, have, listed)
        except OSError as error:
            cause = str(error.strerror)
            raise KernelError("load the IOChain of", target_of(step), cause) from error

    def _add(self, step: Chain, have: Mapping[int, Attached], listed: bool) -> None:
        index = self._channels.index(step.netns, step.dev)
        fds = {PORT: self._cells(step, have)}
        if step.switch:
            fds[SWITCH] = self._switch(step)
        batch = self._messages.setdefault(step.netns, [])
        if not have:
            made, back = filters.create_clsact(index), filters.delete_clsact(index)
            batch.append(_Message(step, made, back, may_exist=True))
        values = {**mirror_indexes(self._channels, step), **fds}
        for direction in directions_of(step):
            program = self._program(step, direction, values)
            if step.switch:  # any port's program leads to the set of addresses
                bpf.bind_map(program, fds[SWITCH])
            name, replaces = PROGRAM_NAMES[direction], direction in have
            data = filters.set_filter(index, direction, name, program, replaces)
            undo = None if replaces else filters.delete_filter(index, direction)
            batch.append(_Message(step, data, undo))
        if listed and step.switch and step.address is not None:
            element = bpf.Element(fds[SWITCH], messages.packed_mac(step.address))
            self._listings.append((step, element))

    def _program(self, step: Chain, direction: int, values: Mapping[str, int]) -> int:
        code = compiling.program(step, direction, values)
        fd = bpf.load_program(PROGRAM_NAMES[direction], code, target_of(step))
        self._closing.callback(os.close, fd)
        return fd

    def _cells(self, step: Chain, have: Mapping[int, Attached]) -> int:
        known = [one.maps[PORT_MAP] for one in have.values()]
        fd = bpf.open_map(known[0]) if known else create_cells(step.uplink)
        self._closing.callback(os.close, fd)
        return fd

    def _switch(self, step: Chain) -> int:
        key = step.netns, step.switch
        if key not in self._switches:
            fd = self._open_switch(step)
            self._switches[key] = create_addresses() if fd is None else fd
            self._closing.callback(os.close, self._switches[key])
        return self._switches[key]

    def _open_switch(self, step: Chain) -> int | None:
        """The set found at a port of the switch that has a chain; None if none has."""
        socket = self._channels.socket(step.netns)
        bridge = self._channels.index(step.netns, step.switch)
        try:
            links = read_links(socket).values()
        except (OSError, RefusedError) as error:
            raise KernelError("read the links of", step.netns, str(error)) from error
        for link in links:
            if link.master == bridge and (step.netns, link.name) not in self._bare:
                fd = open_map(socket, link.index, SWITCH_MAP, f"{link.name} in {step.netns}")
                if fd is not None:
                    return fd
        return None

    def attach(self) -> None:
        """Attach everything; what is replaced stays so if another is refused, the rest goes.

        Raises:
            KernelError: the kernel refused.
        """
        with ExitStack() as undoing:
            for where, batch in self._messages.items():
                socket = self._channels.socket(where)
                outcomes = socket.outcomes([message.data for message in batch])
                sent = list(zip(batch, outcomes, strict=True))
                made = [one.back for one, refusal in sent if refusal is None and one.back]
                undoing.callback(socket.outcomes, made[::-1])
                for one, refusal in sent:
                    if refusal is not None and not _is_there(one, refusal):
                        raise kernel_error(one.step, refusal, "attach")
            for step, listing in self._listings:
                try:
                    listing.enter()
                except OSError as error:
                    cause = str(error.strerror)
                    raise KernelError("list the address of", target_of(step), cause) from error
            undoing.pop_all()


def _is_there(message: _Message, refusal: RefusedError) -> bool:
    return message.may_exist and refusal.number == errno.EEXIST


def target_of(step: Chain) -> str:
    """The port, for messages."""
    return f"{step.dev} in {step.netns}"
