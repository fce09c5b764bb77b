"""Workloads and memory of VMs: what a file says, at its scale, and what it can't say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.errors import TopologyError
from testbed.guest import workloads as guest
from testbed.guest.layout import first_data_page
from testbed.guest.specification import GuestSpec
from testbed.guest.tasks.build import regions
from testbed.plan.compile import compile_plan
from testbed.plan.difference import difference
from testbed.plan.plan import from_json, to_json
from testbed.plan.steps import PowerOn
from testbed.topology import load, loads, with_workloads
from tests.unit.test_topology_mistakes import GOOD, place_of, problems

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.topology.model import VM

WRITTEN = "{kind: uniform, dirty_rate: 200MB/s, working_set: 20%}"
MIB = 1 << 20


def with_workload(workload: str, *more: str, text: str = GOOD) -> str:
    """The file with another workload, and other keys of the VM."""
    assert WRITTEN in text
    return text.replace(WRITTEN, workload + "".join(f"\n    {line}" for line in more))


def vm(workload: str, *more: str, scale: str = "1") -> VM:
    return loads(with_workload(workload, *more, text=f"scale: {scale}\n{GOOD}"), "lab.yaml").vms[0]


def test_the_sample_of_the_design_is_what_it_says() -> None:
    (oltp,) = vm("{kind: oltp, dirty_rate: 400MB/s, working_set: 20%}").workloads
    assert isinstance(oltp, guest.Oltp)
    assert oltp.commits_per_s * (oltp.pages_per_commit + 1) * 4096 == pytest.approx(400e6)
    assert oltp.working_set_bytes == 2**30 // 5 // 4096 * 4096


def test_what_a_file_leaves_out_is_as_the_workload_has_it() -> None:
    found = vm("[{kind: zipf, dirty_rate: 1MB/s}, {kind: web}, {kind: echo}, {kind: ping},"
               " {kind: media}, {kind: iometer}, {kind: bulk, to: 192.168.10.51},"
               " {kind: sink}]").workloads  # fmt: skip
    assert found == (
        guest.Writer("zipf", 10**6, 2**30 // 5 // 4096 * 4096),
        guest.Web(),
        guest.Echo(),
        guest.Ping(),
        guest.Media(),
        guest.Iometer(64 * MIB),
        guest.Bulk("192.168.10.51", 9, 0),
        guest.Sink(9),
    )
    assert vm("{kind: idle}").workloads == vm("[]").workloads == ()


def test_scale_divides_rates_and_sizes_and_nothing_else() -> None:
    text = (
        "[{kind: oltp, commits: 500, working_set: 10%}, {kind: allocate, size: 64MiB, rate: 8MB/s},"
        " {kind: iometer, file: 64MiB, block: 8KiB, iops: 100}, {kind: web, file: 1MiB},"
        " {kind: media, rate: 8Mbit}, {kind: sequential, dirty_rate: 8MB/s, working_set: 16MiB},"
        " {kind: bulk, to: 192.168.10.51, port: 5001, rate: 80Mbit}]"
    )
    more = ("memory_in_use: 512MiB", "reservation: 50%")
    full, small = vm(text, *more), vm(text, *more, scale="1/8")
    assert small.memory_bytes * 8 == full.memory_bytes == 2**30
    assert (small.in_use_bytes, full.in_use_bytes) == (64 * MIB, 512 * MIB)
    assert (small.reserved_bytes, full.reserved_bytes) == (64 * MIB, 512 * MIB)
    oltp, allocate, iometer, web, media, writer, bulk = small.workloads
    assert oltp == guest.Oltp(62.5, 128 * MIB // 10 // 4096 * 4096)
    assert allocate == guest.Allocate(8 * MIB, 10**6)
    assert iometer == guest.Iometer(8 * MIB, 8192, iops=12.5)
    assert web == guest.Web(file_bytes=131072)
    assert media == guest.Media(rate_bps=10**6)
    assert writer == guest.Writer("sequential", 10**6, 2 * MIB)
    assert bulk == guest.Bulk("192.168.10.51", 5001, 10**7)


def test_all_of_the_memory_is_a_working_set_that_fits() -> None:
    for text in (
        "{kind: uniform, dirty_rate: 1MB/s, working_set: 100%}",
        "[{kind: zipf, dirty_rate: 1MB/s, working_set: 50%}, {kind: allocate, size: 50%}]",
    ):
        found = vm(text)
        spec = GuestSpec("db01", found.memory_bytes, found.vcpus, found.workloads)
        assert sum(map(len, regions(spec))) == 2**30 // 4096 - first_data_page(2)


# (workload and further lines, the text at which it is told, message, remedy)
MISTAKES = {
    "another kind's key": (
        "{kind: web, working_set: 20%}", "working_set", "'working_set'", "port, file"
    ),
    "no kind": ("{dirty_rate: 1MB/s}", "workload", "kind is missing", "add kind: idle or uniform"),
    "a wrong kind": ("{kind: Zipf, dirty_rate: 1MB/s}", "Zipf", "'Zipf'", "did you mean zipf?"),
    "a kind to come": ("{kind: mail}", "mail", "not built yet", "use oltp"),
    "no rate": ("{kind: zipf}", "workload", "dirty_rate is missing", "400MB/s"),
    "commits and rate": (
        "{kind: oltp, commits: 5, dirty_rate: 1MB/s}", "commits", "say the same", "keep one"
    ),
    "neither": ("{kind: oltp}", "{kind: oltp}", "neither", "commits: 500"),
    "too large together": (
        "[{kind: zipf, dirty_rate: 1MB/s, working_set: 60%}, {kind: allocate, size: 41%}]",
        "41%", "1.01 GiB is more than the VM's memory of 1 GiB", "smaller",
    ),
    "a port twice": (
        "[{kind: web, port: 7}, {kind: echo, port: 7}]", "7}]", "TCP port 7", "of its own"
    ),
    "a default port twice": (
        "[{kind: web, port: 7}, {kind: echo}]", "{kind: echo}", "by its web workload", "of its own"
    ),
    "bulk to nobody": ("{kind: bulk}", "workload", "to is missing", "192.168.10.51"),
    "bulk to a name": ("{kind: bulk, to: db02}", "db02", "not an address", "192.168.10.51"),
    "bulk to all": ("{kind: bulk, to: 224.0.0.1}", "224.0.0.1", "to send to", "another VM"),
    "bulk to itself": (
        "{kind: bulk, to: 192.168.10.50}", "192.168.10.50}\n", "of the VM itself", "another's"
    ),
    "bulk over another version": ("{kind: bulk, to: 'fd00::9'}", "'fd00::9'", "IPv6", "it has"),
    "a sink's port twice": (
        "[{kind: sink, port: 7}, {kind: echo}]", "{kind: echo}", "by its sink", "of its own"
    ),
    "two pings": ("[{kind: ping}, {kind: ping}]", "{kind: ping}]", "already", "remove"),
    "idle beside": ("[{kind: ping}, {kind: idle}]", "{kind: idle}", "means nothing", "remove"),
    "nine": ("[" + ", ".join(f"{{kind: echo, port: {n}}}" for n in range(1, 10)) + "]",
             "[{kind: echo, port: 1}", "9 workloads", "at most 8"),
    "block above file": (
        "{kind: iometer, file: 4KiB, block: 8KiB}", "4KiB", "no room", "file larger"
    ),
    "two iometers": (
        "[{kind: iometer}, {kind: iometer, iops: 1}]", "{kind: iometer, iops", "already", "remove"
    ),
    "no room for buffers": (
        "[{kind: zipf, dirty_rate: 1MB/s, working_set: 100%}, {kind: iometer}]",
        "100%", "1 GiB is more than", "smaller",
    ),
    "reads": ("{kind: iometer, reads: 12.5%}", "12.5%", "whole percentage", "67%"),
    "large pages": ("{kind: idle}", "1GiB", "2 MiB pages", "page_size: 4KiB", "page_size: 2MiB"),
    "synthetic large": (
        "{kind: idle}", "2MiB", "no large pages", "4KiB", "page_size: 2MiB", "backing: synthetic"
    ),
    "synthetic iometer": (
        "{kind: iometer}", "{kind: iometer}", "blocks of a file", "backing: real",
        "backing: synthetic",
    ),
    "reservation": ("{kind: idle}", "2GiB", "2 GiB is more", "percentage", "reservation: 2GiB"),
    "in use": ("{kind: idle}", "3GiB", "3 GiB is more", "percentage", "memory_in_use: 3GiB"),
    "a CPU twice": ("{kind: idle}", "1]\n", "CPU 1", "once", "affinity: [0, 1, 1]"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_at_its_place(mistake: str) -> None:
    workload, marked, message, remedy, *more = MISTAKES[mistake]
    text = with_workload(workload, *more) + "\n"
    if mistake == "large pages":
        text = text.replace("memory: 1GiB", "memory: 1025MiB")
        marked = "1025MiB"
    (found,) = problems(text)
    assert (found.line, found.column) == place_of(text, marked), found
    assert message in found.message, found
    assert remedy in found.remedy, found


@pytest.mark.parametrize(
    ("nics", "lack"), [("[]", "NIC"), ("[{portgroup: VM-Network}]", "address")]
)
def test_who_serves_needs_an_address(nics: str, lack: str) -> None:
    text = with_workload("{kind: ping}").replace(
        "[{portgroup: VM-Network, ip: 192.168.10.50/24}]", nics
    )
    (found,) = problems(text)
    assert (found.where, lack in found.message) == ("vms.db01.workload", True)


CROWDED = (
    GOOD.replace("64GiB", "3GiB")
    .replace("db01", '"db[01-04]"')
    .replace("192.168.10.50/24", '"192.168.10.[50-53]/24"')
)


def test_a_host_keeps_reservations_and_shares_the_rest_out() -> None:
    (refused,) = problems(CROWDED)
    assert "the VMs of host esx01 have 4 GiB, more than its 3 GiB" in refused.message
    half = loads(with_workload("{kind: idle}", 'reservation: "[50,50,50,100]%"', text=CROWDED), "f")
    assert [v.reserved_bytes for v in half.vms] == [512 * MIB] * 3 + [1024 * MIB]
    # 3072 - 2560 = 512 MiB are free, for three that lack 512 MiB each.
    expected = (512 * MIB + 512 * MIB // 3) // 4096 * 4096
    assert [v.resident_bytes for v in half.vms] == [expected] * 3 + [1024 * MIB]
    steps = [s for s in compile_plan(half, cpus=2).steps if isinstance(s, PowerOn)]
    assert [s.resident_bytes for s in steps] == [expected] * 3 + [None]


def test_synthetic_memory_is_not_swapped() -> None:
    text = with_workload("{kind: idle}", "reservation: 50%", "backing: synthetic", text=CROWDED)
    found = problems(text)
    assert {"can't be swapped" in f.message for f in found} == {True}


TRACE = "at_s,until_s,first_page,pages,rate\n0,1.5,8,1024,100MB/s\n"
REPLAY = "{kind: replay, trace: traces/one.csv, repeat: on}"


def test_a_trace_is_read_beside_its_topology_and_known_from_then_on(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    trace = tmp_path / "traces/one.csv"
    trace.write_text(TRACE)
    file = tmp_path / "good.yaml"
    file.write_text("scale: 1/8\n" + with_workload(REPLAY))
    topology = load(file)
    expected = guest.Replay(
        (guest.TraceRange(0, 1_500_000_000, 1, 128, 12_500_000),), True, "one.csv"
    )
    assert topology.vms[0].workloads == (expected,)
    trace.unlink()
    again = loads(topology.text, str(file), dict(topology.traces))
    assert again == topology
    with pytest.raises(TopologyError, match="is no file of at most"):
        loads(topology.text, str(file))


def test_a_mistake_in_a_trace_has_its_own_place(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(TRACE.replace("100MB/s", "fast"))
    text = with_workload(REPLAY.replace("traces/", ""))
    with pytest.raises(TopologyError) as error:
        loads(text, str(tmp_path / "lab.yaml"))
    (found,) = error.value.problems
    assert "one.csv:2:" in found.message
    assert found.line == place_of(text, "one.csv")[0]


def test_a_trace_that_writes_beyond_the_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(TRACE.replace(",8,", ",262144,"))
    with pytest.raises(TopologyError, match="writes page 263167, but"):
        loads(with_workload(REPLAY.replace("traces/", "")), str(tmp_path / "lab.yaml"))


def test_a_workload_for_a_running_vm_is_judged_as_the_files() -> None:
    standing = loads("scale: 1/8\n" + GOOD, "lab.yaml")
    new = with_workloads(standing, "db01", [{"kind": "zipf", "dirty_rate": "8MB/s"}])
    (one,) = new.vm("db01").workloads
    assert isinstance(one, guest.Writer)
    assert one.dirty_rate_bytes_per_s == 10**6
    with pytest.raises(TopologyError) as error:
        with_workloads(standing, "db01", [{"kind": "web"}, {"kind": "echo", "port": 80, "x": 1}])
    (found,) = error.value.problems
    assert found.where == "vms.db01.workload[1].x"
    old, after = compile_plan(standing, cpus=2), compile_plan(new, cpus=2)
    change = difference(old, after)
    assert (change.undo, change.do) == ((), ())
    (pair,) = change.alter
    assert pair == (old.by_key()["vm db01"], after.by_key()["vm db01"])
    assert from_json(to_json(after)) == after
