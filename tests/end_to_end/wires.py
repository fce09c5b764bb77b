"""A lab that stands, as its tests see it: pings and loads, frames sent by hand, frames heard."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from testbed import topology as topologies
from testbed.errors import MeasurementError
from testbed.kernel import netns
from testbed.kernel.observation import observe
from testbed.lab.adapters import adapter, common_addresses
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.journal import Journal
from testbed.lab.status import lab_status
from testbed.lab.up import up
from testbed.measure.capture import Captured, CaptureTest, Tap, capture
from testbed.measure.endpoint import Endpoint, socket_in
from testbed.measure.iperf import measure as iperf
from testbed.measure.iperf_result import IperfTest
from testbed.measure.ping import PingTest
from testbed.measure.ping import measure as ping
from testbed.plan.plan import kernel_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.kernel.links import Link
    from testbed.measure.ping_result import PingResult
    from testbed.plan.plan import Plan

BROADCAST = "ff:ff:ff:ff:ff:ff"
EXPERIMENTAL = 0x88B5  # IEEE 802, for local use: no kernel answers it
VLAN, ARP, RARP, IPV4 = 0x8100, 0x0806, 0x8035, 0x0800
MS = 1_000_000


class Flow(NamedTuple):
    """An iperf to run beside others, from and to NODE/ADAPTER."""

    source: str
    destination: str
    streams: int = 2


@dataclass(frozen=True, slots=True)
class Heard:
    """A frame at NODE/DEVICE: its headers read from the bytes on the wire."""

    where: str
    unix_ns: int
    outgoing: bool
    length: int
    data: bytes

    @property
    def destination(self) -> str:
        return self.data[:6].hex(":")

    @property
    def source(self) -> str:
        return self.data[6:12].hex(":")

    @property
    def tag(self) -> int | None:
        """TCI of the 802.1Q tag: PCP in the upper three bits, VID in the lower twelve."""
        kind, tci = struct.unpack_from("!HH", self.data, 12)
        return tci if kind == VLAN else None

    @property
    def vid(self) -> int | None:
        return None if self.tag is None else self.tag & 0xFFF

    @property
    def pcp(self) -> int | None:
        return None if self.tag is None else self.tag >> 13

    @property
    def kind(self) -> int:
        """The EtherType behind the tag."""
        found: int = struct.unpack_from("!H", self.data, 12 if self.tag is None else 16)[0]
        return found

    @property
    def packet(self) -> bytes:
        return self.data[14 if self.tag is None else 18 :]

    @property
    def dscp(self) -> int | None:
        return self.packet[1] >> 2 if self.kind == IPV4 else None

    @property
    def protocol(self) -> int | None:
        return self.packet[9] if self.kind == IPV4 else None

    @property
    def ip(self) -> tuple[str, str]:
        """Source and destination."""
        return socket.inet_ntoa(self.packet[12:16]), socket.inet_ntoa(self.packet[16:20])


@dataclass
class Listening:
    """What was heard, by NODE/DEVICE; whole once the listening has ended."""

    frames: list[Heard] = field(default_factory=list)

    def at(self, where: str, *, outgoing: bool | None = None) -> list[Heard]:
        return [
            one for one in self.frames if one.where == where and outgoing in {None, one.outgoing}
        ]

    def copies(self, sent: bytes, *, outgoing: bool = False) -> dict[str, int]:
        """How many times a frame arrived where; untagged, as adapters get it."""
        found: dict[str, int] = defaultdict(int)
        for one in self.frames:
            if (one.outgoing, one.length) == (outgoing, len(sent)) and sent.startswith(one.data):
                found[one.where] += 1
        return dict(found)


def frame(source: str, word: str, *, to: str = BROADCAST, vid: int = 0, size: int = 60) -> bytes:
    """A frame of no known protocol that carries a word."""
    made = bytes.fromhex((to + source).replace(":", ""))
    made += struct.pack("!HH", VLAN, vid) if vid else b""
    return (made + struct.pack("!H", EXPERIMENTAL) + word.encode()).ljust(
        size + (4 if vid else 0), b"."
    )


class Net:
    """A lab that is up; places are NODE/DEVICE."""

    def __init__(self, lab: str) -> None:
        self.lab = lab
        self.directory = LabDirectory(lab)

    def path(self, node: str) -> str:
        return str(netns.path_of(f"tb.{self.lab}.{node}"))

    def ends(self, source: str, destination: str) -> tuple[Endpoint, Endpoint]:
        plan = self.plan()
        a, b = adapter(plan, source), adapter(plan, destination)
        ours, theirs = common_addresses(a, b)
        return Endpoint(netns.path_of(a.netns), ours), Endpoint(netns.path_of(b.netns), theirs)

    # -- measured ---------------------------------------------------------------------------

    def ping(
        self, source: str, destination: str, count: int = 40, interval_ns: int = 5 * MS, **more: Any
    ) -> PingResult:
        return ping(*self.ends(source, destination), PingTest(count, interval_ns, **more))

    def rtt_ms(self, source: str, destination: str, count: int = 40) -> float:
        self.ping(source, destination, 2)  # neighbours are found
        return self.ping(source, destination, count).median_ns / 1e6

    def reaches(self, source: str, destination: str, **more: Any) -> bool:
        """Whether any of a few echoes is answered."""
        try:
            self.ping(source, destination, 4, 20 * MS, timeout_ns=300 * MS, **more)
        except MeasurementError:
            return False
        return True

    @contextmanager
    def pinging(self, source: str, destination: str, interval_ns: int = 5 * MS) -> Iterator[Pings]:
        """Pings all the while; `found` afterwards. Neighbours are known before."""
        self.ping(source, destination, 2)
        stop, pings, ends = threading.Event(), Pings(), self.ends(source, destination)
        test = PingTest(count=None, interval_ns=interval_ns, timeout_ns=300 * MS)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ping, *ends, test, stop)
            try:
                time.sleep(0.1)  # some before
                yield pings
                time.sleep(0.2)  # and some after
            finally:
                stop.set()
            pings.result = running.result()

    def bps(self, source: str, destination: str, duration_s: int = 2, **more: Any) -> float:
        """TCP payload per second that arrives, without its first second."""
        return self.together(Flow(source, destination), duration_s=duration_s, **more)[0]

    def together(self, *flows: Flow, duration_s: int = 3, omit_s: int = 1) -> list[float]:
        """What each gets while all run: bits per second of payload."""

        def run(number: int, flow: Flow) -> float:
            test = IperfTest(duration_s, streams=flow.streams, port=5201 + number, omit_s=omit_s)
            return iperf(*self.ends(flow.source, flow.destination), test).received_bps

        with ThreadPoolExecutor(len(flows)) as pool:
            running = [pool.submit(run, n, flow) for n, flow in enumerate(flows)]
            return [one.result() for one in running]

    # -- frames -----------------------------------------------------------------------------

    @contextmanager
    def hear(self, *places: str, settle_s: float = 0.15) -> Iterator[Listening]:
        """Listen at devices meanwhile, and a moment longer."""
        taps = [Tap(self.path(place.split("/")[0]), place.split("/")[1]) for place in places]
        heard, stop, ready = Listening(), threading.Event(), threading.Event()

        def keep(one: Captured) -> None:
            heard.frames.append(
                Heard(places[one.tap], one.unix_ns, one.direction == "out", one.length, one.data)
            )

        # 64 MiB would take the kernel a quarter of a second for each tap.
        test = CaptureTest(snaplen_bytes=128, ring_bytes=8 << 20)  # headers, and a test's word
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(capture, taps, test, keep, stop, ready.set)
            try:
                while not ready.wait(0.01):
                    if running.done():
                        running.result()
                yield heard
                time.sleep(settle_s)
            finally:
                stop.set()
            running.result()

    def send(self, place: str, *frames: bytes) -> None:
        """Send frames as they are from a device; those that a queue has no room for are lost."""
        node, device = place.split("/")
        with socket_in(self.path(node), socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
            sender.bind((device, 0))
            for one in frames:
                try:
                    sender.send(one)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise

    # -- as the lab says ---------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return lab_status(self.lab)

    def plan(self) -> Plan:
        return Journal.read(self.directory.journal).plan

    def links(self) -> dict[str, Link]:
        """Each link with its counters, by place."""
        seen = observe(kernel_steps(self.plan().steps)).values()
        return {f"{one.netns.split('.', 2)[2]}/{one.link.name}": one.link for one in seen}

    @cached_property
    def macs(self) -> dict[str, str]:
        return {place: link.mac for place, link in self.links().items()}

    def sent(self, *places: str) -> dict[str, int]:
        """Packets sent so far."""
        links = self.links()
        counters = {place: links[place].counters for place in places}
        return {place: found.tx_packets for place, found in counters.items() if found}

    def uplinks_of_ports(self) -> dict[str, str | None]:
        """The uplink that each port of a team leaves by, by HOST/PORT."""
        said = request(self.directory, {"command": "status"}, timeout_s=10)
        return {
            f"{team['netns'].split('.', 2)[2]}/{team['port']}": team["uplink"]
            for team in said["teams"]
        }

    # -- changed ----------------------------------------------------------------------------

    def link(self, a: str, b: str, *, for_ns: int | None = None, **change: Any) -> dict[str, Any]:
        message = {"command": "link", "change": {"ends": [a, b], **change}, "for_ns": for_ns}
        return request(self.directory, message, timeout_s=30)

    def apply(self, text: str) -> dict[str, Any]:
        message = {
            "command": "apply",
            "topology_file": "changed.yaml",
            "topology_text": text,
            "traces": {},
        }
        return request(self.directory, message, timeout_s=60)

    def migrate(
        self,
        vm: str,
        to: str,
        *,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        goal_ns: int = 500 * MS,
    ) -> dict[str, Any]:
        """Migrate and return the result as JSON."""
        message = {
            "command": "migrate", "vm": vm, "to": to, "switchover_goal_ns": goal_ns,
            "verify": False, "command_line": "test",
        }  # fmt: skip
        return request(self.directory, message, timeout_s=60, on_event=on_event)


@dataclass
class Pings:
    result: PingResult | None = None

    @property
    def found(self) -> PingResult:
        assert self.result is not None
        return self.result


@contextmanager
def standing(text: str) -> Iterator[Net]:
    """The lab of a topology, up and then down."""
    found = topologies.loads(text, "test.yaml")
    try:
        up(found)
        yield Net(found.name)
    finally:
        down(found.name)


def wait_until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)
