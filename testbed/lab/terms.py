"""On which terms a VM is to move: profiles and paths settled, and a look at the way before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.guest.missing import lacks_missing_pages
from testbed.guest.specification import GuestSpec
from testbed.guest.trace import TraceMode
from testbed.lab import accounts, vmx
from testbed.lab.adapter_paths import adapter_paths, vmotion_paths
from testbed.lab.agreement import Options, agreed, as_asked, encrypts
from testbed.lab.engine_spec import engine_spec, path_rates, stream_specs, used, window_bytes
from testbed.lab.preflight import End, preflight
from testbed.lab.specification_traffic import Ends
from testbed.plan.names import netns_name

if TYPE_CHECKING:
    from testbed.lab.adapter_paths import AdapterPath
    from testbed.lab.estate import Estate
    from testbed.lab.lines import Message
    from testbed.lab.running_vm import RunningVM
    from testbed.migration.specification import MigrationSpec
    from testbed.profiles import Profile
    from testbed.topology.model import Host


@dataclass(frozen=True, slots=True)
class Terms:
    """How one migration is carried out.

    `profile` is what both hosts agree on; `hosts`, source and destination, have their own in them.
    `accounts` are what their CPUs are charged (`accounts.terms`); None: nothing. `management` are
    the ends of the management traffic, `rtt_ns` is the round trip over the first path.
    """

    paths: tuple[AdapterPath, ...]
    spec: MigrationSpec
    profile: Profile
    hosts: tuple[Host, Host]
    accounts: tuple[Message | None, Message | None]
    management: Ends
    notices: tuple[str, ...]
    rtt_ns: int

    def spec_at(self, end: int) -> dict[str, Any]:
        """The specification as JSON with what it costs at the source (0) or the destination (1)."""
        costs = self.accounts[end] or {"cycles_per_byte": 0, "cycles_per_packet": 0}
        return replace(
            self.spec,
            cycles_per_byte=costs["cycles_per_byte"],
            cycles_per_packet=costs["cycles_per_packet"],
        ).to_json()

    def close(self, estate: Estate) -> None:
        """The hosts' ledgers are as their own profiles have them again."""
        for host in self.hosts:
            accounts.terms(estate.directory, estate.topology, host.name)

    def told(self) -> Message:
        """What crosses the management network: all but the secret."""
        fields = self.spec.to_json()
        del fields["secret"], fields["guest"]["workloads"]
        return fields | {"source": self.hosts[0].name, "destination": self.hosts[1].name}


async def terms(estate: Estate, running: RunningVM, to: Host, request: Message) -> Terms:
    """Settle the terms of a migration, and see that its paths are passable.

    Raises:
        InputError: there is no such profile.
        LabError: the hosts don't agree, a path is not passable, or is too long.
    """
    topology, lab = estate.topology, estate.topology.name
    options = Options(**request.get("options") or {})
    options = replace(options, switchover_goal_ns=request["switchover_goal_ns"])
    attempt = f"migrate {running.step.vm} to {to.name}"
    source, destination = (
        as_asked(host, options, topology.scale) for host in (topology.host(running.step.host), to)
    )
    netns = netns_name(lab, source.name), netns_name(lab, destination.name)
    profile = agreed(source.profile, destination.profile, options)
    encrypted = encrypts(source, destination, options.encryption)
    every = vmotion_paths(source, destination)
    every_rate = path_rates(topology, source.name, destination.name, every, estate.pinned())
    scale = topology.scale.denominator
    chosen = used(profile, [rate and rate * scale for rate in every_rate])
    paths, rates = tuple(every[n] for n in chosen), [every_rate[n] for n in chosen]
    nominal = [rate and rate * scale for rate in rates]
    found = await preflight(
        End(source, netns[0]),
        End(destination, netns[1]),
        paths,
        forced=options.forced,
        busy=len(estate.journal.moves) > 0,
    )
    found.require(attempt)
    directory = str(estate.files(running.step))
    guest = GuestSpec.from_json(vmx.guest_fields(running.step, directory))
    notices = list(found.notes)
    if profile.quick_resume or profile.remaining_pages == "after resume":
        lacks = lacks_missing_pages(guest, "pagemap")
        if request["verify"]:
            lacks = "--verify compares all of its memory before"
        if lacks and options.quick_resume:
            raise LabError(f"{attempt}: it can't be resumed before all pages came: {lacks}")
        if lacks:
            notices.append(f"the guest is resumed when all pages are there: {lacks}")
            profile = replace(profile, quick_resume=False, remaining_pages="before resume")
    trace = request.get("trace")
    spec = engine_spec(
        guest=guest,
        profile=profile,
        options=options,
        streams=stream_specs(profile, paths, nominal, options.streams),
        window=window_bytes(profile, rates, found.rtts_ns),
        encrypted=encrypted,
        verify=request["verify"],
        trace=TraceMode(**trace) if trace else None,
        resume_file=f"{directory}/{running.step.vm}.resume",
    )
    asked = replace(
        topology,
        hosts=tuple(
            {source.name: source, destination.name: destination}.get(host.name, host)
            for host in topology.hosts
        ),
    )
    charged = tuple(
        accounts.terms(estate.directory, asked, host.name) for host in (source, destination)
    )
    management = adapter_paths(source, destination, "management")
    return Terms(
        paths=paths,
        spec=spec,
        profile=profile,
        hosts=(source, destination),
        accounts=(charged[0], charged[1]),
        management=Ends(
            (source.name, destination.name),
            netns,
            management[0] if management else None,
            (charged[0], charged[1]),
        ),
        notices=tuple(notices),
        rtt_ns=found.rtts_ns[0],
    )
