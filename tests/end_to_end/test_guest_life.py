"""Guests with workloads in a running lab: switched, moved with open connections, and failing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed import topology as topologies
from testbed.kernel import netns
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.identity import ProcessIdentity
from testbed.lab.journal import Journal
from testbed.lab.up import up
from testbed.measure.endpoint import Endpoint
from testbed.measure.session import download, echo
from testbed.measure.tcp_session import SessionTest
from testbed.plan.steps import PowerOn
from tests.end_to_end.labs import run, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.plan.steps import Step

pytestmark = pytest.mark.root

FILE = Path(__file__).parents[2] / "topologies/workloads.yaml"
LAB = "guestlife"


def topology(tmp_path: Path, change: Callable[[str], str] = str) -> Path:
    """The shipped topology under this lab's name."""
    file = tmp_path / f"{LAB}.yaml"
    file.write_text(change(FILE.read_text().replace("name: workloads", f"name: {LAB}")))
    return file


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    """The lab, up; the path of its file."""
    file = topology(tmp_path)
    up(topologies.load(file))
    yield file
    down(LAB)


def tell(*words: str, check: bool = True) -> str:
    """`testbed vm ...` in this lab: what it said, or how it failed."""
    done = run("vm", *words, "--lab", LAB, check=check)
    return done.stdout if check else done.stderr


def now(name: str) -> dict[str, Any]:
    """The VM as its supervisor tells it."""
    return request(LabDirectory(LAB), {"command": "vm", "vm": name}, timeout_s=60)


def client() -> Endpoint:
    return Endpoint(netns.path_of(f"tb.{LAB}.client"), "192.168.10.60")


def seed_of(name: str) -> int:
    plan = Journal.read(LabDirectory(LAB).journal).plan
    return next(s.seed for s in plan.steps if isinstance(s, PowerOn) and s.vm == name)


def test_workloads_are_switched_recorded_and_taken_along(lab: Path, tmp_path: Path) -> None:
    before = json.loads(tell("db01", "--json"))
    assert [one["kind"] for one in before["workloads"]] == ["oltp", "iometer", "ping"]
    data = LabDirectory(LAB).datastores / "shared01/db01/db01.iometer"
    assert data.stat().st_size == 16 << 20
    words = ("web", "working_set=20%", "+", "zipf", "+", "mail", "+", "echo", "port=80")
    refused = tell("db01", "workload", *words, check=False)
    for what in ("unknown key 'working_set'", "dirty_rate is missing", "not built yet"):
        assert what in refused
    assert now("db01")["workload"] == before["workload"]
    tell("db01", "throttle", "20%")
    tell("db01", "workload", "uniform", "dirty_rate=200MB/s", "working_set=8MiB", "+", "echo")
    assert not data.exists()
    trace = tmp_path / "one.csv"
    assert "ranges" in tell("db01", "record", "--for", "300ms", str(trace))
    switched = now("db01")
    assert switched["counters"]["vcpu_pids"] == before["counters"]["vcpu_pids"]
    assert switched["counters"]["vcpus"][0]["throttled_ns"] > 0
    tell("db01", "workload", "replay", f"trace={trace}", "repeat=on", "+", "echo")
    trace.unlink()  # what it says is known to the lab
    run("migrate", "db01", "--to", "esx02", "--lab", LAB, "--no-results")
    moved = now("db01")
    assert moved["throttle_sleep_ns_per_ms"] == 4_000_000
    throttled_ns = moved["counters"]["vcpus"][0]["throttled_ns"]
    # The new host's vCPUs are throttled as well.
    assert wait_for(lambda: now("db01")["counters"]["vcpus"][0]["throttled_ns"] > throttled_ns)
    tell("db01", "throttle", "off")
    replay, echoes = moved["workloads"]
    assert (replay["kind"], replay["file"], replay["repeat"]) == ("replay", "one.csv", True)
    assert echoes["kind"] == "echo"
    # `apply` goes back to the file; the VM keeps running, where it is.
    run("apply", lab)
    after = now("db01")
    assert [one["kind"] for one in after["workloads"]] == ["oltp", "iometer", "ping"]
    assert after["host"] == "esx02"
    assert data.exists()
    assert after["counters"]["resumes"] > 1  # the same guest, not another one


