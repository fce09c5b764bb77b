"""The chain of a running port: found by its filters, read, pinned, its address listed."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.kernel import messages, netns
from testbed.kernel.iochain import bpf
from testbed.kernel.iochain.cells import (
    ADDRESS_BYTES,
    DIRECTIONS,
    PORT_MAP,
    SWITCH_MAP,
    Cells,
    ChainCounters,
)
from testbed.kernel.iochain.filters import FilterFact, read_filters
from testbed.kernel.links import read_links
from testbed.kernel.netlink import RefusedError, Socket

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Attached:
    """A chain's program in one direction, as the kernel has it."""

    filter: FilterFact
    program: bpf.ProgramFact
    maps: dict[str, int]  # ids by name


def attached(socket: Socket, index: int, target: str) -> dict[int, Attached]:
    """The programs of a port's chain by direction; empty if it has no chain.

    Args:
        socket: of the port's namespace.
        index: the port's ifindex.
        target: the port, for messages.

    Raises:
        KernelError: the kernel does not answer.
    """
    found = {}
    known: dict[int, str] = {}
    try:
        for direction in DIRECTIONS:
            for fact in read_filters(socket, index, direction):
                if fact.ours and fact.program:
                    found[direction] = _attached(fact, known)
    except (OSError, RefusedError) as error:
        raise _unread(target, error) from error
    return found


def _attached(fact: FilterFact, known: dict[int, str]) -> Attached:
    with bpf.program(fact.program) as fd:
        program = bpf.read_program(fd)
    for number in program.maps:
        if number not in known:
            fd = bpf.open_map(number)
            try:
                known[number] = bpf.read_map(fd).name
            finally:
                os.close(fd)
    return Attached(fact, program, {known[number]: number for number in program.maps})


def _unread(target: str, error: OSError | RefusedError) -> KernelError:
    cause = error.cause if isinstance(error, RefusedError) else str(error.strerror)
    return KernelError("read the IOChain of", target, cause, "see `testbed status`")


def open_map(socket: Socket, index: int, name: str, target: str) -> int | None:
    """A map (PORT_MAP, SWITCH_MAP) of a port's chain, for the caller to close; None without it.

    Raises:
        KernelError: the kernel does not answer.
    """
    for one in attached(socket, index, target).values():
        if name in one.maps:
            try:
                return bpf.open_map(one.maps[name])
            except OSError as error:
                raise _unread(target, error) from error
    return None


def open_cells(socket: Socket, index: int, target: str) -> Cells:
    """A port's cells, held open: for what reads or pins many times; `close` them.

    Raises:
        KernelError: the port has no chain.
    """
    fd = open_map(socket, index, PORT_MAP, target)
    if fd is None:
        raise KernelError("find the IOChain of", target, "it has none", "see `testbed plan`")
    try:
        return Cells(fd, target)
    finally:
        os.close(fd)


class Addresses:
    """A virtual switch's set of local addresses, held open; a port opens it if it has one.

    Raises:
        KernelError: the port has no chain of a virtual switch.
    """

    def __init__(self, socket: Socket, index: int, target: str) -> None:
        fd = open_map(socket, index, SWITCH_MAP, target)
        if fd is None:
            cause = "it has no IOChain of a virtual switch"
            raise KernelError("find the switch of", target, cause, "see `testbed plan`")
        self._fd, self._target = fd, target

    def listing(self, mac: str) -> bpf.Element:
        """An address to be entered and removed within microseconds, while this is open."""
        return bpf.Element(self._fd, messages.packed_mac(mac))

    def all(self) -> set[str]:
        """The addresses that are listed now.

        Raises:
            KernelError: the kernel does not answer.
        """
        try:
            return {key.hex(":") for key in bpf.keys(self._fd, ADDRESS_BYTES)}
        except OSError as error:
            raise _unread(self._target, error) from error

    def close(self) -> None:
        """Let go of the set; what is listed stays so."""
        os.close(self._fd)

    def __enter__(self) -> Addresses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---------------------------------------------------------------- by name, one at a time


@contextmanager
def _port(where: str, dev: str) -> Iterator[tuple[Socket, int, str]]:
    target = f"{dev} in {where}"
    with ExitStack() as closing:
        with netns.inside(where):
            socket = closing.enter_context(Socket())
        try:
            link = read_links(socket).get(dev)
        except (OSError, RefusedError) as error:
            raise KernelError("find port", target, str(error)) from error
        if link is None:
            raise KernelError("find port", target, "there is none of that name")
        yield socket, link.index, target


def counters(where: str, dev: str) -> ChainCounters:
    """What the chain of a port has counted.

    Raises:
        KernelError: there is no such namespace or port, or it has no chain.
    """
    with _port(where, dev) as port, open_cells(*port) as cells:
        return cells.counters()


def pin(where: str, dev: str, uplink: int) -> None:
    """Have a port's frames leave by another uplink (0: by none) from the next one on.

    Raises:
        KernelError: there is no such namespace, port or uplink, or the port has no chain.
    """
    with _port(where, dev) as port, open_cells(*port) as cells:
        cells.pin(uplink)


def list_address(where: str, dev: str, mac: str) -> None:
    """Enter an address into the set of the virtual switch that `dev` is any port of.

    Raises:
        KernelError: there is no such port, it has no chain, or the set is full.
    """
    with _port(where, dev) as port, Addresses(*port) as addresses:
        try:
            addresses.listing(mac).enter()
        except OSError as error:
            raise KernelError("list address", f"{mac} at {port[2]}", str(error.strerror)) from error


def unlist_address(where: str, dev: str, mac: str) -> None:
    """Take an address out of the set of the virtual switch that `dev` is any port of.

    Raises:
        KernelError: there is no such port, or it has no chain.
    """
    with _port(where, dev) as port, Addresses(*port) as addresses:
        try:
            addresses.listing(mac).remove()
        except OSError as error:
            raise KernelError(
                "remove address", f"{mac} at {port[2]}", str(error.strerror)
            ) from error


def addresses(where: str, dev: str) -> set[str]:
    """The addresses of the virtual switch that `dev` is any port of.

    Raises:
        KernelError: there is no such port, or it has no chain.
    """
    with _port(where, dev) as port, Addresses(*port) as found:
        return found.all()
