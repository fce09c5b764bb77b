"""Hosts' logs: what is written of a migration, and what is read from logs of real hosts."""

from __future__ import annotations

import gzip
import random
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.report import vmkernel_parse
from testbed.report.observed import Observed, observed
from testbed.report.post_copy import PostCopyReport
from testbed.report.result import Failure, Iteration
from testbed.report.vmkernel_line import said
from testbed.report.vmkernel_log import Host, entries, fits_goal, form_of, line, one_line
from testbed.report.vmkernel_parse import parse, read_logs
from tests.unit.test_report_page import ENGINE, RESULT

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.report.vmkernel_log import Form

# vmotion-facts.md, rows 1-3 and section 6, to the letter
PRECOPY = (
    "Nov  7 21:13:14 xxxxxxxx vmkernel: 10:06:06:18.104 cpu3:9131)VMotionRecv: 226: "
    "1257624621919023 D: Estimated network bandwidth 280.495 MB/s   during pre-copy"
)
PAGE_IN = (
    "Nov  7 21:13:15 xxxxxxxx vmkernel: 10:06:06:18.756 cpu2:9131)VMotionRecv: 1078: "
    "1257624621919023 D: Estimated network bandwidth 280.050 MB/  during page-in"
)
SENT = (
    "Nov  9 17:44:00 xxxxxxxxvmkernel: 12:01:47:02.229 cpu12:11150)VMotionSend: 2909: "
    "1257781936902648 S: Sent all modified pages to destination (network bandwidth ~287.381 MB/s)"
)
STOPPING = (
    "2026-04-14T15:38:20.160Z cpu0:151370)VMotion: 4650: 1446046703473901 S: Stopping pre-copy: "
    "only 1296 pages left to send, which can be sent within the switchover time goal of 0.500 "
    "seconds (network bandwidth ~145.404 MB/s, 101088% t2d)"
)
STUN = "Set source task result precopyStunTime to 80477"


def test_the_lines_of_2009() -> None:
    received, sent = (one.observed for one in parse([PRECOPY, PAGE_IN, SENT]))
    assert received.migration_id == 1257624621919023
    assert received.precopy_bytes_per_s == 280_495_000
    assert received.page_in_bytes_per_s == 280_050_000
    assert received.destination == "xxxxxxxx"
    assert received.source is None
    assert received.began == "2009-11-07T20:10:21+00:00"  # the ID: syslog tells no year
    assert sent.transmit_bytes_per_s == 287_381_000
    assert sent.source == "xxxxxxxx"  # though the blank is missing
    assert {received.outcome, sent.outcome} == {"completed"}
    assert received.total_ns is None  # when it began isn't told
    assert said(PRECOPY).uptime_ns == 885_978_104_000_000


def test_the_newer_lines() -> None:
    (one,) = parse([STOPPING, STUN])
    assert one.lines == 2
    assert one.observed == Observed(
        migration_id=1446046703473901,
        began="2026-04-14T15:38:20+00:00",
        outcome="completed",
        pages_left=1296,
        switchover_goal_ns=500_000_000,
        stop_bytes_per_s=145_404_000,
        transmit_to_dirty_percent=101088,
        stun_ns=80_477_000,
    )


@pytest.mark.parametrize(
    ("prefix", "host"),
    [
        ("2015-02-20T11:05:06.449Z cpu3:427570)", None),
        ("2015-02-20T11:05:06.449Z esx.example.com vmkernel: cpu3:427570)", "esx.example.com"),
        ("<181>2015-02-20T11:05:06.449Z esx01 vmkernel: cpu3:427570)", "esx01"),
        ("Feb 20 11:07:00 loghost 2015-02-20T11:05:06.449Z esx01 vmkernel: cpu3:427570)", "esx01"),
        ("2015-02-20T11:05:06.449Z In(182) vmkernel: cpu3:427570 opID=d5991c6f)", None),
        ("2015-02-20T11:05:06.449Z Wa(180) vmkwarning: cpu3:427570)WARNING: ", None),
        ("2015-02-20T12:05:06.449+01:00 10.0.0.1 vmkernel: cpu3:427570)", "10.0.0.1"),
    ],
)
def test_prefixes(prefix: str, host: str | None) -> None:
    found = said(prefix + STOPPING.split(")", 1)[1])
    assert found is not None
    assert (found.unix_ns, found.host) == (1424430306_449_000_000, host)
    assert found.fields["pages_left"] == 1296


