"""The logs of a lab's hosts: written as a migration goes on, read while they grow."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from testbed import profiles
from testbed.lab import host_log
from testbed.lab.directory import LabDirectory
from testbed.lab.host_log import End, MoveLog, Tail, append, follow, form, log_file, read
from testbed.report.observed import Observed, observed
from testbed.report.vmkernel_parse import read_logs
from tests.unit.test_report_page import ENGINE, FAILED, RESULT
from tests.unit.test_vmkernel_log import as_printed

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from testbed.report.result import MigrationResult
    from testbed.report.vmkernel_log import Form

MOVED = 1257624621919023
SEEN = Observed(
    migration_id=MOVED,
    vm="db01",
    source="esx01",
    destination="esx02",
    source_address="fd00::1",
    destination_address="fd00::2",
    memory_bytes=2**30,
    switchover_goal_ns=500_000_000,
)
TOLD = replace(as_printed(observed(RESULT, MOVED), "iso"), began=None)


def as_json(result: MigrationResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(result)))
    return found


def begun(tmp_path: Path, source: Form = "iso", destination: Form = "iso") -> MoveLog:
    directory = LabDirectory("quickstart", tmp_path)
    directory.create()
    directory.identity.write_text("1 1")
    os.utime(directory.identity, (1, 1))
    return MoveLog(
        directory,
        {
            "S": End("esx01", os.getpid(), source),
            "D": End("esx02", os.getpid(), destination),
        },
        SEEN,
        started_ns=0,
    )


def logs(log: MoveLog) -> tuple[Path, Path]:
    return log_file(log.directory, "esx01"), log_file(log.directory, "esx02")


def test_it_is_told_as_it_goes_on(tmp_path: Path) -> None:
    log = begun(tmp_path)
    source, destination = logs(log)
    assert [len(list(read(path))) for path in (source, destination)] == [2, 2]
    for number, iteration in enumerate(ENGINE.iterations[:2]):
        log.tell({"event": "iterated", "iteration": asdict(iteration)})
        assert len(list(read(source))) == 3 + number
    log.tell({"event": "progress", "phase": "pre-copy"})
    log.tell({"event": "stopping"})
    assert "Stopping pre-copy: only 100 pages left to send" in list(read(source))[-1]
    assert "280" not in list(read(destination))[-1]
    assert (
        "Estimated network bandwidth 1073.742 MB/s during pre-copy" in list(read(destination))[-1]
    )
    log.end(as_json(RESULT))
    told = list(read(source))
    assert len(told) == len(set(told)) == 2 + 3 + 1 + 1 + 1 + 1
    (one,) = read_logs([source, destination])
    assert replace(one.observed, began=None) == TOLD


def test_an_engine_that_tells_nothing_meanwhile_gives_the_same_log(tmp_path: Path) -> None:
    log = begun(tmp_path)
    log.end(as_json(RESULT))
    (one,) = read_logs(logs(log))
    assert replace(one.observed, began=None) == TOLD


def test_a_failure_is_told_on_both_hosts(tmp_path: Path) -> None:
    log = begun(tmp_path)
    log.end(as_json(FAILED))
    assert any("Failed: link down" in line for line in read(logs(log)[0]))
    assert any("D: failed in phase 0 in " in line for line in read(logs(log)[1]))


def test_each_host_writes_in_its_own_form(tmp_path: Path) -> None:
    log = begun(tmp_path, "syslog", "iso")
    log.end(as_json(RESULT))
    source, destination = (list(read(path)) for path in logs(log))
    assert all(" esx01 vmkernel: " in line for line in source)
    assert not any("vmkernel:" in line for line in destination)


def test_one_s_own_profile_writes_as_what_it_inherits(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    for base, expected in (("esx-4.0", "syslog"), ("vsphere-5.5", "iso"), ("unlimited", "iso")):
        mine.write_text(f"inherits: {base}\n")
        assert form(profiles.load(str(mine))) == form(profiles.load(base)) == expected


def test_a_log_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    log = begun(tmp_path)
    for path in logs(log):
        path.unlink()
        path.mkdir()
    log.end(as_json(RESULT))


def test_a_long_log_begins_anew_and_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_log, "MOST_LOG_BYTES", 100)
    path = tmp_path / "logs" / "vmkernel.log"
    tail = Tail(path)
    assert tail.lines() == []
    found = []
    for number in range(40):
        append(path, f"line {number}")
        if number % 3 == 0:
            found += tail.lines()
    found += tail.lines()
    tail.close()
    assert found == [f"line {number}" for number in range(40)]
    assert path.stat().st_size <= 110
    assert sorted(one.name for one in path.parent.iterdir()) == ["vmkernel.0", "vmkernel.log"]


def test_follow_waits_for_a_log_and_ends_with_the_lab(tmp_path: Path) -> None:
    path, over = tmp_path / "vmkernel.log", threading.Event()
    found: list[str] = []
    append(path, "old")
    append(path, "last")
    thread = threading.Thread(target=lambda: found.extend(follow(path, over.is_set, last=1)))
    thread.start()
    append(path, "new")
    over.set()
    thread.join(30)
    assert not thread.is_alive()
    assert found[-1] == "new"
    assert "old" not in found
