"""Virtual switches as the file writes them: standard and distributed, and their port groups."""

from typing import Annotated

from pydantic import Field

from testbed.topology import leaves
from testbed.topology import policy_leaves as policies
from testbed.topology.leaf import OneOrMany
from testbed.topology.objects import FileObject


class Security(FileObject):
    """A security policy. What a port group leaves out it takes from its switch.

    A standard switch rejects promiscuous mode and accepts the others, a distributed one
    rejects all three, if nothing is said (vSphere 7).
    """

    promiscuous: policies.Accept = Field(
        None, description="Whether an adapter may see all frames of its VLAN on the switch."
    )
    mac_changes: policies.Accept = Field(
        None, description="Whether an adapter receives frames once it has changed its MAC address."
    )
    forged_transmits: policies.Accept = Field(
        None, description="Whether an adapter may send from a MAC address that isn't its own."
    )


class Teaming(FileObject):
    """How the ports of a port group use several uplinks, and what happens when one fails.

    What a port group leaves out it takes from its switch; active and standby are one setting.
    If neither is given, all uplinks are active. Uplinks in neither list are unused.
    """

    policy: policies.TeamingPolicy = Field(
        None,
        description="originating_port: by the port's number; mac_hash: by its MAC address; "
        "explicit: always the first active uplink that works. originating_port if left out.",
    )
    active: tuple[leaves.Reference, ...] | None = Field(
        None,
        description="Uplinks in use: the host's vmnics on a standard switch, the switch's uplink "
        "names on a distributed one. Without it, all that standby doesn't name.",
        examples=[["vmnic0"]],
    )
    standby: tuple[leaves.Reference, ...] | None = Field(
        None, description="Uplinks that replace a failed active one, in this order."
    )
    failback: policies.OnOff = Field(
        None, description="Whether ports go back once their uplink works again; on if left out."
    )
    notify: policies.OnOff = Field(
        None,
        description="Whether physical switches are told of a failover by RARP; on if left out.",
    )
    detection: policies.Detection = Field(
        None, description="How a failure is seen: link, by the link's state."
    )


class Shaping(FileObject):
    """Traffic shaping of one direction of every port."""

    average: leaves.Rate = Field(description="Rate over time.")
    peak: leaves.Rate = Field(description="Rate while a burst lasts, at least the average.")
    burst: policies.Burst = Field(description="What may pass at the peak rate after a pause.")


class EgressShaping(FileObject):
    """Traffic shaping on a standard switch: of what adapters send."""

    egress: Shaping | None = Field(None, description="What the port group's adapters send, each.")


class BothShaping(FileObject):
    """Traffic shaping on a distributed switch, seen from the adapters."""

    egress: Shaping | None = Field(None, description="What the port group's adapters send, each.")
    ingress: Shaping | None = Field(
        None, description="What the port group's adapters receive, each."
    )


class MarkingRule(FileObject):
    """Marks frames that match all its qualifiers; of several rules the first that matches.

    A frame without a VLAN tag has no CoS, so a rule with one needs a VLAN.
    """

    cos: policies.Cos = Field(None, description="802.1p priority in the VLAN tag, 0-7.")
    dscp: policies.Dscp = Field(None, description="Code point in the IP header, 0-63.")
    traffic: policies.Traffic = Field(None, description="Only this system traffic type.")
    protocol: policies.Protocol = Field(None, description="Only this protocol.")
    source: policies.Cidr = Field(None, description="Only from addresses of this network.")
    destination: policies.Cidr = Field(None, description="Only to addresses of this network.")
    source_port: policies.Ports = Field(
        None, description="Only from this port, or a range such as 8000-8010 (tcp and udp)."
    )
    destination_port: policies.Ports = Field(
        None, description="Only to this port, or a range such as 8000-8010 (tcp and udp)."
    )


class PortGroup(FileObject):
    """A port group of a standard switch."""

    vlan: policies.StandardVlan = Field(
        0,
        description="VLAN of its frames on the uplinks: 0 untagged, 1-4094, or 4095: guests tag "
        "their frames themselves, in any VLAN.",
    )
    security: Security = Field(Security(), description="Security policy.")
    teaming: Teaming = Field(Teaming(), description="Use of several uplinks, and failover.")
    shaping: EgressShaping | None = Field(None, description="Traffic shaping of each port.")


