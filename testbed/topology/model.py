"""The resolved topology: patterns expanded, references resolved, units gone, frozen.

Rates, clock rates, sizes and the windows of profiles are the ones that the lab will have, after
`scale`; multiplied by `1 / scale` they are the nominal ones of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fractions import Fraction

    from netaddr import IPAddress, IPNetwork

    from testbed.guest.specification import Backing
    from testbed.guest.workloads import Workload
    from testbed.profiles import Profile

from testbed.topology.policy import (
    Allocation,
    Impairment,
    MarkingRule,
    NicShare,
    Nioc,
    Offloads,
    PortGroup,
    Ranges,
    Rings,
    StaticRoute,
    SwitchQueues,
)


@dataclass(frozen=True, slots=True)
class PhysicalSwitch:
    """A physical switch, an Ethernet bridge of its own; `queues` None is one queue a port."""

    name: str
    site: str | None
    mtu: int
    queues: SwitchQueues | None = None


@dataclass(frozen=True, slots=True)
class RouterInterface:
    """A router's leg in a physical switch; addresses carry their prefix length.

    `vlan` is the VLAN that the switch's port is an access port of; None: frames as they are.
    """

    name: str
    switch: str
    addresses: tuple[IPNetwork, ...]
    mtu: int
    mac: str
    vlan: int | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """A router between the networks of physical switches."""

    name: str
    interfaces: tuple[RouterInterface, ...]


@dataclass(frozen=True, slots=True)
class PhysicalLink:
    """A cable between two physical switches; `rate_bps` None is unshaped.

    `there` is what happens to frames on their way from the first end to the second, `back` the
    other way. `vlans` are those that it carries (0: untagged frames); None: all frames.
    """

    ends: tuple[str, str]
    rate_bps: int | None
    mtu: int
    there: Impairment = Impairment()
    back: Impairment = Impairment()
    vlans: Ranges | None = None


@dataclass(frozen=True, slots=True)
class Datastore:
    """A shared datastore and the hosts that mount it."""

    name: str
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VSwitch:
    """A virtual switch as one host has it: a standard one, or its share of a distributed one.

    `uplinks` are the names of the host's vmnics in it.
    """

    name: str
    kind: Literal["standard", "distributed"]
    mtu: int
    uplinks: tuple[str, ...]
    portgroups: tuple[PortGroup, ...]
    nioc: Nioc | None = None
    marking: tuple[MarkingRule, ...] = ()

    def portgroup(self, name: str) -> PortGroup:
        """The port group of this name.

        Raises:
            KeyError: there is none.
        """
        found = next((group for group in self.portgroups if group.name == name), None)
        if found is None:
            raise KeyError(name)
        return found


@dataclass(frozen=True, slots=True)
class Uplink:
    """A physical NIC of a host (vmnic) and the physical switch it is cabled to.

    `vlans` are those that the switch's port carries (0: untagged frames); None: all frames.
    """

    name: str
    switch: str
    rate_bps: int | None
    mtu: int
    mac: str
    vlans: Ranges | None = None
    qos: tuple[NicShare, ...] = ()
    offloads: Offloads = Offloads()
    rings: Rings = Rings()


@dataclass(frozen=True, slots=True)
class VmkernelAdapter:
    """A VMkernel adapter (vmk): the host's own interface in a port group."""

    name: str
    vswitch: str
    portgroup: str
    addresses: tuple[IPNetwork, ...]
    gateways: tuple[IPAddress, ...]
    services: frozenset[str]
    mtu: int
    mac: str
    netstack: str = "default"
    routes: tuple[StaticRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """An ESXi-like host. `cores` and `memory_bytes` bound the VMs that it admits.

    `mhz` is a core's clock rate, None if the file doesn't say; `profile` how its vMotion behaves.
    """

    name: str
    cores: int
    mhz: float | None
    profile: Profile
    memory_bytes: int
    uplinks: tuple[Uplink, ...]
    vswitches: tuple[VSwitch, ...]
    vmks: tuple[VmkernelAdapter, ...]

    def vswitch_of(self, portgroup: str) -> VSwitch | None:
        """The virtual switch that has this port group here, or None."""
        return next(
            (v for v in self.vswitches if any(g.name == portgroup for g in v.portgroups)), None
        )

    def vmks_for(self, service: str) -> tuple[VmkernelAdapter, ...]:
        """The vmks that carry a service, such as `vmotion`."""
        return tuple(vmk for vmk in self.vmks if service in vmk.services)


@dataclass(frozen=True, slots=True)
class VirtualNic:
    """A VM's network adapter. Its MTU is the one of the virtual switch it is in.

    `vlan` is the one that the guest tags its frames with itself; None: it tags nothing.
    """

    name: str
    portgroup: str
    addresses: tuple[IPNetwork, ...]
    gateways: tuple[IPAddress, ...]
    mtu: int
    mac: str
    vlan: int | None = None
    bandwidth: Allocation | None = None


@dataclass(frozen=True, slots=True)
class VM:
    """A virtual machine; `host` is where it is powered on.

    It does all that `workloads` say at once; none is an idle VM. Of its memory `in_use_bytes` are
    filled at power-on (None: as `GuestSpec`), `reserved_bytes` are its own on any host, and
    `resident_bytes` are in its host's memory, the rest is swapped.
    """

    name: str
    host: str
    memory_bytes: int
    vcpus: int
    datastore: str
    nics: tuple[VirtualNic, ...]
    workloads: tuple[Workload, ...]
    in_use_bytes: int | None
    backing: Backing
    page_bytes: int
    reserved_bytes: int
    resident_bytes: int
    affinity: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole estate, validated.

    `profile` is that of hosts without one of their own. `text` is the file's own, for results,
    `file` its name, `traces` the (path as the file writes it, text) of the files that it names:
    traces that its VMs replay, and profiles.
    """

    name: str
    scale: Fraction
    profile: Profile
    sites: tuple[str, ...]
    switches: tuple[PhysicalSwitch, ...]
    routers: tuple[Router, ...]
    links: tuple[PhysicalLink, ...]
    datastores: tuple[Datastore, ...]
    hosts: tuple[Host, ...]
    vms: tuple[VM, ...]
    text: str = ""
    file: str = ""
    traces: tuple[tuple[str, str], ...] = ()

    def host(self, name: str) -> Host:
        """The host of this name.

        Raises:
            KeyError: there is none.
        """
        found = next((h for h in self.hosts if h.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def vm(self, name: str) -> VM:
        """The VM of this name.

        Raises:
            KeyError: there is none.
        """
        found = next((v for v in self.vms if v.name == name), None)
        if found is None:
            raise KeyError(name)
        return found
