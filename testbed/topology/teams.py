"""Teams: the uplinks that each port group's ports leave by, active and standby."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.policy import Teaming
from testbed.topology.problems import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from testbed.topology.draft import Draft, SwitchDraft
    from testbed.topology.problems import Path
    from testbed.topology.vswitches import DistributedSwitch, VSwitch
    from testbed.topology.vswitches import Teaming as Given


def team_of(switch: SwitchDraft, portgroup: str) -> Teaming:
    """The team of a port group on one host; what it leaves out is its switch's.

    Where the host has no vmnic for an active uplink, the first standby one takes its place.
    """
    if portgroup not in switch.teams:
        switch.teams[portgroup] = _resolved(switch, portgroup)
    return switch.teams[portgroup]


def _resolved(switch: SwitchDraft, portgroup: str) -> Teaming:
    own, base = switch.portgroups[portgroup].teaming, switch.of.teaming
    order = own if own.active is not None or own.standby is not None else base
    standby = [name for name in order.standby or () if name is not None]
    known = switch.of.uplinks
    wanted = [n for n in known if n not in standby] if order.active is None else order.active
    active = [switch.names[name] for name in wanted if name in switch.names]
    spare = [switch.names[name] for name in standby if name in switch.names]
    promoted = len(wanted) - len(active)
    return Teaming(
        policy=own.policy or base.policy or "originating_port",
        active=(*active, *spare[:promoted]),
        standby=tuple(spare[promoted:]),
        failback=_first(own.failback, base.failback),
        notify=_first(own.notify, base.notify),
    )


def uplinks_of(switch: SwitchDraft, portgroup: str) -> tuple[str, ...]:
    """The vmnics of a port group's team, active ones first."""
    team = team_of(switch, portgroup)
    return (*team.active, *team.standby)


def check(draft: Draft) -> None:
    """Report teams that name unknown uplinks or none, and uplinks given twice."""
    for name, distributed in draft.file.distributed_switches.items():
        _switch(draft, ("distributed_switches", name), distributed)
    for host, of in draft.file.hosts.items():
        for name, vswitch in of.vswitches.items():
            _switch(draft, ("hosts", host, "vswitches", name), vswitch)
        _slots(draft, host)
    for host, switch, portgroup, path in _adapters(draft):
        if _is_cut_off(draft, host, switch, portgroup):
            draft.problems.add(
                path,
                f"no uplink of {shown(portgroup)} is connected on host {host}",
                f"give a vmnic of {host} one of the uplinks that it names active or standby",
            )


def _first(own: bool | None, base: bool | None) -> bool:
    return next((value for value in (own, base) if value is not None), True)


def _is_cut_off(draft: Draft, host: str, switch: SwitchDraft, portgroup: str) -> bool:
    """Whether a port group surely has no uplink on a host, though its switch has some."""
    if not switch.of.uplinks or uplinks_of(switch, portgroup):
        return False
    if any(
        nic.uplink
        and nic.uplink.startswith(f"{switch.name}/")
        and nic.uplink.partition("/")[2] not in switch.of.uplinks
        for nic in draft.file.hosts[host].nics.values()
    ):
        return False  # a name is misspelt, and told
    own, base = switch.portgroups[portgroup].teaming, switch.of.teaming
    named = [*(own.active or base.active or ()), *(own.standby or base.standby or ())]
    return draft.knows_switches_of(host) and all(name in switch.of.uplinks for name in named)


def _adapters(draft: Draft) -> Iterator[tuple[str, SwitchDraft, str, Path]]:
    """(host, switch, port group, where it is named) of every adapter in a port group."""
    for host, of in draft.file.hosts.items():
        for vmk, adapter in of.vmks.items():
            switch = draft.switch_of(host, adapter.portgroup)
            if switch is not None and adapter.portgroup is not None:
                yield host, switch, adapter.portgroup, ("hosts", host, "vmks", vmk, "portgroup")
    for name, vm in draft.file.vms.items():
        for number, nic in enumerate(vm.nics):
            switch = draft.switch_of(vm.host or "", nic.portgroup)
            if switch is not None and nic.portgroup is not None and vm.host is not None:
                path: Path = ("vms", name, "nics", number, "portgroup")
                yield vm.host, switch, nic.portgroup, path


def _switch(draft: Draft, path: Path, switch: VSwitch | DistributedSwitch) -> None:
    known = [name for name in switch.uplinks if name is not None]
    if draft.is_broken(*path):
        return
    _team(draft, (*path, "teaming"), switch.teaming, known)
    for name, portgroup in switch.portgroups.items():
        _team(draft, (*path, "portgroups", name, "teaming"), portgroup.teaming, known)


def _team(draft: Draft, path: Path, team: Given, known: Collection[str]) -> None:
    if draft.is_broken(*path):
        return
    seen: set[str] = set()
    for key, names in (("active", team.active), ("standby", team.standby)):
        for number, name in enumerate(names or ()):
            if name is None:
                continue
            place = (*path, key, number)
            if name not in known:
                remedy = draft.problems.did_you_mean(name, known)
                draft.problems.add(place, f"the switch has no uplink {shown(name)}", remedy)
            elif name in seen:
                message = f"{name} is named in this team already"
                draft.problems.add(place, message, "name each uplink once, active or standby")
            seen.add(name)
    if team.active == () or (team.active is None and known and seen >= set(known)):
        place = path if team.active is None else (*path, "active")
        message = "the team has no active uplink"
        draft.problems.add(place, message, "name at least one in active", at_key=True)


def _slots(draft: Draft, host: str) -> None:
    """An uplink of a distributed switch is one vmnic on each host."""
    taken: dict[str, str] = {}
    for vmnic, nic in draft.file.hosts[host].nics.items():
        if nic.uplink is None:
            continue
        first = taken.setdefault(nic.uplink, vmnic)
        if first != vmnic:
            draft.problems.add(
                ("hosts", host, "nics", vmnic, "uplink"),
                f"{nic.uplink} is {first} of host {host} already",
                "give each vmnic an uplink of its own; the distributed switch may have several",
            )
