"""What an administrator sets on links, ports, uplinks and switches, resolved and frozen.

Rates are those that the lab will have, after `scale`, as everywhere in the resolved topology.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from fractions import Fraction

    from netaddr import IPAddress, IPNetwork

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Numbers as (first, last) pairs, both included, ascending and apart."""

HIGHEST_VLAN = 4094
GUEST_TAGGING_VLAN = 4095
"""On a standard switch: the guests tag for themselves, and every VLAN is carried."""


@dataclass(frozen=True, slots=True)
class Impairment:
    """One direction of a link: one-way delay, its jitter (plus or minus), and the share lost.

    `loss` is from 0 to 1.
    """

    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0

    @property
    def delays(self) -> bool:
        """Whether frames are held at all."""
        return self.delay_ns > 0 or self.jitter_ns > 0


@dataclass(frozen=True, slots=True)
class Security:
    """A port group's security policy; True accepts."""

    promiscuous: bool
    mac_changes: bool
    forged_transmits: bool


@dataclass(frozen=True, slots=True)
class TrafficShaping:
    """A port's traffic shaping: an average rate, and bursts of `burst_bytes` at the peak."""

    average_bps: int
    peak_bps: int
    burst_bytes: int


@dataclass(frozen=True, slots=True)
class Teaming:
    """Which uplinks a port group's ports leave by: the host's vmnics, in order.

    Uplinks of the switch that are neither active nor standby are unused.
    """

    policy: Literal["originating_port", "mac_hash", "explicit"]
    active: tuple[str, ...]
    standby: tuple[str, ...]
    failback: bool = True
    notify: bool = True


@dataclass(frozen=True, slots=True)
class MarkingRule:
    """CoS (802.1p, 0-7) and DSCP (0-63) for traffic that matches all qualifiers.

    `traffic` is a system traffic type, `protocol` an IP protocol's number; "" and 0 are any.
    """

    cos: int | None
    dscp: int | None
    traffic: str = ""
    protocol: int = 0
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    source_ports: Ranges = ()
    destination_ports: Ranges = ()


@dataclass(frozen=True, slots=True)
class PortGroup:
    """A port group as one host has it.

    `vlan` is an access VLAN (0: untagged), or the trunk's VLANs for a guest that tags itself.
    `outgoing` shapes what its adapters send (egress in the file), `incoming` what they receive
    (ingress).
    """

    name: str
    vlan: int | Ranges
    security: Security
    teaming: Teaming
    outgoing: TrafficShaping | None = None
    incoming: TrafficShaping | None = None
    marking: tuple[MarkingRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Allocation:
    """NIOC's settings of a traffic type or a VM's adapter; no limit: the link's rate."""

    shares: int
    reservation_bps: int = 0
    limit_bps: int | None = None


@dataclass(frozen=True, slots=True)
class Nioc:
    """Network I/O Control v3 of a distributed switch: by system traffic type, all of them.

    `lend_idle` False: an idle reservation is nobody's (the rule of vmotion-facts.md row 49);
    True: other traffic may use it meanwhile (VMware's documentation).
    """

    allocations: tuple[tuple[str, Allocation], ...]
    lend_idle: bool = False


@dataclass(frozen=True, slots=True)
class NicShare:
    """QoS on a NIC itself: what a traffic type is guaranteed and may use at most, of the rate."""

    traffic: str
    guaranteed: Fraction
    most: Fraction


@dataclass(frozen=True, slots=True)
class SwitchQueues:
    """How a physical switch's ports queue: by CoS or DSCP, weights among the queues.

    Values that no queue names go to the first one.
    """

    by: Literal["cos", "dscp"]
    queues: tuple[tuple[tuple[int, ...], int], ...]
    """(the values, the weight) of each."""


@dataclass(frozen=True, slots=True)
class Offloads:
    """What a vmnic does in hardware: TCP segmentation (TSO), large receive (LRO), checksums."""

    tso: bool = True
    lro: bool = True
    checksum: bool = True


@dataclass(frozen=True, slots=True)
class Rings:
    """Frames that may wait at a vmnic: to be sent, and to be received; None: 1000."""

    tx: int | None = None
    rx: int | None = None


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """A route of a vmk's TCP/IP stack."""

    to: IPNetwork
    via: IPAddress