@pytest.mark.parametrize(
    "text",
    [
        (
            "Migrate: vm 2758492: 3284: Setting VMOTION info: Source ts = ID, src ip = "
            "<192.168.1.176> dest ip = <192.168.1.177> Dest wid = 1830931 using SHARED swap"
        ),
        (
            "Migrate: 314: vmotion: Source vmmLeaderID = 2118927, ts = ID, srcIP = <192.168.1.176> "
            "dstIP = <192.168.1.177> Dest wid = 2109446 using SHARED swap, encrypted"
        ),
    ],
)
def test_the_first_line_gives_the_addresses_and_the_time(text: str) -> None:
    begin = "2015-02-20T11:05:06.449Z cpu1:2)" + text.replace("ts = ID", "ts = 7182955985622810397")
    end = (
        "2015-02-20T11:05:16.500Z cpu1:2)VMotionSend: 4156: 7182955985622810397 S: Sent all "
        "modified pages to destination (no network bandwidth estimate)"
    )
    (one,) = parse([begin, end])
    seen = one.observed
    assert (seen.source_address, seen.destination_address) == ("192.168.1.176", "192.168.1.177")
    assert (seen.total_ns, seen.outcome) == (10_051_000_000, "completed")
    assert seen.transmit_bytes_per_s is None


@pytest.mark.parametrize(
    "line",
    [
        "2015-02-20T13:40:24.663Z esx Hostd: [52F4CB90 verbose 'VMotionSrc (1424439619388924)'] ",
        (
            "2018-10-20T23:21:53.073Z info hostd[A1BF1B70] [Originator@6876 "
            "sub=Vcsvc.VMotionSrc (1424439619388924)] "
        ),
    ],
)
def test_the_stun_from_hostd(line: str) -> None:
    (one,) = parse([line + STUN])
    assert (one.observed.migration_id, one.observed.stun_ns) == (1424439619388924, 80_477_000)


def test_a_stun_without_an_id_belongs_to_none_of_two() -> None:
    other = STOPPING.replace("1446046703473901", "7")
    assert [one.observed.stun_ns for one in parse([STOPPING, other, STUN])] == [None, None]
    assert parse([STUN]) == []


def test_a_failure_keeps_its_first_cause() -> None:
    start = "2014-11-08T03:11:10.313Z cpu5:3343193)WARNING: "
    lines = [
        start + "VMotion: 3680: 1415416254017461 S: failed to end preCopy stream: IO was aborted",
        start + "Migrate: 269: 1415416254017461 S: Failed: IO was aborted (0xbad00e0) @0x41801e28",
        start + "Migrate: 5289: 1415416254017461 S: Migration considered a failure by the VMX.",
    ]
    (one,) = parse(lines)
    assert one.observed.outcome == "failed"
    assert one.observed.failure == Failure("unknown", "IO was aborted")


def test_migrations_interleaved_and_lines_of_others() -> None:
    ids = [1446046703473901 + number for number in range(20)]
    told = [(moved, form) for moved in ids for form in (STOPPING, SENT)]
    random.Random(1).shuffle(told)
    lines = []
    for moved, form in told:
        lines.append(
            form.replace("1446046703473901", str(moved)).replace("1257781936902648", str(moved))
        )
        lines.append("2026-04-14T15:38:20.160Z cpu0:1)ScsiDeviceIO: 2651: Cmd(0x41) 0x1a S: failed")
        lines.append("")
    found = parse(lines)
    assert sorted(one.observed.migration_id or 0 for one in found) == ids
    assert {one.observed.pages_left for one in found} == {1296}
    assert {one.lines for one in found} == {2}


