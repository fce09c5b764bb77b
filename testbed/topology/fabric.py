"""The physical network as the file writes it: sites, switches, routers and links."""

from typing import Annotated

from pydantic import Field

from testbed.topology import leaves
from testbed.topology import policy_leaves as policies
from testbed.topology.leaf import AllOrEach, OneOrMany
from testbed.topology.objects import FileObject


class Site(FileObject):
    """A place; it only groups switches and routers, distance belongs to links."""


class Queue(FileObject):
    """A queue of a physical switch's ports."""

    values: Annotated[tuple[policies.QueueValue, ...], OneOrMany()] = Field(
        description="The CoS (0-7) or DSCP (0-63) values of the frames that wait in it.",
        examples=[[4, 5]],
    )
    weight: policies.Weight = Field(
        description="Its part of a full port, against the weights of the other queues."
    )


class SwitchQos(FileObject):
    """How a physical switch's ports queue: each queue gets its weight's part when all wait.

    Frames whose value no queue names, and untagged ones when queued by CoS, wait in the first.
    It acts on ports that have a rate.
    """

    by: policies.QueueBy = Field(description="cos (802.1p, in the VLAN tag) or dscp (in IP).")
    queues: tuple[Queue, ...] = Field(
        description="The queues, at most 8.", examples=[[{"values": [4, 5], "weight": 4}]]
    )


class Switch(FileObject):
    """A physical switch."""

    site: leaves.Reference = Field(None, description="The site that it stands in.")
    mtu: leaves.Mtu = Field(1500, description="Largest packet that it carries, in bytes.")
    qos: SwitchQos | None = Field(None, description="Its ports' queues; one each if left out.")


class RouterInterface(FileObject):
    """A router's interface in a physical switch; its MTU is the switch's."""

    ip: Annotated[tuple[leaves.Address, ...], OneOrMany()] = Field(
        description="One address with prefix length, or a list of them (IPv4 and IPv6)."
    )
    vlan: policies.Vlan = Field(
        None,
        description="The VLAN that the switch's port is an access port of; untagged if left out.",
    )


class Router(FileObject):
    """A router between physical switches; it forwards IPv4 and IPv6.

    It knows the networks of its own interfaces: routes over a second router aren't made.
    """

    site: leaves.Reference = Field(None, description="The site that it stands in.")
    interfaces: dict[leaves.Name, Annotated[tuple[RouterInterface, ...], OneOrMany()]] = Field(
        default_factory=dict,
        description="Its interfaces by the physical switch that they are cabled to: one, or a "
        "list of them with a VLAN each.",
        examples=[{"tor-a": [{"vlan": 10, "ip": "192.168.10.1/24"}]}],
    )


class Link(FileObject):
    """A cable between two physical switches. Switches and links must not form a loop.

    A delay is the link's own, beside what frames wait at its rate. Frames stay in order.
    """

    between: tuple[leaves.Reference, ...] = Field(
        min_length=2,
        max_length=2,
        description="The two physical switches.",
        examples=[["tor-a", "tor-b"]],
    )
    rate: leaves.Rate = Field(None, description="Rate of each direction; no limit if left out.")
    rtt: policies.Duration = Field(
        None, description="Delay of both directions together, half each; or write latency."
    )
    latency: Annotated[dict[leaves.Name, policies.Duration], AllOrEach()] = Field(
        default_factory=dict,
        description="Delay of each direction, or by the switch that the frames leave: "
        "{tor-a: 5ms, tor-b: 1ms}. A switch that isn't named delays nothing.",
    )
    jitter: Annotated[dict[leaves.Name, policies.Duration], AllOrEach()] = Field(
        default_factory=dict,
        description="The delay varies evenly by as much, up and down; at most the delay itself. "
        "One for both directions, or by the switch that the frames leave.",
    )
    loss: Annotated[dict[leaves.Name, policies.Loss], AllOrEach()] = Field(
        default_factory=dict,
        description="Share of frames lost by chance: one for both directions, or by the switch "
        "that the frames leave.",
    )
    vlans: Annotated[tuple[policies.Vlans, ...], OneOrMany()] | None = Field(
        None,
        description="The VLANs that it carries, numbers and ranges, 0 for untagged frames; all "
        "frames if left out.",
        examples=[[10, 20, "100-199", 0]],
    )
