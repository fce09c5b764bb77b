"""The file as read, mistakes and all: what the checks look at before anything is resolved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Literal

from testbed.errors import InputError
from testbed.topology.problems import Path, Problems, shown
from testbed.units import format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from testbed.profiles import Profile
    from testbed.topology.node import Node
    from testbed.topology.policy import Ranges, Teaming
    from testbed.topology.schema import HostNic, TopologyFile
    from testbed.topology.vswitches import (
        DistributedPortGroup,
        DistributedSwitch,
        PortGroup,
        VSwitch,
    )

LONGEST_FILE_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class SwitchDraft:
    """A virtual switch on one host, and where it is defined.

    `names` has the host's vmnics by the names that teaming calls them: vmnics themselves on a
    standard switch, uplink names on a distributed one, in its order. Hosts that join a
    distributed switch alike share one, and what was found out of it (`teams`, `vlans`).
    """

    name: str
    kind: Literal["standard", "distributed"]
    of: VSwitch | DistributedSwitch
    names: dict[str, str]
    path: Path
    teams: dict[str, Teaming] = field(default_factory=dict)
    vlans: dict[str, int | Ranges | None] = field(default_factory=dict)

    @property
    def mtu(self) -> int | None:
        """Its MTU; None is unknown."""
        return self.of.mtu

    @property
    def uplinks(self) -> tuple[str, ...]:
        """The host's vmnics in it."""
        return tuple(self.names.values())

    @property
    def portgroups(self) -> Mapping[str, PortGroup | DistributedPortGroup]:
        """Its port groups by name."""
        return self.of.portgroups


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The profiles of a file, at scale 1: the lab's, and those of hosts that have their own."""

    lab: Profile
    hosts: dict[str, Profile]

    def of(self, host: str) -> Profile:
        """A host's."""
        return self.hosts.get(host, self.lab)


class Draft:
    """A file's models, its tree, and what is known to be wrong with them.

    Args:
        file: the models.
        root: the expanded tree that they were read from.
        problems: takes what the checks find.
        broken: paths of objects with a mistake of their own.
        incomplete: sections whose names are not all known.
        traces: the texts of files that this one names and that are known already, by their paths
            in the file: VMs' traces, and profiles.

    `behaviour` is known once it has been checked.
    """

    def __init__(
        self,
        file: TopologyFile,
        root: Node,
        problems: Problems,
        *,
        broken: set[Path],
        incomplete: set[str],
        traces: dict[str, str],
    ) -> None:
        self.file = file
        self.traces = traces
        self.behaviour: Behaviour | None = None
        self.problems = problems
        self.incomplete = incomplete
        self._broken = broken
        self._refused_vmnics = {
            path[1]
            for path in broken
            if path[:1] == ("hosts",)
            and path[2:3] == ("nics",)
            and path[3] not in file.hosts[str(path[1])].nics
        }
        self._names = {
            section: dict.fromkeys(node.value)
            for section, node in (root.value if isinstance(root.value, dict) else {}).items()
            if isinstance(node.value, dict)
        }
        self._unsure = {
            str(path[1]) for path in broken if path[:1] == ("hosts",) and self._hides_switches(path)
        }
        self._unsure_distributed = "distributed_switches" in incomplete or any(
            path[:1] == ("distributed_switches",) for path in broken
        )
        self._shared: dict[tuple[str, ...], SwitchDraft] = {}
        self.switches = {name: tuple(self._switches_of(name)) for name in file.hosts}

    def _hides_switches(self, path: Path) -> bool:
        """Whether a mistake leaves open which virtual switches and port groups a host has."""
        if len(path) == 2 or path[2] == "vswitches":
            return True
        if path[2] != "nics":
            return False
        nic = self.file.hosts[str(path[1])].nics.get(str(path[3])) if self._has(path) else None
        return nic is None or nic.uplink is None

    def _has(self, path: Path) -> bool:
        return len(path) > 3 and str(path[1]) in self.file.hosts

    def text_of(self, name: str, what: str) -> str:
        """The text of a file that the topology names, seen from the topology file's directory.

        `what` is what it should be, such as `a trace file`.

        Raises:
            InputError: it can't be read, or is no text.
        """
        if name not in self.traces:
            path = FilePath(self.problems.file).parent / name
            how = f"name {what}, seen from the directory of the topology file"
            try:
                if not path.is_file() or path.stat().st_size > LONGEST_FILE_BYTES:
                    size = format_size(LONGEST_FILE_BYTES)
                    raise InputError(f"{shown(name)} is no file of at most {size}; {how}")
                self.traces[name] = path.read_text(encoding="utf-8")
            except OSError as error:
                raise InputError(f"{shown(name)} can't be read: {error.strerror}; {how}") from error
            except ValueError as error:
                raise InputError(f"{shown(name)} is not text; {how}") from error
        return self.traces[name]

    def is_broken(self, *path: str | int) -> bool:
        """Whether the object there has a mistake of its own."""
        return path in self._broken

    def names(self, section: str) -> Collection[str]:
        """Every name that a section defines, of objects with mistakes too."""
        return self._names.get(section, ())

    def refer(self, path: Path, name: str | None, section: str, what: str) -> bool:
        """Report a reference to something that doesn't exist; whether it does."""
        names = self.names(section)
        if name is None or name in names or section in self.incomplete:
            return name in names
        remedy = self.problems.did_you_mean(name, names)
        self.problems.add(path, f"there is no {what} {shown(name)}", remedy)
        return False

    def switch_of(self, host: str, portgroup: str | None) -> SwitchDraft | None:
        """The virtual switch of a host that has a port group."""
        return next((s for s in self.switches.get(host, ()) if portgroup in s.portgroups), None)

    def knows_switches_of(self, host: str) -> bool:
        """Whether a port group that isn't found on a host is really missing there."""
        return host in self.switches and host not in self._unsure and not self._unsure_distributed

    def lacks_vmnic(self, host: str, vmnic: str) -> bool:
        """Whether a host surely has no such vmnic."""
        of = self.file.hosts[host]
        return not (
            vmnic in of.nics or host in self._refused_vmnics or self.is_broken("hosts", host)
        )

    def nic(self, host: str, vmnic: str) -> HostNic | None:
        """A host's vmnic."""
        return self.file.hosts[host].nics.get(vmnic)

    def _switches_of(self, host: str) -> Iterator[SwitchDraft]:
        of = self.file.hosts[host]
        for name, vswitch in of.vswitches.items():
            names = {u: u for u in vswitch.uplinks if u is not None}
            yield SwitchDraft(name, "standard", vswitch, names, ("hosts", host, "vswitches", name))
        joined: dict[str, dict[str, str]] = {}
        for vmnic, nic in of.nics.items():
            if nic.uplink is not None:
                switch, _, slot = nic.uplink.partition("/")
                joined.setdefault(switch, {}).setdefault(slot, vmnic)
        for name, vmnics in joined.items():
            distributed = self.file.distributed_switches.get(name)
            if distributed is not None:
                ordered = {slot: vmnics[slot] for slot in distributed.uplinks if slot in vmnics}
                path: Path = ("distributed_switches", name)
                shared = SwitchDraft(name, "distributed", distributed, ordered, path)
                yield self._shared.setdefault((name, *ordered, *ordered.values()), shared)