# ---------------------------------------------------------------- written and read again

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
TEXTS = st.text(max_size=400)
RATES = st.integers(0, 10**11)
TIMES = st.integers(0, 10**15)


def iterations() -> st.SearchStrategy[tuple[Iteration, ...]]:
    one = st.builds(
        Iteration,
        number=st.just(0),
        pages=st.integers(0, 10**12),
        memory_bytes=st.integers(0, 10**15),
        wire_bytes=st.integers(0, 10**15),
        at_ns=TIMES,
        duration_ns=TIMES,
        dirty_pages=st.integers(0, 10**12),
        stunned=st.just(False),
        zero_pages=st.integers(0, 10**12),
    )

    def numbered(found: list[Iteration]) -> tuple[Iteration, ...]:
        last = len(found) - 1
        return tuple(replace(it, number=n - 1, stunned=n == last > 0) for n, it in enumerate(found))

    return st.lists(one, min_size=1, max_size=5).map(numbered)


@st.composite
def migrations(draw: st.DrawFn) -> Observed:
    rounds = draw(iterations())
    seen = Observed(
        migration_id=draw(st.integers(0, 2**64 - 1)),
        vm=draw(NAMES),
        source=draw(NAMES),
        destination=draw(NAMES),
        source_address=draw(st.sampled_from(["10.0.0.1", "fd00::1"])),
        destination_address=draw(st.sampled_from(["10.0.0.2", "fd00::2"])),
        memory_bytes=draw(st.integers(0, 10**15)),
        iterations=rounds,
        total_ns=draw(TIMES),
        precopy_bytes_per_s=draw(RATES),
        pages_left=draw(st.integers(0, 10**12)),
        stop_bytes_per_s=draw(RATES),
        switchover_goal_ns=draw(TIMES),
        transmit_to_dirty_percent=draw(st.integers(0, 10**15)),
        outcome=draw(st.sampled_from(["completed", "failed"])),
    )
    if seen.outcome == "failed":
        cause = draw(TEXTS)
        phase = draw(st.sampled_from(["pre-copy", "switchover", "trace"]))
        seen = replace(seen, failure=Failure(phase, cause))
    if rounds[-1].stunned:
        seen = replace(
            seen,
            transmit_bytes_per_s=draw(RATES),
            page_in_bytes_per_s=draw(RATES),
            pages_after_resume=draw(st.none() | st.integers(0, 10**12)),
            stun_ns=draw(st.none() | TIMES),
        )
    return seen


def written(seen: Observed, form: Form) -> list[str]:
    hosts = {"S": Host("esx01", 10**18, 100, 3), "D": Host("esx02", 10**18, 200, 0)}
    began_ns = 1_790_000_000 * 10**9
    return [
        line(entry, form, hosts[entry.side], began_ns + entry.at_ns)
        for entry in entries(seen, (100, 200))
        if form in entry.forms
    ]


def printed(value: int | None, unit: int) -> int | None:
    return None if value is None else round(value / unit) * unit


def as_printed(seen: Observed, form: Form) -> Observed:
    """What is left of it in a log of this form."""
    kb, us, ms, whole = 1000, 1000, 10**6, seen
    seen = replace(
        seen,
        iterations=tuple(
            replace(it, at_ns=printed(it.at_ns, us), duration_ns=printed(it.duration_ns, us))
            for it in seen.iterations
        ),
        total_ns=printed(seen.total_ns, us),
        stun_ns=printed(seen.stun_ns, us),
        precopy_bytes_per_s=printed(seen.precopy_bytes_per_s, kb),
        page_in_bytes_per_s=printed(seen.page_in_bytes_per_s, kb),
        transmit_bytes_per_s=printed(seen.transmit_bytes_per_s, kb),
        stop_bytes_per_s=printed(seen.stop_bytes_per_s, kb),
        switchover_goal_ns=printed(seen.switchover_goal_ns, ms),
    )
    if seen.failure is not None:
        cause = one_line(seen.failure.cause) or "the log does not say"
        seen = replace(seen, failure=Failure(seen.failure.phase, cause))
    if form == "syslog" and fits_goal(whole):
        seen = replace(
            seen,
            pages_left=None,
            switchover_goal_ns=None,
            stop_bytes_per_s=None,
            transmit_to_dirty_percent=None,
        )
    return seen


