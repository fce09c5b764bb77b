"""A lab's life: up, up again, apply, down; after failures, Ctrl-C and kill -9 nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed import topology as topologies
from testbed.kernel import netns
from testbed.lab.cpus import cpu_count
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.identity import ProcessIdentity
from testbed.lab.launch import supervisor_of
from testbed.lab.up import up
from testbed.plan.compile import compile_plan
from tests.end_to_end.labs import run, small_topology, status, vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.plan.steps import Step

pytestmark = pytest.mark.root

SMALLEST = {"memory": "16MiB", "dirty_rate": "1MB/s"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Writes a topology of a lab that is taken down after the test."""
    names = []

    def write(name: str, **options: str) -> Path:
        names.append(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(small_topology(name, **options))
        return path

    yield write
    for name in names:
        down(name)


def namespaces(name: str) -> list[str]:
    return [n for n in netns.names() if n.startswith(f"tb.{name}.")]


def wait_until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def test_up_twice_changes_nothing_and_down_removes_all(lab: Callable[..., Path]) -> None:
    file = lab("twice", **SMALLEST)
    assert "is up" in run("up", file).stdout
    before = status("twice")
    inodes = {n: netns.identity(n) for n in namespaces("twice")}
    assert len(inodes) == 5
    assert "nothing changed" in run("up", file).stdout
    after = status("twice")
    assert after["supervisor_pid"] == before["supervisor_pid"]
    assert {n: netns.identity(n) for n in namespaces("twice")} == inodes
    run("down", "twice")
    assert not namespaces("twice")
    assert not LabDirectory("twice").path.exists()
    assert "nothing to take down" in run("down", "twice").stdout


def test_the_guest_runs_and_its_port_works(lab: Callable[..., Path]) -> None:
    run("up", lab("running", **SMALLEST))
    first = vm("running", "db01")
    assert first["state"] == "running"
    written = first["counters"]["pages_written"]
    wait_until(lambda: vm("running", "db01")["counters"]["pages_written"] > written)
    answer = run("ping", "--lab", "running", "client/eth0", "db01/eth0", "--count", "3")
    assert "3 received" in answer.stdout


def test_a_failure_at_any_step_leaves_nothing(lab: Callable[..., Path]) -> None:
    file = lab("unwound", **SMALLEST)
    found = topologies.load(file)
    keys = [step.key for step in compile_plan(found, cpus=cpu_count()).steps]

    class InjectedError(Exception):
        pass

    for key in keys:

        def fail(step: Step, wanted: str = key) -> None:
            if step.key == wanted:
                raise InjectedError(wanted)

        with pytest.raises(InjectedError):
            up(found, before=fail, batch=1)
        assert not namespaces("unwound"), key
        assert not LabDirectory("unwound").path.exists(), key
        assert not LabDirectory("unwound").lock_file.exists(), key


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_stopped_half_way(lab: Callable[..., Path], number: signal.Signals) -> None:
    file = lab("halfway", **SMALLEST)
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed", "up", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(LabDirectory("halfway").journal.exists)
    process.send_signal(number)
    process.wait(30)
    if number == signal.SIGKILL:
        assert LabDirectory("halfway").exists()
        run("down", "halfway")
    assert not namespaces("halfway")
    assert not LabDirectory("halfway").path.exists()
    # What is left of it, if anything, doesn't hinder the next.
    run("up", file)
    assert status("halfway")["state"] == "up"


def test_down_after_the_supervisor_was_killed(lab: Callable[..., Path]) -> None:
    run("up", lab("orphaned", **SMALLEST))
    running = [v["vmx_pid"] for v in status("orphaned")["vms"]]
    supervisor = supervisor_of(LabDirectory("orphaned"))
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_until(lambda: all(ProcessIdentity.of(pid) is None for pid in running))
    assert run("status", "orphaned", check=False).returncode == 1
    run("down", "orphaned")
    assert not namespaces("orphaned")


def test_up_starts_a_dead_supervisor_again(lab: Callable[..., Path]) -> None:
    file = lab("restarted", **SMALLEST)
    run("up", file)
    supervisor = supervisor_of(LabDirectory("restarted"))
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_until(lambda: not supervisor.alive())
    assert "started it again" in run("up", file).stdout
    assert vm("restarted", "db01")["state"] == "running"


def test_a_killed_vmx_is_told_and_down_works(lab: Callable[..., Path]) -> None:
    run("up", lab("bereft", **SMALLEST))
    os.kill(vm("bereft", "db01")["vmx_pid"], signal.SIGKILL)
    wait_until(lambda: bool(vm("bereft", "db01")["state"] == "failed"))
    assert vm("bereft", "client")["state"] == "running"
    run("down", "bereft")
    assert not namespaces("bereft")


def test_up_powers_on_a_vm_that_has_died(lab: Callable[..., Path]) -> None:
    file = lab("revived", **SMALLEST)
    run("up", file)
    client = vm("revived", "client")
    os.kill(vm("revived", "db01")["counters"]["vcpu_pids"][0], signal.SIGKILL)
    wait_until(lambda: bool(vm("revived", "db01")["state"] == "failed"))
    assert "powered on afresh, as they had failed: db01" in run("up", file).stdout
    assert vm("revived", "db01")["state"] == "running"
    assert vm("revived", "client")["vmx_pid"] == client["vmx_pid"]


def test_vms_run_on_when_the_process_they_were_forked_from_is_killed(
    lab: Callable[..., Path],
) -> None:
    file = lab("unloaded", **SMALLEST)
    run("up", file)
    supervisor = status("unloaded")["supervisor_pid"]
    running = {one["name"]: one["vmx_pid"] for one in status("unloaded")["vms"]}
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    (preloaded,) = set(map(int, children)) - set(running.values())
    os.kill(preloaded, signal.SIGKILL)
    os.kill(running["client"], signal.SIGKILL)
    wait_until(lambda: bool(vm("unloaded", "client")["state"] == "failed"))
    run("up", file)  # the next VMX is forked from another
    assert vm("unloaded", "client")["state"] == "running"
    assert vm("unloaded", "db01")["vmx_pid"] == running["db01"]


def test_properties_that_are_no_kernel_objects_are_changed_too(lab: Callable[..., Path]) -> None:
    file = lab("properties", **SMALLEST)
    run("up", file)
    file.write_text(file.read_text().replace("cores: 4", "cores: 3"))
    refused = run("up", file, check=False)
    assert refused.returncode == 1
    assert "another topology" in refused.stderr
    assert "no kernel object" in run("apply", file).stdout
    # A service is both: the class of its traffic, and what a migration looks for.
    file.write_text(file.read_text().replace("services: [vmotion]", "services: []"))
    run("apply", file)
    refused = run("migrate", "db01", "--to", "esx02", "--lab", "properties", check=False)
    assert "no vmk with the vmotion service" in refused.stderr


def test_an_address_that_moves_to_another_adapter_is_found(lab: Callable[..., Path]) -> None:
    """esx02 becomes esx09 with the same address: whoever knew the old MAC asks again."""
    file = lab("renamed", **SMALLEST)
    run("up", file)
    run("ping", "--lab", "renamed", "esx01/vmk1", "esx02/vmk1", "--count", "1")
    text = file.read_text().replace('"esx[01-02]":\n', '"esx[01,09]":\n')
    text = text.replace('hosts: "esx[01-02]"', 'hosts: "esx[01,09]"')
    file.write_text(text.replace("host: esx02", "host: esx09").replace("[11-12]", "[11,12]"))
    process = subprocess.Popen([sys.executable, "-m", "testbed", "exec", "renamed", "esx02",
                                "--", "sleep", "300"])  # fmt: skip
    inside = netns.identity("tb.renamed.esx02")
    wait_until(lambda: Path(f"/proc/{process.pid}/ns/net").stat().st_ino == inside)
    run("apply", file)
    run("ping", "--lab", "renamed", "esx01/vmk1", "esx09/vmk1", "--count", "2")
    process.wait(10)  # it would have kept the removed namespace alive


def test_two_labs_side_by_side(lab: Callable[..., Path]) -> None:
    """The same addresses, names and ports in both, and one goes while the other runs."""
    run("up", lab("left", **SMALLEST))
    run("up", lab("right", **SMALLEST))
    run("migrate", "db01", "--to", "esx02", "--lab", "left", "--no-results")
    assert vm("left", "db01")["host"] == "esx02"
    assert vm("right", "db01")["host"] == "esx01"
    run("down", "left")
    run("ping", "--lab", "right", "client/eth0", "db01/eth0", "--count", "2")
    run("migrate", "db01", "--to", "esx02", "--lab", "right", "--no-results")
    assert vm("right", "db01")["host"] == "esx02"


def test_apply_changes_a_rate_and_adds_a_vm_while_the_rest_runs(lab: Callable[..., Path]) -> None:
    file = lab("changed", **SMALLEST)
    run("up", file)
    before = vm("changed", "db01")
    text = file.read_text().replace("10Gbit", "100Mbit")
    text += "  extra: {host: esx02, memory: 16MiB, datastore: shared01}\n"
    file.write_text(text)
    shown = run("plan", file).stdout
    assert "~ HTB 100 Mbit/s" in shown
    assert "+ power on extra" in shown
    assert "~ HTB 100 Mbit/s" in run("apply", file).stdout
    after = vm("changed", "db01")
    assert after["vmx_pid"] == before["vmx_pid"]
    assert after["counters"]["pages_written"] >= before["counters"]["pages_written"]
    assert vm("changed", "extra")["state"] == "running"
    listed = run("exec", "changed", "esx01", "--", "tc", "class", "show", "dev", "vmnic0").stdout
    assert "rate 99" in listed
    assert "nothing changed" in run("apply", file).stdout


def test_an_apply_that_fails_leaves_the_lab_as_it_was(lab: Callable[..., Path]) -> None:
    file = lab("kept", **SMALLEST)
    run("up", file)
    before = vm("kept", "db01")
    # A namespace in the way that isn't the lab's by its journal: the new host can't be made.
    text = file.read_text().replace('"esx[01-02]":\n    cpu', '"esx[01-03]":\n    cpu')
    text = text.replace("[11-12]", "[11-13]")
    file.write_text(text)
    subprocess.run(["ip", "netns", "add", "tb.kept.esx03"], check=True)
    try:
        failed = run("apply", file, check=False)
        assert failed.returncode == 1
        assert "tb.kept.esx03" in failed.stderr
        after = vm("kept", "db01")
        assert after["vmx_pid"] == before["vmx_pid"]
        assert status("kept")["state"] == "up"
        run("ping", "--lab", "kept", "client/eth0", "db01/eth0", "--count", "2")
    finally:
        subprocess.run(["ip", "netns", "del", "tb.kept.esx03"], check=True)
    run("apply", file)
    assert vm("kept", "db01")["vmx_pid"] == before["vmx_pid"]  # a new host stops no VM
    assert "esx03" in [node["name"] for node in status("kept")["nodes"]]


def test_exec_runs_in_the_node_and_gives_its_exit_code(lab: Callable[..., Path]) -> None:
    run("up", lab("inside", **SMALLEST))
    assert "192.168.20.11/24" in run("exec", "inside", "esx01", "--", "ip", "addr").stdout
    assert run("exec", "inside", "esx01", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    assert "vmnic0" in run("exec", "inside", "esx01", "--", "ls", "/sys/class/net").stdout
    missing = run("exec", "inside", "esx09", "--", "true", check=False)
    assert missing.returncode == 2
    assert "esx01" in missing.stderr
