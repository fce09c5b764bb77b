"""Policies without mistakes, resolved: what links, port groups and NICs are told."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from testbed.topology import policy
from testbed.topology.leaf import ALL
from testbed.topology.policy_leaves import PROTOCOLS, SHARES
from testbed.topology.ranges import merged, vlan_of
from testbed.topology.teams import team_of
from testbed.topology.traffic import SYSTEM_TRAFFIC, VM_TRAFFIC
from testbed.topology.vswitches import DistributedPortGroup, DistributedSwitch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from testbed.topology import machines, schema, vswitches
    from testbed.topology.draft import SwitchDraft
    from testbed.topology.fabric import Link, Switch

_SECURITY = {
    "standard": policy.Security(promiscuous=False, mac_changes=True, forged_transmits=True),
    "distributed": policy.Security(promiscuous=False, mac_changes=False, forged_transmits=False),
}
"""vSphere 7's defaults."""


def scaled(value: int | None, scale: Fraction) -> int | None:
    """A rate or size as the lab has it."""
    return None if value is None else int(value * scale)


def impairment(link: Link, here: str, *, first: bool) -> policy.Impairment:
    """What happens to frames that leave the switch `here`; of an odd `rtt` the way back has more.

    Args:
        link: the link.
        here: the switch.
        first: whether it is the first end.
    """
    if link.rtt is not None:
        delay = link.rtt // 2 if first else link.rtt - link.rtt // 2
    else:
        delay = link.latency.get(ALL, link.latency.get(here)) or 0
    jitter = link.jitter.get(ALL, link.jitter.get(here)) or 0
    loss = link.loss.get(ALL, link.loss.get(here)) or 0
    return policy.Impairment(delay, jitter, float(loss))


def queues(switch: Switch) -> policy.SwitchQueues | None:
    """A physical switch's queues."""
    if switch.qos is None or switch.qos.by is None:
        return None
    of = tuple(
        (tuple(sorted(v for v in queue.values if v is not None)), queue.weight or 1)
        for queue in switch.qos.queues
    )
    return policy.SwitchQueues(switch.qos.by, of)


def port_group(switch: SwitchDraft, name: str, scale: Fraction) -> policy.PortGroup:
    """A port group as one host has it."""
    group = switch.portgroups[name]
    vlan = vlan_of(switch, name)
    assert vlan is not None
    incoming: vswitches.Shaping | None = None
    marking: tuple[policy.MarkingRule, ...] = ()
    if isinstance(group, DistributedPortGroup):
        incoming = group.shaping.ingress if group.shaping else None
        marking = _rules(group.marking)
    return policy.PortGroup(
        name=name,
        vlan=vlan,
        security=_security(switch.kind, switch.of.security, group.security),
        teaming=team_of(switch, name),
        outgoing=_shaping(group.shaping.egress if group.shaping else None, scale),
        incoming=_shaping(incoming, scale),
        marking=marking,
    )


def _security(
    kind: Literal["standard", "distributed"], base: vswitches.Security, own: vswitches.Security
) -> policy.Security:
    def accepts(key: str) -> bool:
        given = getattr(own, key) or getattr(base, key)
        return bool(getattr(_SECURITY[kind], key) if given is None else given == "accept")

    return policy.Security(
        promiscuous=accepts("promiscuous"),
        mac_changes=accepts("mac_changes"),
        forged_transmits=accepts("forged_transmits"),
    )


def _shaping(given: vswitches.Shaping | None, scale: Fraction) -> policy.TrafficShaping | None:
    if given is None or given.average is None or given.peak is None or given.burst is None:
        return None
    return policy.TrafficShaping(
        int(given.average * scale), int(given.peak * scale), int(given.burst * scale)
    )


def _rules(given: Iterable[vswitches.MarkingRule]) -> tuple[policy.MarkingRule, ...]:
    return tuple(
        policy.MarkingRule(
            cos=rule.cos,
            dscp=rule.dscp,
            traffic=rule.traffic or "",
            protocol=PROTOCOLS[rule.protocol] if rule.protocol else 0,
            source=rule.source,
            destination=rule.destination,
            source_ports=merged([rule.source_port]),
            destination_ports=merged([rule.destination_port]),
        )
        for rule in given
    )


def nioc_of(switch: SwitchDraft, scale: Fraction) -> policy.Nioc | None:
    """Network I/O Control of all system traffic types, if the switch has it."""
    given = switch.of.nioc if isinstance(switch.of, DistributedSwitch) else None
    if given is None:
        return None
    return policy.Nioc(
        tuple((name, _type(name, getattr(given, name), scale)) for name in SYSTEM_TRAFFIC),
        lend_idle=given.idle_reservations == "lent",
    )


def switch_marking(switch: SwitchDraft) -> tuple[policy.MarkingRule, ...]:
    """What is marked at the switch's uplinks."""
    return _rules(switch.of.marking) if isinstance(switch.of, DistributedSwitch) else ()


def _type(
    name: str, given: vswitches.TrafficAllocation | None, scale: Fraction
) -> policy.Allocation:
    shares = SHARES["high" if name == VM_TRAFFIC else "normal"]
    if given is None:
        return policy.Allocation(shares)
    return policy.Allocation(
        given.shares or shares,
        scaled(given.reservation, scale) or 0,
        scaled(given.limit, scale),
    )


def bandwidth(
    given: machines.Bandwidth | None, scale: Fraction, *, among_allocations: bool
) -> policy.Allocation | None:
    """What a VM's adapter is given; normal shares if only others on its switch say something."""
    if given is None:
        return policy.Allocation(SHARES["normal"]) if among_allocations else None
    return policy.Allocation(
        given.shares or SHARES["normal"],
        scaled(given.reservation, scale) or 0,
        scaled(given.limit, scale),
    )


def nic_shares(nic: schema.HostNic) -> tuple[policy.NicShare, ...]:
    """Quality of service on a NIC, by system traffic type."""
    return tuple(
        policy.NicShare(
            name,
            share.guarantee or Fraction(0),
            Fraction(1) if share.limit is None else share.limit,
        )
        for name in SYSTEM_TRAFFIC
        if (share := nic.qos.get(name)) is not None
    )


def offloads(nic: schema.HostNic) -> policy.Offloads:
    """A NIC's offloads, on unless it is said."""
    given = nic.offloads
    return policy.Offloads(
        tso=given.tso is not False, lro=given.lro is not False, checksum=given.checksum is not False
    )
