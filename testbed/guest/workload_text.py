"""Workloads in a few words for people."""

from __future__ import annotations

from testbed.guest.workloads import (
    Allocate,
    Bulk,
    Echo,
    Iometer,
    Media,
    NetworkWorkload,
    Oltp,
    Ping,
    Replay,
    Sink,
    Web,
    Workload,
    Writer,
)
from testbed.units import format_byte_rate, format_rate, format_size


def describe_workloads(workloads: tuple[Workload, ...]) -> str:
    """`oltp 500 commits/s + web port 80`; `idle` if there is none."""
    return " + ".join(map(describe_workload, workloads)) or "idle"


def describe_workload(workload: Workload) -> str:
    """`uniform 200 MB/s in 205 MiB`."""
    match workload:
        case Writer():
            rate = format_byte_rate(workload.dirty_rate_bytes_per_s)
            return f"{workload.kind} {rate} in {format_size(workload.working_set_bytes)}"
        case Allocate():
            rate = format_byte_rate(workload.rate_bytes_per_s) if workload.rate_bytes_per_s else ""
            return f"allocate {format_size(workload.size_bytes)}" + (f" at {rate}" if rate else "")
        case Oltp():
            return (
                f"oltp {workload.commits_per_s:.4g} commits/s in"
                f" {format_size(workload.working_set_bytes)}"
            )
        case Iometer():
            pace = f"{workload.iops:.4g} I/O/s" if workload.iops else "as fast as it can"
            return (
                f"iometer {pace}, {workload.read_percent} % reads of"
                f" {format_size(workload.block_bytes)}, {workload.outstanding} outstanding"
            )
        case Replay():
            again = ", again and again" if workload.repeat else ""
            return f"replay {workload.file or 'a trace'}{again}"
        case _:
            return _describe_service(workload)


def _describe_service(workload: NetworkWorkload) -> str:
    match workload:
        case Web():
            return f"web port {workload.port}, files of {format_size(workload.file_bytes)}"
        case Media():
            return f"media port {workload.port}, {format_rate(workload.rate_bps)}"
        case Echo():
            return f"echo port {workload.port}"
        case Bulk():
            where = f"[{one}]" if ":" in (one := workload.address) else one
            pace = format_rate(workload.rate_bps) if workload.rate_bps else "as fast as it may"
            return f"bulk to {where}:{workload.port}, {pace}"
        case Sink():
            return f"sink port {workload.port}"
        case Ping():
            return "ping"
