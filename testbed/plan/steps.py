"""The steps of a plan: pure data, one kernel object or process each.

A step has a `key` that names its object in the lab and `needs`, the keys of the objects
that it stands on. Undoing an object undoes all that needs it. Everything a step says is
final: names fit the kernel, rates are what HTB is told, MTUs and addresses are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.plan.policies import Chain, DelayLine, Netem, Offloads, Shape

if TYPE_CHECKING:
    from testbed.guest.specification import Backing
    from testbed.guest.workloads import Workload


@dataclass(frozen=True, slots=True)
class Netns:
    """A network namespace; `role` is host, switch, router, wire or vm.

    `sysctls` are (path under /proc/sys, value) pairs set before any link is made in it.
    """

    kind: ClassVar[str] = "netns"
    name: str
    node: str
    role: str
    sysctls: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"netns {self.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class Bridge:
    """An Ethernet bridge: a physical switch, a virtual switch, or a VM's NIC (`mac` given).

    No spanning tree and no IPv6 of its own; up as soon as it is made. One that `remembers`
    forgets no address before its port goes, as a virtual switch, which knows its ports'.
    """

    kind: ClassVar[str] = "bridge"
    netns: str
    name: str
    mtu: int
    alias: str
    mac: str | None = None
    remembers: bool = False

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"link {self.netns}/{self.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Its namespace."""
        return (f"netns {self.netns}",)


@dataclass(frozen=True, slots=True)
class End:
    """One end of a veth. `master` is a bridge in the same namespace.

    `rps_cpu` is the CPU that handles what this end receives (one, or veth reorders).
    `forwarding` False leaves a bridge port disabled: it passes nothing either way.

    As a bridge port, one that is `isolated` exchanges no frames with other such ports, one
    without `learning` teaches the bridge no addresses, and one without `flooding` gets no
    unicast frames for unknown addresses.
    """

    netns: str
    name: str
    mtu: int
    alias: str
    mac: str | None = None
    master: str | None = None
    rps_cpu: int = 0
    forwarding: bool = True
    isolated: bool = False
    learning: bool = True
    flooding: bool = True

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"link {self.netns}/{self.name}"


@dataclass(frozen=True, slots=True)
class Veth:
    """A wire between two namespaces (or two ends in one), both ends up."""

    kind: ClassVar[str] = "veth"
    a: End
    b: End

    @property
    def key(self) -> str:
        """The object's name in the lab: its first end's."""
        return self.a.key

    @property
    def needs(self) -> tuple[str, ...]:
        """Both namespaces and the bridges that the ends are ports of."""
        needs = [f"netns {self.a.netns}", f"netns {self.b.netns}"]
        needs += [f"link {end.netns}/{end.master}" for end in (self.a, self.b) if end.master]
        return tuple(dict.fromkeys(needs))


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 or IPv6 address with its prefix length on a link; IPv6 without DAD.

    Unless `connected` the kernel makes no route to its network in the main table, as for a vmk
    of another TCP/IP stack than the host's default one.
    """

    kind: ClassVar[str] = "address"
    netns: str
    dev: str
    address: str
    wire: str
    connected: bool = True

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"address {self.netns}/{self.dev} {self.address}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The key of the step that makes its link (`wire`)."""
        return (self.wire,)


@dataclass(frozen=True, slots=True)
class Route:
    """A route; `table` 254 is the main one. `destination` is a CIDR, `default` for all."""

    kind: ClassVar[str] = "route"
    netns: str
    destination: str
    dev: str
    table: int
    wire: str
    family: int
    via: str | None = None
    source: str | None = None

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"route {self.netns} table {self.table} {self.destination} (IPv{self.family})"

    @property
    def needs(self) -> tuple[str, ...]:
        """The address it is sent from, or else its link."""
        return (self.wire,)


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule: packets from `source` (an address, no prefix) look in `table`."""

    kind: ClassVar[str] = "rule"
    netns: str
    source: str
    table: int
    family: int

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"rule {self.netns} from {self.source} table {self.table}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Its namespace."""
        return (f"netns {self.netns}",)


@dataclass(frozen=True, slots=True)
class DatastoreDirectory:
    """A shared datastore: a directory in the lab's state that its hosts' VMs see."""

    kind: ClassVar[str] = "datastore"
    name: str
    hosts: tuple[str, ...]

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"datastore {self.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class PowerOn:
    """A VM powered on: its memory and vCPU processes, run by the supervisor.

    What it is made from is said as in `guest.specification.GuestSpec`.
    """

    kind: ClassVar[str] = "vm"
    vm: str
    netns: str
    host: str
    host_netns: str
    datastore: str
    memory_bytes: int
    vcpus: int
    seed: int
    workloads: tuple[Workload, ...] = ()
    in_use_bytes: int | None = None
    backing: Backing = "real"
    page_bytes: int = SMALL_PAGE_BYTES
    resident_bytes: int | None = None
    affinity: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """The object's name in the lab."""
        return f"vm {self.vm}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The VM's and its host's namespaces and its datastore; wires may be replugged."""
        return (
            f"netns {self.netns}",
            f"netns {self.host_netns}",
            f"datastore {self.datastore}",
        )


KernelStep: TypeAlias = (
    Netns | Bridge | Veth | Address | Route | Rule | Shape | Chain | Offloads | Netem
)
LabStep: TypeAlias = DelayLine | DatastoreDirectory | PowerOn
Step: TypeAlias = KernelStep | LabStep
