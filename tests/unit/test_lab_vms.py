"""What the lab keeps of VMs: their disks' files, and workloads that they were switched to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from testbed import topology as topologies
from testbed.cli.main import cli
from testbed.cli.vm_words import written as written_words
from testbed.errors import InputError, KernelError
from testbed.guest.iometer_file import iometer_path
from testbed.guest.specification import GuestSpec
from testbed.guest.workloads import Iometer, Oltp, Web, to_json
from testbed.lab import disk
from testbed.lab.workload_change import changed_workloads
from tests.unit.test_topology_mistakes import GOOD

if TYPE_CHECKING:
    from pathlib import Path


def spec(directory: Path, *workloads: Iometer | Oltp) -> GuestSpec:
    return GuestSpec("db01", 1 << 20, 1, workloads, directory=str(directory))


def test_the_file_of_a_workload_comes_and_goes_with_it(tmp_path: Path) -> None:
    idle, small, large = (
        spec(tmp_path),
        spec(tmp_path, Iometer(8192)),
        spec(tmp_path, Oltp(1, 4096), Iometer(16384)),
    )
    file = iometer_path(str(tmp_path), "db01")
    with disk.exchanged(idle, small):
        assert file.stat().st_size == 8192
    file.write_bytes(b"x" * 8192)
    with disk.exchanged(small, replace(small, workloads=(Iometer(8192, iops=5),))):
        pass
    assert file.read_bytes() == b"x" * 8192  # the same file
    with disk.exchanged(small, large):
        pass
    assert file.stat().st_size == 16384
    with disk.exchanged(large, idle):
        assert not file.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_switch_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    small, large = spec(tmp_path, Iometer(8192)), spec(tmp_path, Iometer(16384))
    disk.prepare(small)
    file = iometer_path(str(tmp_path), "db01")
    file.write_bytes(b"x" * 8192)
    with pytest.raises(InputError), disk.exchanged(small, large):
        raise InputError("it does not fit")
    assert file.read_bytes() == b"x" * 8192
    with pytest.raises(KernelError), disk.exchanged(small, spec(tmp_path, Iometer(1 << 60))):
        pass
    assert [one.name for one in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == b"x" * 8192


def test_a_topology_with_what_its_vms_were_switched_to() -> None:
    written = topologies.loads(GOOD, "lab.yaml")
    switched = (Web(8080), Oltp(5, 8192))
    changed = changed_workloads(written, {"db01": [to_json(one) for one in switched]})
    assert changed.vm("db01").workloads == switched
    assert changed_workloads(changed, {}) == changed
    assert changed_workloads(written, {"gone": []}) == written


def test_workloads_of_the_command_line_are_those_of_the_file() -> None:
    words = ("oltp", "commits=500", "working_set=20%", "+", "web", "port=8080", "+", "ping")
    assert written_words(words) == [
        {"kind": "oltp", "commits": 500, "working_set": "20%"},
        {"kind": "web", "port": 8080},
        {"kind": "ping"},
    ]


@pytest.mark.parametrize(
    "words", [("port=80",), ("web", "80"), ("web", "+"), ("web", "a=1", "a=2")]
)
def test_words_that_say_no_workload_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="write"):
        written_words(words)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (("--from", "client"), "--from means nothing here"),
        (("workload", "idle", "--for", "3s"), "--for means nothing here"),
        (("throttle", "50%", "--interval", "10ms"), "--interval means nothing here"),
        (("throttle", "50%", "--json"), "--json means nothing here"),
        (("record", "--for", "1s", "--late", "9ms", "a.csv"), "--late means nothing here"),
        (("record", "--for", "1000s", "--interval", "10ms", "a.csv"), "at most 8000 intervals"),
        (("feel", "--late", "9ms"), "add --from"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words: tuple[str, ...], refused: str) -> None:
    done = CliRunner().invoke(cli, ["vm", "db01", *words])
    assert isinstance(done.exception, InputError)
    assert refused in str(done.exception)


def test_the_help_of_vm_keeps_its_examples_on_lines_of_their_own() -> None:
    shown = CliRunner().invoke(cli, ["vm", "--help"]).output.splitlines()
    assert "  testbed vm db01" in shown