@given(migrations(), st.sampled_from(["iso", "syslog"]))
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_read_as_far_as_it_is_printed(seen: Observed, form: Form) -> None:
    (one,) = parse(written(seen, form))
    found = replace(one.observed, began=None)
    assert found == as_printed(seen, form)


def test_an_emulated_migration_in_its_log() -> None:
    told = "\n".join(written(observed(RESULT, 1257624621919023), "iso"))
    assert "(network bandwidth ~1073.742 MB/s, " in told  # the last round while the guest ran
    assert (
        "only 100 pages left to send, which can be sent within the switchover time goal of 0.500 s"
        in told
    )
    assert "D: Estimated network bandwidth 1073.742 MB/s during pre-copy" in told
    assert "precopyStunTime to 6120" in told
    assert "S: completed in 1.360000 s" in told
    assert "src ip = <fd00::1> dest ip = <fd00::2>" in told


def test_the_log_of_an_old_host_looks_like_that_of_2009() -> None:
    told = written(observed(RESULT, 1257624621919023), form_of(["esx-4.0", "unlimited", "mine"]))
    assert any(
        one.endswith(
            "vmkernel: 9143:12:26:41.350 cpu0:200)VMotionRecv: 226: 1257624621919023 D: "
            "Estimated network bandwidth 1073.742 MB/s during pre-copy"
        )
        for one in told
    ), told
    assert not any("Stopping" in one or "precopyStunTime" in one for one in told)


def test_pages_beyond_the_goal_are_not_told_as_within_it() -> None:
    seen = replace(observed(RESULT, 7), switchover_goal_ns=100)
    for form in ("iso", "syslog"):
        told = "\n".join(written(seen, form))
        assert "Stopping pre-copy" not in told
        assert "S: stopping pre-copy with 100 pages left, more than the switchover time" in told


def test_pages_after_resume_count_where_they_were_sent() -> None:
    # 100 MiB in 1 s after the 1.255 s of ENGINE
    after = PostCopyReport(25600, 25000, 600, 0, 0, 2**27, 9, 9, 1, 1, 1, 0, 0, 10**9)
    seen = observed(replace(RESULT, engine=replace(ENGINE, post_copy=after)), 7)
    assert seen.pages_after_resume == 25600
    assert seen.page_in_bytes_per_s == 100 << 20
    sent_bytes = 2**30 + 2**28 + 409600 + (100 << 20)
    assert seen.transmit_bytes_per_s == pytest.approx(sent_bytes / 2.255, rel=1e-6)


def test_newer_hosts_begin_lines_by_iso_times() -> None:
    for profiles in (["unlimited"], ["vsphere-5.0", "esx-4.1"], ["mine", "vsphere-8.0"]):
        assert form_of(profiles) == "iso"


def test_entries_are_added_and_none_changes_as_more_is_seen() -> None:
    whole = entries(observed(RESULT, 7), (1, 2))
    seen = replace(observed(replace(RESULT, engine=None), 7), outcome="unknown")
    seen = replace(seen, source_address="fd00::1", destination_address="fd00::2")
    for count in range(4):
        part = entries(replace(seen, iterations=ENGINE.iterations[:count]), (1, 2))
        assert all(entry in whole for entry in part)
        assert len(part) == 4 + count


# ---------------------------------------------------------------- files and hostile input