def test_a_recording_keeps_others_out_until_it_is_ended(lab: Path, tmp_path: Path) -> None:
    trace = tmp_path / "cut.csv"
    words = ("vm", "db01", "--lab", LAB, "record", "--for", "3600s", "--interval", "1s", str(trace))
    command = [sys.executable, "-m", "testbed", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as recording:
        try:
            assert wait_for(lambda: now("db01")["counters"] is None)
            assert "is being recorded" in tell("db01", "throttle", "50%", check=False)
            assert "is being recorded" in tell("db01", "workload", "idle", check=False)
            refused = run("migrate", "db01", "--to", "esx02", "--lab", LAB, check=False)
            assert "is being recorded" in refused.stderr
            recording.send_signal(signal.SIGINT)
            _, told = recording.communicate(timeout=60)
        finally:
            recording.kill()
    assert (recording.returncode, told) == (0, "")
    assert trace.exists()
    tell("db01", "throttle", "50%")


def test_connections_survive_a_move_and_a_dead_process_is_told_of(lab: Path) -> None:
    web01, found = Endpoint("", "192.168.10.51"), []
    tests = ((download, 80, seed_of("web01")), (echo, 7, 0))
    stop = threading.Event()

    def work(what: Any, port: int, seed: int) -> None:
        test = SessionTest(port, seed, 60 * 10**9)
        found.append(what(client(), web01, test, stop))

    threads = [threading.Thread(target=work, args=one) for one in tests]
    for thread in threads:
        thread.start()
    try:
        run("migrate", "web01", "--to", "esx02", "--lab", LAB, "--no-results")
        run("migrate", "web01", "--to", "esx01", "--lab", LAB, "--no-results")
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert len(found) == 2
    for one in found:
        assert one.broken is None
        assert one.wrong_bytes == 0
    counters = now("web01")["counters"]
    assert counters["resumes"] == 3
    assert counters["workloads"][0]["operations"] >= 1
    # A dead NIC process is trouble of the VM, a dead vCPU is its end.
    nic_pid = now("web01")["nic_pid"]
    os.kill(nic_pid, signal.SIGKILL)
    assert wait_for(lambda: now("web01")["trouble"] is not None)
    silent = now("web01")
    assert silent["state"] == "running"
    assert "nobody answers" in silent["trouble"]
    assert status(LAB)["state"] == "degraded"
    # It still moves, and doesn't wait for a NIC that isn't there.
    run("migrate", "web01", "--to", "esx02", "--lab", LAB, "--no-results")
    os.kill(now("db01")["counters"]["vcpu_pids"][0], signal.SIGKILL)
    assert wait_for(lambda: now("db01")["state"] == "failed")
    assert "has failed (vCPU 0 died)" in tell("db01", "throttle", "off", check=False)
    assert "started the NIC process of web01 again" in run("up", lab).stdout
    after = status(LAB)
    assert (after["state"], after["troubles"]) == ("up", [])
    assert now("web01")["nic_pid"] != nic_pid
    answered = echo(client(), Endpoint("", "192.168.10.51"), SessionTest(7, 0, 300_000_000))
    assert answered.answered >= 1


def wait_for(true: Callable[[], bool]) -> bool:
    """Whether it comes true within 20 s."""
    deadline = time.monotonic() + 20
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_a_full_datastore_is_said_and_the_vm_goes_on(tmp_path: Path) -> None:
    mounted: list[Path] = []

    def mount(step: Step) -> None:
        if isinstance(step, PowerOn) and not mounted:
            store = LabDirectory(LAB).datastores / "shared01"
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", store], check=True)
            mounted.append(store)

    try:
        up(topologies.load(topology(tmp_path)), before=mount, batch=1)
        said = tell("db01", "workload", "iometer", "file=64MiB", check=False)
        assert "No space left on device" in said
        assert "a smaller file" in said
        db01 = now("db01")
        assert [one["kind"] for one in db01["workloads"]] == ["oltp", "iometer", "ping"]
        # A file that is gone when the guest arrives ends that workload, and nothing else.
        tell("db01", "workload", "iometer", "file=8MiB", "+", "oltp", "commits=100")
        (mounted[0] / "db01/db01.iometer").unlink()
        run("migrate", "db01", "--to", "esx02", "--lab", LAB, "--no-results")
        after = now("db01")
        assert after["state"] == "running"
        assert (
            "iometer stopped: No such file or directory on datastore shared01" in after["trouble"]
        )
        committed = after["counters"]["workloads"][1]["operations"]
        assert wait_for(lambda: now("db01")["counters"]["workloads"][1]["operations"] > committed)
    finally:
        for store in mounted:
            subprocess.run(["umount", "-l", store], check=True)
        pids = [vm_["vmx_pid"] for vm_ in status(LAB)["vms"]] if mounted else []
        down(LAB)
    assert all(ProcessIdentity.of(pid) is None for pid in pids)
