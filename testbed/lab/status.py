"""What a lab is like now: the supervisor's word on the VMs, the kernel's on the links."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from testbed.errors import InputError, LabError
from testbed.kernel.discovery import discover
from testbed.kernel.observation import observe
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory, labs
from testbed.lab.journal import Journal
from testbed.lab.launch import supervisor_of
from testbed.measure.lldp import Neighbour
from testbed.plan.names import netns_name
from testbed.plan.plan import kernel_steps
from testbed.plan.policies import Shape
from testbed.plan.steps import Netns, Veth

if TYPE_CHECKING:
    from testbed.kernel.discovery import Cable
    from testbed.plan.plan import Plan

ANSWER_DEADLINE_S = 15.0


def overview() -> list[dict[str, Any]]:
    """The labs of this machine: name, state, topology file."""
    rows = []
    for name in labs():
        try:
            journal = Journal.read(LabDirectory(name).journal)
            state, file = str(journal.state), journal.topology_file
            if supervisor_of(LabDirectory(name)) is None:
                state = "without its supervisor, which has ended"
        except LabError as error:
            state, file = f"unreadable ({error})", "?"
        rows.append({"lab": name, "state": state, "topology_file": file})
    return rows


def lab_status(name: str) -> dict[str, Any]:
    """Nodes, VMs, links and troubles of one lab, as JSON.

    Raises:
        InputError: there is no such lab.
        LabError: its journal can't be read.
    """
    directory = LabDirectory(name)
    if not directory.exists():
        raise InputError(f"there is no lab {name!r}; there are: {', '.join(labs()) or 'none'}")
    journal = Journal.read(directory.journal)
    troubles = []
    if journal.state == "broken":
        troubles.append(f"a change could not be undone; 'testbed down {name}' removes the lab")
    try:
        status = request(directory, {"command": "status"}, timeout_s=ANSWER_DEADLINE_S)
    except LabError as error:
        troubles.append(str(error))
        status = {
            "lab": name,
            "state": "without its supervisor",
            "topology_file": journal.topology_file,
            "vms": [],
            "nodes": [],
        }
    troubles += status.get("network_troubles", [])
    troubles += [f"{vm['name']}: {vm['trouble']}" for vm in status["vms"] if vm["trouble"]]
    if troubles and status["state"] == "up":
        status["state"] = "degraded"
    return {
        **status,
        "links": _links(journal.plan),
        "neighbours": _neighbours(journal),
        "troubles": troubles,
    }


def _neighbours(journal: Journal) -> list[dict[str, Any]]:
    """What each vmnic hears by LLDP from the physical switch that it is cabled to."""
    said_of = journal.topology()
    wires = {(s.a.netns, s.a.name): s for s in journal.plan.steps if isinstance(s, Veth)}
    cables: dict[tuple[str, str], tuple[Cable, Neighbour]] = {}
    for host in said_of.hosts:
        for uplink in host.uplinks:
            nic = (netns_name(said_of.name, host.name), uplink.name)
            port = wires[nic].b
            vlans = tuple(v for a, b in uplink.vlans or () for v in range(max(a, 1), b + 1))
            says = Neighbour(uplink.switch, port.name, port.mtu, vlans)
            cables[nic] = ((*nic, port.netns, port.name), says)
    heard = discover(list(cables.values()))
    nodes = {step.name: step.node for step in journal.plan.steps if isinstance(step, Netns)}
    return [
        {
            "host": nodes[where],
            "nic": nic,
            "switch": said.switch if said else None,
            "port": said.port if said else None,
            "mtu": said.mtu if said else None,
            "vlans": list(said.vlans) if said else [],
        }
        for where, nic in cables
        for said in [heard.get((where, nic))]
    ]


def _links(plan: Plan) -> list[dict[str, Any]]:
    """Every link of the plan that stands, with its counters since it was made."""
    nodes = {step.name: step.node for step in plan.steps if isinstance(step, Netns)}
    rates = {(s.netns, s.dev): s.rate_bps for s in plan.steps if isinstance(s, Shape)}
    rows = []
    for seen in observe(kernel_steps(plan.steps)).values():
        link, counters = seen.link, seen.link.counters
        rows.append(
            {
                "node": nodes[seen.netns],
                "name": link.name,
                "alias": link.alias,
                "mac": link.mac,
                "mtu": link.mtu,
                "running": link.running,
                "rate_bps": rates.get((seen.netns, link.name)),
                "rx_bytes": counters.rx_bytes if counters else 0,
                "tx_bytes": counters.tx_bytes if counters else 0,
                "rx_packets": counters.rx_packets if counters else 0,
                "tx_packets": counters.tx_packets if counters else 0,
                "rx_dropped": counters.rx_dropped if counters else 0,
                "tx_dropped": counters.tx_dropped if counters else 0,
            }
        )
    return rows
