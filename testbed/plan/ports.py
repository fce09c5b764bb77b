"""The IOChains of ports: what a port's policies come to, in the order of facts row 47.

Port group (VLAN filter, security policy), virtual switch (teaming), uplink (queues).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.plan import allocation, stages
from testbed.plan.policies import Chain
from testbed.plan.teaming import choose
from testbed.topology.traffic import traffic_number

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from testbed.plan.stages import Stage
    from testbed.plan.steps import End, Veth
    from testbed.topology.model import PhysicalSwitch, VSwitch
    from testbed.topology.policy import MarkingRule, PortGroup, Ranges


@dataclass(frozen=True, slots=True)
class LocalPort:
    """A port of a virtual switch that a vmk or a VM's adapter is plugged into.

    `number` is its own on the switch, `traffic` its system traffic type ("" for none), `minor`
    its HTB class on the uplinks (0: none). `uplinks` are the switch's vmnics.
    """

    wire: Veth
    end: End
    group: PortGroup
    uplinks: tuple[str, ...]
    mac: str
    number: int
    traffic: str
    minor: int

    def uplink(self, alive: Collection[str], present: str | None = None) -> int:
        """The number of the uplink that it is to leave by (`teaming.choose`); 0 for none."""
        chosen = choose(self.group.teaming, self.number, self.mac, alive, present)
        return 0 if chosen is None else self.uplinks.index(chosen) + 1

    @property
    def adapter(self) -> tuple[str, str]:
        """The namespace and the device that have the address: a vmk, or a VM's NIC."""
        end = self.wire.a
        return end.netns, end.master or end.name

    def mirror(self) -> stages.Mirror | None:
        """What the other ports' chains need when this one is promiscuous."""
        return stages.Mirror(self.end.name, self.mac) if self.group.security.promiscuous else None


def ranges_stage(vids: Ranges) -> stages.Carry:
    """A trunk of these VLANs; 0 among them is untagged frames."""
    tagged = tuple((max(first, 1), last) for first, last in vids if last > 0)
    return stages.Carry(tagged, untagged=any(first == 0 for first, _ in vids))


def local_chain(port: LocalPort, mirrors: Sequence[LocalPort]) -> Chain:
    """The chain of a vmk's or a VM's port; `mirrors` are the switch's promiscuous ports."""
    group, security = port.group, port.group.security
    incoming: list[Stage] = []
    outgoing: list[Stage] = [stages.Team()]
    if isinstance(group.vlan, int):
        incoming.append(stages.Tag(group.vlan))
        outgoing.append(stages.Untag(group.vlan))
    else:
        incoming.append(ranges_stage(group.vlan))
        outgoing.append(ranges_stage(group.vlan))
    if not security.forged_transmits:
        incoming.append(stages.ForgedTransmits(port.mac))
    if not security.mac_changes and not security.promiscuous:
        outgoing.append(stages.MacChanges(port.mac))
    number = traffic_number(port.traffic)
    if number:
        incoming.append(stages.Classify(number, port.minor))
    rules = marking(rule for rule in group.marking if rule.traffic in {"", port.traffic})
    if rules is not None:
        incoming.append(rules)
    incoming.append(stages.Team())
    return Chain(
        netns=port.end.netns,
        dev=port.end.name,
        wire=port.wire.key,
        incoming=(*incoming, *_mirrors(port.end, mirrors)),
        outgoing=tuple(outgoing),
        switch=port.end.master or "",
        address=port.mac,
        listed=port.end.forwarding,
        uplink=port.uplink(port.uplinks),
        mirrors=_mirror_wires(port.end, mirrors),
    )


def _mirrors(end: End, ports: Iterable[LocalPort]) -> tuple[Stage, ...]:
    found = (port.mirror() for port in ports if port.end.name != end.name)
    return tuple(mirror for mirror in found if mirror is not None)


def _mirror_wires(end: End, ports: Iterable[LocalPort]) -> tuple[str, ...]:
    return tuple(
        port.wire.key for port in ports if port.mirror() is not None and port.end.name != end.name
    )


def uplink_chain(
    wire: Veth,
    end: End,
    vswitch: VSwitch,
    number: int,
    mirrors: Sequence[LocalPort],
    *,
    queues: bool,
    max_size: bool,
) -> Chain:
    """The chain of a vmnic, the `number`th uplink of its virtual switch."""
    outgoing: list[Stage] = [stages.Leave(number)]
    rules = marking(vswitch.marking, by_traffic=True)
    if rules is not None:
        outgoing.append(rules)
    if queues:
        outgoing.append(stages.Queue())
    if max_size:
        outgoing.append(stages.MaxSize(end.mtu))
    arrive = stages.Arrive(number, reflections=len(vswitch.uplinks) > 1)
    return Chain(
        netns=end.netns,
        dev=end.name,
        wire=wire.key,
        incoming=(arrive, *_mirrors(end, mirrors)),
        outgoing=tuple(outgoing),
        switch=end.master or "",
        uplink=number,
        mirrors=_mirror_wires(end, mirrors),
    )


def marking(rules: Iterable[MarkingRule], *, by_traffic: bool = False) -> stages.Marking | None:
    """Marking rules as a stage; the traffic type is a qualifier only where frames of all meet."""
    made = tuple(
        stages.MarkRule(
            cos=rule.cos,
            dscp=rule.dscp,
            traffic=traffic_number(rule.traffic) if by_traffic else 0,
            protocol=rule.protocol,
            source=str(rule.source or ""),
            destination=str(rule.destination or ""),
            source_ports=rule.source_ports,
            destination_ports=rule.destination_ports,
        )
        for rule in rules
    )
    return stages.Marking(made) if made else None


def switch_chain(
    wire: Veth,
    end: End,
    switch: PhysicalSwitch,
    *,
    vlans: Ranges | int | None = None,
    loss: float = 0.0,
    shaped: bool = False,
    max_size: bool = False,
) -> Chain | None:
    """The chain of a physical switch's port, or None if frames just pass.

    Args:
        wire: what is plugged in.
        end: the port.
        switch: whose port it is.
        vlans: a trunk's, or the one of an access port; None: all frames as they are.
        loss: the share of what arrives that is lost on the way to it.
        shaped: whether the port has a rate, so that its queues matter.
        max_size: whether longer packets than its MTU may come to it.
    """
    incoming: list[Stage] = []
    outgoing: list[Stage] = []
    if loss:
        incoming.append(stages.Lose(round(loss * stages.LOSS_UNIT)))
    if isinstance(vlans, int):
        incoming.append(stages.Tag(vlans))
        outgoing.append(stages.Untag(vlans))
    elif vlans is not None:
        incoming.append(ranges_stage(vlans))
        outgoing.append(ranges_stage(vlans))
    if switch.queues is not None and shaped:
        minors = allocation.queue_minors(switch.queues)
        by_cos = switch.queues.by == "cos"
        # By CoS first: on an access port the tag is gone afterwards.
        stage = stages.QueueByCos(minors) if by_cos else stages.QueueByDscp(minors)
        outgoing.insert(0, stage)
    if max_size:
        outgoing.append(stages.MaxSize(end.mtu))
    if not incoming and not outgoing:
        return None
    return Chain(end.netns, end.name, wire.key, tuple(incoming), tuple(outgoing))


def guest_chain(wire: Veth, end: End, vid: int) -> Chain:
    """The guest's own tagging, at the VM's end of its wire."""
    return Chain(end.netns, end.name, wire.key, (stages.Untag(vid),), (stages.Tag(vid),))
