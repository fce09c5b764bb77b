"""What there is of a lab in the kernel and on disk: processes, links, connections, files."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.kernel import netns

if TYPE_CHECKING:
    from testbed.lab.directory import LabDirectory

LISTEN = "0A"  # of /proc/net/tcp
VMOTION = ":1F40"  # port 8000


def scene(directory: LabDirectory) -> dict[str, list[str]]:
    """All of it but hosts' agents, which start when they are needed; by namespace."""
    found: dict[str, list[str]] = {}
    inside = {}
    for name in netns.names():
        if name.startswith(f"tb.{directory.name}."):
            found[name] = []
            inside[netns.identity(name)] = name
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        with suppress(OSError):
            where = inside.get(_netns_of(pid))
            if where is not None and not (command := _command(pid)).startswith("agent-"):
                found[where].append(command)
    for name, things in found.items():
        with netns.inside(name):
            things += [f"link {link}" for _, link in socket.if_nameindex()]
            things += [f"connection {one}" for one in connections()]
        things.sort()
    root = directory.datastores
    found["files"] = sorted(str(one.relative_to(root)) for one in root.rglob("*"))
    return found


def process(lab: str, host: str, command: str) -> int:
    """A process in a host's namespace, by its name; 0: there is none."""
    inside = netns.identity(f"tb.{lab}.{host}")
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        with suppress(OSError):
            if _netns_of(pid) == inside and _command(pid) == command:
                return int(pid)
    return 0


def connections() -> list[str]:
    """TCP connections from or to vMotion's port in this namespace that a process holds."""
    rows = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return [
        f"{row[1]} {row[2]}"
        for row in rows
        if row[3] != LISTEN and row[9] != "0" and VMOTION in row[1] + row[2]
    ]


def _netns_of(pid: str) -> int:
    """Its namespace; an OSError for one that has ended."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