class DistributedPortGroup(FileObject):
    """A port group of a distributed switch."""

    vlan: Annotated[tuple[policies.TrunkVlan, ...], OneOrMany()] | None = Field(
        None,
        description="VLAN of its frames on the uplinks: 1-4094, or 0 for untagged (if left out). "
        'A list or a range such as "20-29" makes it a trunk, in which guests tag their frames '
        "themselves (0: untagged ones are carried too).",
        examples=[20],
    )
    security: Security = Field(Security(), description="Security policy.")
    teaming: Teaming = Field(Teaming(), description="Use of several uplinks, and failover.")
    shaping: BothShaping | None = Field(None, description="Traffic shaping of each port.")
    marking: Annotated[tuple[MarkingRule, ...], OneOrMany()] = Field(
        (), description="CoS and DSCP of what its adapters send: a rule, or a list of rules."
    )


class TrafficAllocation(FileObject):
    """What a system traffic type gets of each uplink."""

    shares: policies.Shares = Field(
        None,
        description="Weight when the uplink is full: low (25), normal (50), high (100) or a "
        "number from 1 to 100. normal if left out, for virtualMachine high.",
    )
    reservation: leaves.Rate = Field(
        None, description="Guaranteed on each uplink; all together at most 75 % of the slowest."
    )
    limit: leaves.Rate = Field(None, description="Never more than this on an uplink.")


def _type(text: str) -> TrafficAllocation | None:
    return Field(None, description=text)


class Nioc(FileObject):
    """Network I/O Control, version 3, by system traffic type; what isn't named has its defaults.

    Every uplink of the switch needs a rate. Traffic is told apart by the vmks' services.
    """

    management: TrafficAllocation | None = _type("Management of hosts.")
    faultTolerance: TrafficAllocation | None = _type("Fault tolerance logging.")  # noqa: N815
    vmotion: TrafficAllocation | None = _type("vMotion: migrations.")
    virtualMachine: TrafficAllocation | None = _type("All VMs together.")  # noqa: N815
    iSCSI: TrafficAllocation | None = _type("iSCSI storage.")  # noqa: N815
    nfs: TrafficAllocation | None = _type("NFS storage.")
    hbr: TrafficAllocation | None = _type("vSphere Replication.")
    vsan: TrafficAllocation | None = _type("vSAN storage.")
    vdp: TrafficAllocation | None = _type("vSphere Data Protection.")
    backupNfc: TrafficAllocation | None = _type("Backup over NFC.")  # noqa: N815
    nvmetcp: TrafficAllocation | None = _type("NVMe over TCP.")
    provisioning: TrafficAllocation | None = _type(
        "Provisioning: cold migration, cloning and snapshots."
    )
    idle_reservations: policies.IdleReservations = Field(
        "lost",
        description="lost: what is reserved and not in use is nobody's; lent: others use it "
        "meanwhile, as VMware documents.",
    )


class DistributedSwitch(FileObject):
    """A distributed switch; a host joins it by giving vmnics as its uplinks."""

    mtu: leaves.Mtu = Field(1500, description="Largest packet that it carries, in bytes.")
    uplinks: tuple[leaves.Name, ...] = Field(
        (), description="Names of its uplinks on each host.", examples=[["uplink1"]]
    )
    security: Security = Field(Security(), description="Security policy of its port groups.")
    teaming: Teaming = Field(Teaming(), description="Teaming of its port groups.")
    nioc: Nioc | None = Field(None, description="Network I/O Control; none if left out.")
    marking: Annotated[tuple[MarkingRule, ...], OneOrMany()] = Field(
        (), description="CoS and DSCP of what leaves by its uplinks: a rule, or a list of rules."
    )
    portgroups: dict[leaves.Name, DistributedPortGroup] = Field(
        default_factory=dict, description="Its port groups, on every host that has joined."
    )


class VSwitch(FileObject):
    """A standard virtual switch of one host."""

    mtu: leaves.Mtu = Field(1500, description="Largest packet that it carries, in bytes.")
    uplinks: tuple[leaves.Reference, ...] = Field(
        (),
        description="The host's vmnics that join it to the physical network, if any.",
        examples=[["vmnic1"]],
    )
    security: Security = Field(Security(), description="Security policy of its port groups.")
    teaming: Teaming = Field(Teaming(), description="Teaming of its port groups.")
    portgroups: dict[leaves.Name, PortGroup] = Field(
        default_factory=dict, description="Its port groups."
    )
