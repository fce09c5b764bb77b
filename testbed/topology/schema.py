"""The topology file as it is written: its objects, their keys, defaults and meaning.

The descriptions and examples are what editors show and what the reference is made of.
`reading` fills these models from a tree; nothing here knows of places in the text.
"""

from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from testbed.topology import leaves
from testbed.topology.leaf import OneOrMany


class FileObject(BaseModel):
    """An object of the file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Site(FileObject):
    """A place; it only groups switches and routers, distance belongs to links."""


class Switch(FileObject):
    """A physical switch."""

    site: leaves.Reference = Field(None, description="The site that it stands in.")
    mtu: leaves.Mtu = Field(1500, description="Largest packet that it carries, in bytes.")


class RouterInterface(FileObject):
    """A router's interface in a physical switch; its MTU is the switch's."""

    ip: Annotated[tuple[leaves.Address, ...], OneOrMany()] = Field(
        description="One address with prefix length, or a list of them (IPv4 and IPv6)."
    )


class Router(FileObject):
    """A router between physical switches; it forwards IPv4 and IPv6."""

    site: leaves.Reference = Field(None, description="The site that it stands in.")
    interfaces: dict[leaves.Name, RouterInterface] = Field(
        default_factory=dict,
        description="Its interfaces, each named by the physical switch that it is cabled to.",
    )


class Link(FileObject):
    """A cable between two physical switches. Switches and links must not form a loop."""

    between: tuple[leaves.Reference, ...] = Field(
        min_length=2,
        max_length=2,
        description="The two physical switches.",
        examples=[["tor-a", "tor-b"]],
    )
    rate: leaves.Rate = Field(None, description="Rate of each direction; no limit if left out.")


class Datastore(FileObject):
    """A shared datastore."""

    hosts: Annotated[tuple[leaves.Reference, ...], OneOrMany()] = Field(
        description="The hosts that mount it: a pattern such as esx[01-32], or a list."
    )


class PortGroup(FileObject):
    """A port group of a virtual switch."""


class DistributedSwitch(FileObject):
    """A distributed switch; a host joins it by giving one of its vmnics as an uplink."""

    mtu: leaves.Mtu = Field(1500, description="Largest packet that it carries, in bytes.")
    uplinks: tuple[leaves.Name, ...] = Field(
        (), description="Names of its uplinks on each host.", examples=[["uplink1"]]
    )
    portgroups: dict[leaves.Name, PortGroup] = Field(
        default_factory=dict, description="Its port groups, on every host that has joined."
    )


class Cpu(FileObject):
    """A host's processors."""

    cores: leaves.Cores = Field(description="Cores; no VM there may have more vCPUs.")


class HostNic(FileObject):
    """A physical NIC of a host (vmnic), cabled to a physical switch."""

    switch: leaves.Reference = Field(description="The physical switch at the cable's other end.")
    rate: leaves.Rate = Field(None, description="Line rate; no limit if left out.")
    mtu: leaves.Mtu = Field(1500, description="Largest packet that it sends, in bytes.")
    uplink: leaves.UplinkName = Field(
        None, description="The distributed switch that it joins, and as which of its uplinks."
    )
    mac: leaves.Mac = Field(None, description="MAC address; derived from the names if left out.")


class VSwitch(FileObject):
    """A standard virtual switch of one host."""

    mtu: leaves.Mtu = Field(1500, description="Largest packet that it carries, in bytes.")
    uplinks: tuple[leaves.Reference, ...] = Field(
        (),
        description="The host's vmnic that joins it to the physical network, if any.",
        examples=[["vmnic1"]],
    )
    portgroups: dict[leaves.Name, PortGroup] = Field(
        default_factory=dict, description="Its port groups."
    )


