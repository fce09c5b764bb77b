"""A virtual switch with chains at its ports, and raw sockets where its cables end."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.kernel import builder, netns
from testbed.kernel.channels import Channels
from testbed.kernel.iochain import attaching as chains
from testbed.kernel.undo import remove
from testbed.plan.policies import Chain
from testbed.plan.steps import Bridge, End, KernelStep, Netns, Veth

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.plan.stages import Stage

NO_IPV6 = (("net/ipv6/conf/default/disable_ipv6", "1"), ("net/ipv6/conf/all/disable_ipv6", "1"))
SOL_PACKET, PACKET_AUXDATA, PACKET_OUTGOING = 263, 8, 4
AUXDATA = struct.Struct("=IIIHHHH")
SO_RCVBUFFORCE, RECEIVE_BYTES = 33, 1 << 26  # 20000 small frames
VLAN_VALID = 1 << 4  # TP_STATUS_VLAN_VALID
QUIET_S, DEADLINE_S = 0.05, 2.0
BROADCAST = "ff:ff:ff:ff:ff:ff"


def frame(
    source: int,
    destination: int | None = None,
    vid: int | None = None,
    cos: int = 0,
    size: int = 60,
) -> bytes:
    """A frame of no known protocol, to all unless it has a destination, tagged if it has a VID."""
    to = BROADCAST if destination is None else mac(destination)
    made = bytes.fromhex((to + mac(source)).replace(":", ""))
    tag = struct.pack("!HH", 0x8100, cos << 13 | vid) if vid else b""
    return (made + tag + b"\x88\xb5").ljust(size + len(tag), b"x")


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


class Cable:
    """A raw socket on a device: sends frames as they are, receives them with their tags."""

    def __init__(self, where: str, dev: str) -> None:
        self.dev = dev
        with netns.inside(where):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        self.socket.bind((dev, 3))

    def send(self, *frames: object) -> None:
        for frame in frames:
            self.socket.send(bytes(frame))

    def waiting(self) -> bytes | None:
        """A frame that came in (not one that was sent here), its tag in place; None if none."""
        while True:
            try:
                data, ancillary, _, address = self.socket.recvmsg(1 << 17, 256, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            if address[2] == PACKET_OUTGOING:
                continue
            status, *_, tci, tpid = AUXDATA.unpack(ancillary[0][2][: AUXDATA.size])
            if status & VLAN_VALID:
                data = data[:12] + struct.pack("!HH", tpid or 0x8100, tci) + data[12:]
            return data


def received(cables: Sequence[Cable], expected: int = 0) -> dict[str, list[bytes]]:
    """What has come in, by device, once nothing more comes and `expected` frames are there."""
    found: dict[str, list[bytes]] = {cable.dev: [] for cable in cables}
    deadline, total = time.monotonic() + DEADLINE_S, 0
    while time.monotonic() < deadline:
        ready, _, _ = select.select([cable.socket for cable in cables], [], [], QUIET_S)
        if not ready and total >= expected:
            break
        for cable in cables:
            while (data := cable.waiting()) is not None:
                found[cable.dev].append(data)
                total += 1
    return found


@dataclass
class Port:
    """A port of the switch, and the stages of its chain."""

    name: str
    incoming: tuple[Stage, ...] = ()
    outgoing: tuple[Stage, ...] = ()
    uplink: int = 0
    mtu: int = 1500
    address: str | None = None
    isolated: bool = False
    learning: bool = True
    flooding: bool = True
    chained: bool = True


@dataclass
class Switch:
    """A switch under test, its ports' far ends in another namespace."""

    host: str
    far: str
    steps: tuple[KernelStep, ...]
    cables: dict[str, Cable] = field(default_factory=dict)

    def chain(self, port: str) -> Chain:
        return next(step for step in self.steps if isinstance(step, Chain) and step.dev == port)

    def rechain(self, port: str, **changes: object) -> None:
        """Put a changed chain in the place of the one that `steps` name."""
        old = self.chain(port)
        netns.in_thread(lambda _: self._rechain(old, dataclasses.replace(old, **changes)))

    def _rechain(self, old: Chain, new: Chain) -> None:
        with Channels() as channels:
            chains.replace(channels, old, new)
            chains.check(channels, new)

    def seen(self, expected: int = 0) -> dict[str, list[bytes]]:
        """What has come out of which port, those with nothing left out."""
        found = received(list(self.cables.values()), expected)
        return {dev: frames for dev, frames in found.items() if frames}

    def copies(self, frame: object, expected: int = 0) -> Counter[str]:
        """How many times exactly this frame has come out of each port."""
        found = self.seen(expected)
        return Counter({dev: frames.count(bytes(frame)) for dev, frames in found.items()})


def names(suffix: str) -> str:
    return f"tb-test-{os.getpid()}-{suffix}"


def veth(host: str, far: str, port: Port, master: str) -> Veth:
    near = End(
        host, port.name, port.mtu, "", master=master, isolated=port.isolated,
        learning=port.learning, flooding=port.flooding,
    )  # fmt: skip
    return Veth(near, End(far, f"{port.name}-far", port.mtu, "", mac=port.address))


def chain(host: str, port: Port, wire: Veth, mirrors: Sequence[Veth] = ()) -> Chain:
    return Chain(
        host, port.name, wire.key, port.incoming, port.outgoing, switch="br0",
        address=port.address, uplink=port.uplink, mirrors=tuple(one.key for one in mirrors),
    )  # fmt: skip


@contextmanager
def switch(ports: Sequence[Port], mtu: int = 1500) -> Iterator[Switch]:
    """A switch of these ports, far ends named `<port>-far` with cables under the port's name."""
    host, far = names("host"), names("far")
    wires = {port.name: veth(host, far, port, "br0") for port in ports}
    all_wires = tuple(wires.values())
    steps: tuple[KernelStep, ...] = (
        Netns(host, "host", "host", NO_IPV6),
        Netns(far, "far", "vm", NO_IPV6),
        Bridge(host, "br0", mtu, ""),
        *all_wires,
        *(chain(host, port, wires[port.name], all_wires) for port in ports if port.chained),
    )
    with ExitStack() as undo:
        builder.build(steps)
        undo.callback(remove, steps)
        made = Switch(host, far, steps)
        for port in ports:
            cable = Cable(far, f"{port.name}-far")
            cable.dev = port.name
            undo.callback(cable.socket.close)
            made.cables[port.name] = cable
        yield made
