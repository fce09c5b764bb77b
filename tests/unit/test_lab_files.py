"""The lab's lock, journal, lines and process identities."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from testbed.errors import InputError, LabError
from testbed.lab.directory import LabDirectory, labs
from testbed.lab.identity import ProcessIdentity
from testbed.lab.journal import Journal, Moving
from testbed.lab.lines import LineSocket
from testbed.plan.plan import Plan
from testbed.plan.steps import Bridge, Netns

if TYPE_CHECKING:
    from pathlib import Path


def test_a_lab_has_one_lock_and_leaves_no_file(tmp_path: Path) -> None:
    root = tmp_path / "run"
    directory = LabDirectory("one", root)
    with directory.locked():
        with pytest.raises(LabError, match="another command is changing lab 'one'"):
            LabDirectory("one", root).locked(deadline_s=0.05).__enter__()
        with LabDirectory("two", root).locked(deadline_s=0.05):
            pass
    assert not list(root.iterdir())


def test_whoever_waits_gets_the_lock_of_the_file_that_is_there(tmp_path: Path) -> None:
    """The first holder unlinks the file: the next must not hold a lock on what is gone."""
    root = tmp_path / "run"
    inside = []

    def hold() -> None:
        for _ in range(20):
            with LabDirectory("one", root).locked():
                inside.append(1)
                assert len(inside) == 1
                assert LabDirectory("one", root).lock_file.exists()
                inside.pop()

    failures: list[BaseException] = []

    def run() -> None:
        try:
            hold()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "A", "x" * 32, "tb.x", "a b"])
def test_what_is_no_labs_name_never_becomes_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no name of a lab"):
        LabDirectory(name, tmp_path)


def test_a_journal_survives_the_disk(tmp_path: Path) -> None:
    directory = LabDirectory("kept", tmp_path)
    directory.create()
    journal = Journal("up", "x.yaml", "name: x", Plan("kept", (Netns("n", "n", "vm"),)), {"a": "b"})
    journal = replace(journal, workloads={"db01": [{"kind": "ping"}]}, traces={"t.csv": "at_s"})
    made = Bridge("n", "eth0", 1500, "", None)
    journal = replace(journal, state="changing", moves={"db01": Moving("esx02", (made,))})
    journal = replace(journal, maintenance={"esx01": True})
    journal.write(directory.journal)
    assert Journal.read(directory.journal) == journal
    assert labs(tmp_path) == ("kept",)
    assert directory.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 99}', "\x00", '{"version": 1}'])
def test_a_damaged_journal_is_an_error_with_a_remedy(tmp_path: Path, text: str) -> None:
    directory = LabDirectory("broken", tmp_path)
    directory.create()
    directory.journal.write_text(text)
    with pytest.raises(LabError, match="'testbed down broken'"):
        Journal.read(directory.journal)


def test_lines_arrive_whole_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lines = LineSocket(theirs)
        ours.sendall(b'{"a": 1}\n{"b"')
        assert lines.receive(1) == {"a": 1}
        assert lines.receive(0.01) is None
        ours.sendall(b": 2}\n")
        assert lines.receive(1) == {"b": 2}
        ours.close()
        with pytest.raises(EOFError):
            lines.receive(1)


def test_an_identity_knows_a_process_that_has_ended(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    identity.write(tmp_path / "pid")
    assert ProcessIdentity.read(tmp_path / "pid") == identity
    assert identity.alive()
    another_time = ProcessIdentity(identity.pid, identity.start_ticks + 1)
    assert not another_time.alive()
    assert another_time.open() is None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.alive()  # a zombie has ended
    process.wait()
    assert identity.open() is None