class Vmk(FileObject):
    """A VMkernel adapter (vmk): the host's own interface in a port group."""

    portgroup: leaves.Reference = Field(description="The port group that it is in.")
    ip: Annotated[tuple[leaves.Address, ...], OneOrMany()] = Field(
        description="One address with prefix length, or one each for IPv4 and IPv6."
    )
    gateway: Annotated[tuple[leaves.Gateway, ...], OneOrMany()] = Field(
        (), description="Router for other networks, in its own subnet; at most one a family."
    )
    services: tuple[leaves.Service, ...] = Field(
        (), description="What it carries: vmotion, or nothing.", examples=[["vmotion"]]
    )
    mtu: leaves.Mtu = Field(1500, description="Largest packet that it sends, in bytes.")
    mac: leaves.Mac = Field(None, description="MAC address; derived from the names if left out.")


class Host(FileObject):
    """An ESXi-like host."""

    cpu: Cpu = Field(description="Its processors.")
    memory: leaves.Memory = Field(description="Memory for VMs; theirs together must fit in it.")
    nics: dict[leaves.VmnicName, HostNic] = Field(
        default_factory=dict, description="Its physical NICs, vmnic0 and so on."
    )
    vswitches: dict[leaves.Name, VSwitch] = Field(
        default_factory=dict, description="Its standard virtual switches."
    )
    vmks: dict[leaves.VmkName, Vmk] = Field(
        default_factory=dict, description="Its VMkernel adapters, vmk0 and so on."
    )


class VmNic(FileObject):
    """A network adapter of a VM: eth0, eth1 and so on; its MTU is its virtual switch's."""

    portgroup: leaves.Reference = Field(description="The port group that it is in.")
    ip: Annotated[tuple[leaves.Address, ...], OneOrMany()] = Field(
        (), description="Addresses with prefix length, at most one each for IPv4 and IPv6."
    )
    gateway: Annotated[tuple[leaves.Gateway, ...], OneOrMany()] = Field(
        (), description="Router for other networks, in its own subnet; at most one a family."
    )
    mac: leaves.Mac = Field(None, description="MAC address; derived from the names if left out.")


class Workload(FileObject):
    """What a VM writes to its memory."""

    kind: leaves.WorkloadKind = Field(
        description="idle writes nothing; uniform picks pages of the working set at random; "
        "sequential goes through it in order, again and again."
    )
    dirty_rate: leaves.DirtyRate = Field(
        None,
        description="What all vCPUs together write: distinct 4 KiB pages times 4096 a second.",
    )
    working_set: leaves.WorkingSet = Field(
        None, description="The part of memory that is written, 20% if left out."
    )


class Vm(FileObject):
    """A virtual machine."""

    host: leaves.Reference = Field(description="The host on which it is powered on.")
    memory: leaves.Memory = Field(description="Its memory, real and resident.")
    vcpus: leaves.Vcpus = Field(1, description="Its virtual CPUs, a process each.")
    datastore: leaves.Reference = Field(description="The datastore of its files.")
    nics: tuple[VmNic, ...] = Field((), description="Its network adapters.")
    workload: Workload = Field(
        Workload(kind="idle"), description="What it writes; nothing if left out."
    )


class TopologyFile(FileObject):
    """A lab: hosts, the networks inside and between them, and virtual machines."""

    name: leaves.LabName = Field(description="The lab's name, one of a kind on its machine.")
    scale: leaves.Scale = Field(
        Fraction(1),
        description="1/k divides memory, rates and working sets given in bytes, so that a large "
        "estate fits a small machine; MTU, page size and percentages stay.",
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
    """Names bind mappings as closed, one-or-many as both forms, no titles or null defaults."""
    definitions = schema.get("$defs", {})
    for model in (schema, *definitions.values()):
        model.pop("title", None)
        for name, of in model.get("properties", {}).items():
            of.pop("title", None)
            if of.get("default", "") is None:
                del of["default"]
            elif isinstance(of.get("default"), dict):
                of["default"] = {k: v for k, v in of["default"].items() if v is not None}
            for pattern, values in of.pop("patternProperties", {}).items():
                of["propertyNames"] = {"pattern": pattern}
                of["additionalProperties"] = values
            if name in ("ip", "gateway") or (name == "hosts" and of.get("type") == "array"):
                described = {k: of.pop(k) for k in ("description", "default") if k in of}
                one, many = dict(of["items"]), dict(of)
                of.clear()
                of.update(described, anyOf=[one, many])
