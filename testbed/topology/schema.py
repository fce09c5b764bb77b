"""The topology file as it is written: its objects, their keys, defaults and meaning.

The descriptions and examples are what editors show and what the reference is made of.
`reading` fills these models from a tree; nothing here knows of places in the text.
"""

from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field

from testbed import profiles
from testbed.topology import leaves
from testbed.topology import policy_leaves as policies
from testbed.topology.fabric import Link, Router, Site, Switch
from testbed.topology.leaf import OneOrMany
from testbed.topology.machines import Vm
from testbed.topology.objects import FileObject
from testbed.topology.vswitches import DistributedSwitch, VSwitch


class Datastore(FileObject):
    """A shared datastore."""

    hosts: Annotated[tuple[leaves.Reference, ...], OneOrMany()] = Field(
        description="The hosts that mount it: a pattern such as esx[01-32], or a list."
    )


class Cpu(FileObject):
    """A host's processors."""

    cores: leaves.Cores = Field(description="Cores; no VM there may have more vCPUs.")
    mhz: leaves.Mhz = Field(
        None,
        description="Clock rate of a core in MHz. vMotion and the guests' traffic are charged for "
        "it where the profile says what they cost.",
    )


class NicShare(FileObject):
    """What a traffic type gets of a NIC, in shares of its rate."""

    guarantee: policies.Percent = Field(
        description="Guaranteed when the NIC is full; all together at most 100 %."
    )
    limit: policies.Percent = Field(
        None, description="Never more than this, at least the guarantee; 100% if left out."
    )


class Offloads(FileObject):
    """What a NIC does for the host's TCP/IP stacks; each is on if left out."""

    tso: policies.OnOff = Field(None, description="Cuts trains of TCP segments when sending.")
    lro: policies.OnOff = Field(None, description="Joins TCP segments when receiving.")
    checksum: policies.OnOff = Field(
        None, description="Computes and checks checksums; tso needs it."
    )


class Rings(FileObject):
    """A NIC's ring buffers, in frames."""

    tx: policies.Ring = Field(None, description="Frames that may wait to be sent.")
    rx: policies.Ring = Field(None, description="Frames that may wait to be received.")


class HostNic(FileObject):
    """A physical NIC of a host (vmnic), cabled to a physical switch."""

    switch: leaves.Reference = Field(description="The physical switch at the cable's other end.")
    rate: leaves.Rate = Field(None, description="Line rate; no limit if left out.")
    mtu: leaves.Mtu = Field(1500, description="Largest packet that it sends, in bytes.")
    uplink: leaves.UplinkName = Field(
        None, description="The distributed switch that it joins, and as which of its uplinks."
    )
    mac: leaves.Mac = Field(None, description="MAC address; derived from the names if left out.")
    vlans: Annotated[tuple[policies.Vlans, ...], OneOrMany()] | None = Field(
        None,
        description="The VLANs that the switch's port carries, numbers and ranges, 0 for untagged "
        "frames; all frames if left out.",
        examples=[[10, 20, "100-199", 0]],
    )
    qos: dict[policies.Traffic, NicShare] = Field(
        default_factory=dict,
        description="Quality of service on the NIC itself, by system traffic type. It needs a "
        "rate, and no Network I/O Control on the same uplink.",
        examples=[{"vmotion": {"guarantee": "30%", "limit": "100%"}}],
    )
    offloads: Offloads = Field(Offloads(), description="Offloads, all on if left out.")
    rings: Rings = Field(Rings(), description="Ring buffers; 1000 frames each if left out.")


class Route(FileObject):
    """A static route of a vmk."""

    to: policies.Cidr = Field(description="The network that it leads to.")
    via: leaves.Gateway = Field(description="A router in one of the vmk's own networks.")


