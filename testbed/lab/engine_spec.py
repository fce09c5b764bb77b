"""A migration's specification, made of what the hosts agree on and of the paths between them."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from testbed.guest.trace import TraceMode
from testbed.lab.path import find_path
from testbed.migration.sdps import SdpsSpec
from testbed.migration.specification import MigrationSpec, StreamSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testbed.guest.specification import GuestSpec
    from testbed.lab.adapter_paths import AdapterPath
    from testbed.lab.agreement import Options
    from testbed.profiles import Profile
    from testbed.topology.model import Topology


def path_rates(
    topology: Topology,
    source: str,
    destination: str,
    paths: Sequence[AdapterPath],
    pinned: Mapping[tuple[str, str], str | None],
) -> list[int | None]:
    """The rate of each path's slowest link; None where none is shaped, or it isn't known."""
    found = (
        find_path(
            topology,
            (source, path.source_vmk, path.source_network),
            (destination, path.destination_vmk, path.destination_network),
            path.mtu,
            pinned,
        )
        for path in paths
    )
    return [None if way is None else way.rate_bps for way in found]


def used(profile: Profile, nominal_bps: Sequence[int | None]) -> list[int]:
    """Which of its paths, given by the rates of their NICs, a profile's migration uses."""
    found: list[int] = []
    for number, rate_bps in enumerate(nominal_bps):
        if len(found) < profile.most_vmks(rate_bps):
            found.append(number)
    return found


def stream_specs(
    profile: Profile,
    paths: Sequence[AdapterPath],
    nominal_bps: Sequence[int | None],
    asked: int | None,
) -> tuple[StreamSpec, ...]:
    """A connection for each stream helper of each path, in turns; pinned where there are several.

    `asked` for each path, in place of the profile's.
    """
    helpers = [asked or profile.helpers(rate_bps) for rate_bps in nominal_bps]
    return tuple(
        StreamSpec(
            path.source_address,
            path.destination_address,
            path.source_vmk if len(paths) > 1 else None,
        )
        for turn in range(max(helpers))
        for path, count in zip(paths, helpers, strict=True)
        if turn < count
    )


def window_bytes(
    profile: Profile, rates_bps: Sequence[int | None], rtts_ns: Sequence[int]
) -> int | None:
    """Payload in flight of each stream: as the path asks that takes most; None: the kernel's."""
    windows = [
        profile.window_for(rate_bps, rtt_ns)
        for rate_bps, rtt_ns in zip(rates_bps, rtts_ns, strict=True)
    ]
    found = [window for window in windows if window is not None]
    return max(found) if len(found) == len(windows) else None


def engine_spec(
    *,
    guest: GuestSpec,
    profile: Profile,
    options: Options,
    streams: tuple[StreamSpec, ...],
    window: int | None,
    encrypted: bool,
    verify: bool,
    trace: TraceMode | None,
    resume_file: str,
) -> MigrationSpec:
    """The whole specification, with a new identifier and secret; costs are each end's own.

    Args:
        guest: what is moved.
        profile: what the hosts have agreed on.
        options: what was asked for.
        streams: at least one.
        window: as `window_bytes`.
        encrypted: as `agreement.encrypts`.
        verify: whether memories are compared before the guest is resumed.
        trace: how page tracing is laid over the guest; None: as the profile says.
        resume_file: where Quick Resume's file may be made, on the VM's datastore.
    """
    if trace is None and profile.trace_stop is not None:
        trace = TraceMode(profile.trace_stop, profile.trace_granularity)
    early = profile.quick_resume or profile.remaining_pages == "after resume"
    return MigrationSpec(
        migration_id=time.time_ns() // 1000,
        secret=secrets.token_bytes(32),
        guest=guest,
        source_address=streams[0].source_address,
        destination_address=streams[0].destination_address,
        congestion_control=profile.congestion_control,
        switchover_goal_ns=profile.switchover_goal_ns,
        min_progress_percent=profile.min_progress_percent,
        timeout_ns=profile.timeout_ns,
        verify=verify,
        trace=trace,
        streams=streams,
        window_bytes=window,
        zero_pages=profile.zero_pages,
        bitmap=profile.bitmap,
        remaining_pages=profile.remaining_pages,
        sdps=SdpsSpec(target_percent=profile.sdps_target_percent) if profile.sdps else None,
        quick_resume=profile.quick_resume,
        resume_file=resume_file if early else "",
        encrypted=encrypted,
        downtime_limit_ns=options.downtime_limit_ns,
        deadline_ns=options.timeout_ns,
    )