def test_files_of_both_hosts_plain_and_compressed(tmp_path: Path) -> None:
    seen = observed(RESULT, 1257624621919023)
    lines = written(seen, "iso")
    source, destination = tmp_path / "vmkernel.log", tmp_path / "vmkernel.0.gz"
    source.write_text("\n".join(one for one in lines if " D: " not in one))
    with gzip.open(destination, "wt") as file:
        file.write("\n".join(one for one in lines if " D: " in one))
    (one,) = read_logs([source, destination])
    assert one.logs == ("vmkernel.log", "vmkernel.0.gz")
    assert one.lines == len(lines)
    assert replace(one.observed, began=None) == replace(as_printed(seen, "iso"), began=None)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    for damaged in (gzip.compress(b"x" * 10**5)[:-9], b"\x1f\x8b", b"\x1f\x8b" + b"\x00" * 50):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"x\.gz: damaged"):
            read_logs([path])
    with pytest.raises(InputError, match="can't be read"):
        read_logs([tmp_path / "absent"])
    with pytest.raises(InputError, match="can't be read"):
        read_logs([tmp_path])


def test_memory_is_bounded_whatever_the_lines_are(tmp_path: Path) -> None:
    path = tmp_path / "vmkernel.log"
    long = b"VMotion: " + b"1" * 10**7 + b" S: Failed: " + b"x" * 10**7 + b"\n"
    path.write_bytes((long + STOPPING.encode() + b"\n" + b"\x00" * 10**7) * 2)
    tracemalloc.start()
    try:
        (one,) = read_logs([path])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert one.lines == 2


def test_too_many_migrations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmkernel_parse, "MOST_MIGRATIONS", 3)
    monkeypatch.setattr(vmkernel_parse, "MOST_ITERATIONS", 2)
    lines = [STOPPING.replace("1446046703473901", str(n)) for n in range(4)]
    assert len(parse(lines[:3] * 2)) == 3
    with pytest.raises(InputError, match="more than 3 migrations"):
        parse(lines)
    (one,) = parse(written(observed(RESULT, 7), "iso"))
    assert len(one.observed.iterations) == 2


def test_text_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmkernel_parse, "LARGEST_TEXT_BYTES", 1 << 20)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"\x00" * (2 << 20)))
    with pytest.raises(InputError, match="cut out the time of interest"):
        read_logs([path])


PIECES = [
    *(piece for known in (PRECOPY, PAGE_IN, SENT, STOPPING, STUN) for piece in known.split(" ")),
    "Failed:", "Testbed:", "moving", "iteration", "vmkernel:", "cpu1:", ")", "(", "<", ">", "=",
    "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "99999:99:99:99.999", "9" * 400, "S:",
    "D:", "\u0663\u0664", " " * 50,
]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=9), max_size=30), max_size=9))
@settings(deadline=None)
def test_nothing_makes_the_parser_fail(pieces: list[list[str]]) -> None:
    for join in ("", " "):
        for one in parse([join.join(words) for words in pieces]):
            assert one.lines >= 1


@given(st.sampled_from([PRECOPY, PAGE_IN, SENT, STOPPING]), st.data())
@settings(deadline=None)
def test_a_line_that_was_damaged_is_read_or_passed_over(known: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(known)))
    until = data.draw(st.integers(at, len(known)))
    parse([known[:at] + data.draw(st.text(max_size=5)) + known[until:]])


@given(st.binary(max_size=2000))
@settings(deadline=None)
def test_bytes_that_are_no_text(data: bytes) -> None:
    import io

    parse(vmkernel_parse.lines_of(io.BytesIO(data), "x"))


@pytest.mark.parametrize(
    "line",
    [
        "1 " * 4000,
        "cpu1:" * 1600,
        "VMotion: 1 S: " + " " * 8000,
        "1 S: Estimated network bandwidth " + "1." * 3000,
        "1 S: failed in phase " + "x in 1" * 1300,
        "1 S: moving " + "a from a to " * 600,
        "VMotionSrc" + " " * 8000,
        "precopyStunTime to " * 400,
        "Setting VMOTION info: Source ts = " * 200,
        "2026-04-14T15:38:20" * 400,
    ],
    ids=lambda line: line[:20].strip(),
)
def test_no_line_takes_long(line: str) -> None:
    def spent_s() -> float:
        began = time.process_time()
        said(line)
        return time.process_time() - began

    assert min(spent_s() for _ in range(3)) < 0.1  # 5 ms at most; what backtracks takes hours
