"""How long 128 small VMs take to start and to stop."""

from __future__ import annotations

import os
import statistics
import time

from _row import Row, row

from testbed import topology as topologies
from testbed.lab.down import down
from testbed.lab.up import up
from testbed.plan.steps import PowerOn

_RUNS = 3
_VMS = 128
_START_BAR_S, _STOP_BAR_S = 10.0, 5.0
_TOPOLOGY = f"""\
switches: {{tor: {{}}}}
datastores: {{shared01: {{hosts: esx01}}}}
distributed_switches: {{DSwitch: {{uplinks: [uplink1], portgroups: {{VM-Network: {{}}}}}}}}
hosts:
  esx01:
    cpu: {{cores: 8}}
    memory: 64GiB
    nics: {{vmnic0: {{switch: tor, uplink: DSwitch/uplink1}}}}
vms:
  "vm[001-{_VMS}]":
    host: esx01
    memory: 16MiB
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: "10.0.0.[1-{_VMS}]/24"}}]
"""


def start(runs: int | None) -> list[Row]:
    """A lab of 128 idle VMs of 16 MiB with one vCPU and one NIC, on one host: `up` and `down`.

    All of both is counted: the plan, namespaces, wires, supervisor, VMs; their end.
    """
    name = f"bench-{os.getpid()}-start"
    topology = topologies.loads(f"name: {name}\n{_TOPOLOGY}", "start.yaml")
    up_s, powering_s, down_s = [], [], []
    try:
        for _ in range(runs or _RUNS):
            first: list[float] = []

            def note(step: object, first: list[float] = first) -> None:
                if isinstance(step, PowerOn) and not first:
                    first.append(time.monotonic())

            began = time.monotonic()
            up(topology, before=note)
            ended = time.monotonic()
            down(name)
            up_s.append(ended - began)
            powering_s.append(ended - first[0])
            down_s.append(time.monotonic() - ended)
    finally:
        down(name)
    return [
        _seconds(f"start a lab of {_VMS} VMs", up_s, _START_BAR_S),
        _seconds("of that, powering them on", powering_s),
        _seconds("stop it", down_s, _STOP_BAR_S),
    ]


def _seconds(name: str, found: list[float], bar: float | None = None) -> Row:
    value = statistics.median(found)
    if bar is None:
        return row(name, value, "s", len(found))
    return row(name, value, "s", len(found), bar=f"< {bar:g}", met=value < bar)