class Vmk(FileObject):
    """A VMkernel adapter (vmk): the host's own interface in a port group."""

    portgroup: leaves.Reference = Field(description="The port group that it is in.")
    ip: Annotated[tuple[leaves.Address, ...], OneOrMany()] = Field(
        description="One address with prefix length, or one each for IPv4 and IPv6."
    )
    gateway: Annotated[tuple[leaves.Gateway, ...], OneOrMany()] = Field(
        (), description="Router for other networks, in its own subnet; at most one a family."
    )
    services: tuple[policies.Service, ...] = Field(
        (), description="What it carries; by it traffic is told apart.", examples=[["vmotion"]]
    )
    mtu: leaves.Mtu = Field(1500, description="Largest packet that it sends, in bytes.")
    mac: leaves.Mac = Field(None, description="MAC address; derived from the names if left out.")
    netstack: policies.Netstack = Field(
        "default",
        description="TCP/IP stack. One in the vmotion stack carries vmotion alone, and no vmk "
        "outside it does; provisioning likewise.",
    )
    routes: tuple[Route, ...] = Field(
        (),
        description="Routes of its own, beside the gateway.",
        examples=[[{"to": "10.0.0.0/8", "via": "192.168.20.1"}]],
    )


class Host(FileObject):
    """An ESXi-like host."""

    cpu: Cpu = Field(description="Its processors.")
    profile: leaves.Profile = Field(
        None, description="How its vMotion behaves, if not as the lab's profile says."
    )
    memory: leaves.Memory = Field(
        description="Memory for VMs; what theirs reserve together must fit in it."
    )
    nics: dict[leaves.VmnicName, HostNic] = Field(
        default_factory=dict, description="Its physical NICs, vmnic0 and so on."
    )
    vswitches: dict[leaves.Name, VSwitch] = Field(
        default_factory=dict, description="Its standard virtual switches."
    )
    vmks: dict[leaves.VmkName, Vmk] = Field(
        default_factory=dict, description="Its VMkernel adapters, vmk0 and so on."
    )


class TopologyFile(FileObject):
    """A lab: hosts, the networks inside and between them, and virtual machines."""

    name: leaves.LabName = Field(description="The lab's name, one of a kind on its machine.")
    scale: leaves.Scale = Field(
        Fraction(1),
        description="1/k divides memory, rates, clock rates, bursts and sizes in bytes, so that a "
        "large estate fits a small machine; MTU, page and block size, delays and percentages stay.",
    )
    profile: leaves.Profile = Field(
        profiles.DEFAULT,
        description="How vMotion behaves: a generation's profile, the file of your own, or what "
        "differs from one ('testbed profile' lists them); unlimited models nothing.",
    )
    sites: dict[leaves.Name, Site] = Field(
        default_factory=dict, description="Places, by name.", examples=[{"a": {}, "b": {}}]
    )
    switches: dict[leaves.Name, Switch] = Field(
        default_factory=dict,
        description="Physical switches, by name or pattern.",
        examples=[{"tor-[a,b]": {"mtu": 9000}}],
    )
    routers: dict[leaves.Name, Router] = Field(
        default_factory=dict, description="Routers, by name or pattern."
    )
    links: tuple[Link, ...] = Field((), description="Cables between physical switches.")
    datastores: dict[leaves.Name, Datastore] = Field(
        default_factory=dict, description="Shared datastores, by name or pattern."
    )
    distributed_switches: dict[leaves.Name, DistributedSwitch] = Field(
        default_factory=dict, description="Distributed switches, by name."
    )
    hosts: dict[leaves.Name, Host] = Field(
        default_factory=dict, description="ESXi-like hosts, by name or pattern."
    )
    vms: dict[leaves.Name, Vm] = Field(
        default_factory=dict, description="Virtual machines, by name or pattern."
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a topology file."""
    schema = TopologyFile.model_json_schema()
    _tidy(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "testbed topology",
    }


def _tidy(schema: dict[str, Any]) -> None:
    """Names bind mappings as closed; no titles, and nothing that may be null."""
    definitions = schema.get("$defs", {})
    for model in (schema, *definitions.values()):
        model.pop("title", None)
        for of in model.get("properties", {}).values():
            of.pop("title", None)
            _no_null(of)
            if of.get("default", "") is None:
                del of["default"]
            elif isinstance(of.get("default"), dict):
                of["default"] = {k: v for k, v in of["default"].items() if v is not None}
                if not of["default"]:
                    del of["default"]
            for pattern, values in of.pop("patternProperties", {}).items():
                of["propertyNames"] = {"pattern": pattern}
                of["additionalProperties"] = values


def _no_null(of: dict[str, Any]) -> None:
    """What may be left out is not written as null."""
    if {"type": "null"} not in of.get("anyOf", ()):
        return
    kinds = [kind for kind in of.pop("anyOf") if kind != {"type": "null"}]
    of.update(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
