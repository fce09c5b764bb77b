"""Topologies for the end-to-end tests, and the command run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SMALL = """\
name: {name}
switches:
  tor: {{mtu: 9000}}
datastores: {{shared01: {{hosts: "esx[01-02]"}}}}
distributed_switches:
  DSwitch:
    mtu: 9000
    uplinks: [uplink1]
    portgroups: {{vMotion: {{}}, VM-Network: {{}}}}
hosts:
  "esx[01-02]":
    cpu: {{cores: 4}}
    memory: 1GiB
    nics: {{vmnic0: {{switch: tor, rate: {rate}, mtu: 9000, uplink: DSwitch/uplink1}}}}
    vmks:
      vmk1: {{portgroup: vMotion, ip: "192.168.20.[11-12]/24", services: [vmotion], mtu: 9000}}
vms:
  db01:
    host: esx01
    memory: {memory}
    vcpus: 2
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: 192.168.10.50/24}}]
    workload: {{kind: uniform, dirty_rate: {dirty_rate}, working_set: 25%}}
  client:
    host: esx02
    memory: 16MiB
    datastore: shared01
    nics: [{{portgroup: VM-Network, ip: 192.168.10.51/24}}]
"""


def small_topology(
    name: str, *, rate: str = "10Gbit", memory: str = "64MiB", dirty_rate: str = "20MB/s"
) -> str:
    """Two hosts on one switch, a VM that writes and a VM that asks."""
    return SMALL.format(name=name, rate=rate, memory=memory, dirty_rate=dirty_rate)


def run(
    *arguments: str | Path, timeout_s: float = 60.0, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """The `testbed` command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"testbed {arguments} gave {done.returncode}:\n{done.stderr}")
    return done


def status(lab: str) -> dict[str, Any]:
    """`testbed status LAB --json`; a lab that isn't whole has a status too."""
    found: dict[str, Any] = json.loads(run("status", lab, "--json", check=False).stdout)
    return found


def vm(lab: str, name: str) -> dict[str, Any]:
    """A VM's part of the status."""
    return next(v for v in status(lab)["vms"] if v["name"] == name)
