"""The steps that decide what a link does with frames: rates, classes, chains, delays.

As those of `steps`, each has a `key` and `needs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from testbed.plan.stages import Stage


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """An HTB class below a link's root: what is guaranteed, what is allowed, and its weight.

    `minor` is its number. Rates are HTB's own. `major` 2 is a second HTB qdisc (its root as fast
    as the link) inside the class `default` of the first: it divides that class's part without
    changing it. A priority of major 2 means nothing to the first qdisc, so the frame comes to
    `default`.
    """

    minor: int
    name: str
    rate_bytes_per_s: int
    ceil_bytes_per_s: int
    quantum_bytes: int
    burst_bytes: int
    major: int = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """HTB on a link's egress: a root class, and perhaps classes that share it.

    `htb_rate_bytes_per_s` is what HTB is told: the nominal `rate_bps` derated for the
    preamble, gap and checksum that it doesn't count. The link's MTU is in `mtu`.

    Without `classes` the root takes all traffic. With them, what names none goes to the class
    `default` (and in the second qdisc, if there is one, to its first class).
    `ceil_bytes_per_s` above the rate lets `burst_bytes` pass at that speed after a pause
    (traffic shaping: average, peak and burst); None makes it the rate itself.

    `queue_bytes` may wait in each class to be sent, what comes then is dropped; None leaves the
    kernel's own queue of 1000 packets, each of which may be a train of 64 KB.

    HTB lends what a class does not use of its rate. Unless `lends_idle`, whoever runs the lab
    takes it off the root's rate meanwhile, so that nobody gets it.
    """

    kind: ClassVar[str] = "shape"
    netns: str
    dev: str
    rate_bps: int
    mtu: int
    htb_rate_bytes_per_s: int
    burst_bytes: int
    wire: str
    ceil_bytes_per_s: int | None = None
    classes: tuple[TrafficClass, ...] = ()
    default: int = 1
    lends_idle: bool = True
    queue_bytes: int | None = None

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"shape {self.netns}/{self.dev}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The key of the step that makes its link (`wire`)."""
        return (self.wire,)


@dataclass(frozen=True, slots=True)
class Chain:
    """The IOChain of a port: an eBPF program for each direction that has stages.

    `switch` is the bridge that it is a port of; the ports of one share the set of local
    addresses. `address` is the MAC behind the port; it enters the set here if `listed`, or else
    when the port is opened. `uplink` is the number of the uplink it is pinned to at first.
    """

    kind: ClassVar[str] = "chain"
    netns: str
    dev: str
    wire: str
    incoming: tuple[Stage, ...]
    outgoing: tuple[Stage, ...]
    switch: str = ""
    address: str | None = None
    listed: bool = True
    uplink: int = 0
    mirrors: tuple[str, ...] = ()
    """Keys of the wires whose ends `Mirror` stages name."""

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"chain {self.netns}/{self.dev}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Its wire, and those of the ports that it mirrors to."""
        return (self.wire, *self.mirrors)


@dataclass(frozen=True, slots=True)
class Offloads:
    """What a NIC does for the kernel: cutting TCP trains, and checksums; of a link's end."""

    kind: ClassVar[str] = "offloads"
    netns: str
    dev: str
    wire: str
    segmentation: bool = True
    checksum: bool = True

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"offloads {self.netns}/{self.dev}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The key of the step that makes its link (`wire`)."""
        return (self.wire,)


@dataclass(frozen=True, slots=True)
class Delay:
    """One direction of a wire: how long its frames take, one way."""

    delay_ns: int
    jitter_ns: int = 0


@dataclass(frozen=True, slots=True)
class Netem:
    """A netem qdisc on a wire's port: delays what the port sends, in order."""

    kind: ClassVar[str] = "netem"
    netns: str
    dev: str
    wire: str
    delay_ns: int
    jitter_ns: int
    limit_packets: int

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"netem {self.netns}/{self.dev}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The key of the step that makes its link (`wire`)."""
        return (self.wire,)


@dataclass(frozen=True, slots=True)
class DelayLine:
    """The process that delays a wire's frames where the kernel has no netem.

    `ports` are the wire's two ends, `delays` those of what each of them receives.
    """

    kind: ClassVar[str] = "delay_line"
    netns: str
    link: str
    ports: tuple[str, str]
    delays: tuple[Delay, Delay]

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"delay line {self.netns}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Its namespace and both ends."""
        return (f"netns {self.netns}", *(f"link {self.netns}/{port}" for port in self.ports))
