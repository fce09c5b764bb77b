"""Migrations in a running lab: what moves, what is refused, and what a failure leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise
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
from testbed.lab.lines import LineSocket
from testbed.lab.up import up
from testbed.measure.endpoint import Endpoint, socket_in
from testbed.measure.ping import PingTest, measure
from tests.end_to_end.labs import run, small_topology, vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Brings a lab up, and down after the test; gives its name."""
    names = []

    def bring_up(name: str, **options: str) -> str:
        names.append(name)
        up(topologies.loads(small_topology(name, **options), str(tmp_path / f"{name}.yaml")))
        return name

    yield bring_up
    for name in names:
        down(name)


def move(
    lab: str,
    to: str,
    *,
    goal_ns: int = 500_000_000,
    verify: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Migrate db01 and return the result as JSON."""
    return request(
        LabDirectory(lab),
        {
            "command": "migrate",
            "vm": "db01",
            "to": to,
            "switchover_goal_ns": goal_ns,
            "verify": verify,
            "command_line": "test",
        },
        timeout_s=60,
        on_event=on_event,
    )


def test_a_guest_moves_and_goes_on(lab: Callable[..., str]) -> None:
    name = lab("moving")
    before = vm(name, "db01")
    result = move(name, "esx02", verify=True)
    after = vm(name, "db01")
    assert result["outcome"] == "completed"
    assert result["verification"] == {
        "pages_compared": 16384,
        "pages_different": 0,
        "compared_by": "content",
    }
    assert result["engine"]["stun_ns"] is None  # it was held for the comparison
    assert after["host"] == "esx02"
    assert after["counters"]["pages_written"] >= before["counters"]["pages_written"]
    assert after["counters"]["resumes"] == before["counters"]["resumes"] + 1
    # New processes there, none left here, and its old wire is gone.
    old = [before["vmx_pid"], *before["counters"]["vcpu_pids"]]
    assert not set(old) & {after["vmx_pid"], *after["counters"]["vcpu_pids"]}
    assert all(ProcessIdentity.of(pid) is None for pid in old)
    ports = run("exec", name, "esx01", "--", "ip", "-br", "link").stdout
    assert "db01-eth0" not in ports
    assert "db01-eth0" in run("exec", name, "esx02", "--", "ip", "-br", "link").stdout
    # The first iteration is the whole memory; what followed was dirty at the end of the last.
    iterations = result["engine"]["iterations"]
    assert iterations[0]["number"] == -1
    assert iterations[0]["pages"] == 16384
    assert iterations[-1]["stunned"]
    for earlier, later in pairwise(iterations[:-1]):
        assert later["pages"] == earlier["dirty_pages"]


@pytest.mark.slow
def test_a_hundred_moves_to_and_fro_and_no_page_differs(lab: Callable[..., str]) -> None:
    name = lab("hundred", memory="32MiB", dirty_rate="40MB/s")
    written = 0
    for count in range(100):
        result = move(name, ("esx02", "esx01")[count % 2], verify=True)
        assert result["outcome"] == "completed", result["failure"]
        assert result["verification"]["pages_compared"] == 8192
        assert result["verification"]["pages_different"] == 0
        if count % 20 == 19:
            now = vm(name, "db01")["counters"]
            assert now["pages_written"] > written
            assert now["resumes"] == count + 2  # powered on once, moved so many times
            written = now["pages_written"]


def test_the_network_follows_the_guest(lab: Callable[..., str]) -> None:
    """A ping of every 5 ms from another VM: it misses the stun and little more; RARP tells."""
    from scapy.layers.l2 import ARP, Ether

    name = lab("followed")
    client = Endpoint(netns.path_of(f"tb.{name}.client"), "192.168.10.51", "eth0")
    guest = Endpoint(netns.path_of(f"tb.{name}.db01"), "192.168.10.50", "eth0")
    stop, found = threading.Event(), []
    test = PingTest(count=None, interval_ns=5_000_000)
    pinging = threading.Thread(target=lambda: found.append(measure(client, guest, test, stop)))
    listening = socket_in(client.netns_path, 17, 3, 0x3580)  # AF_PACKET, SOCK_RAW, RARP
    with listening:
        listening.bind(("eth0", 0x8035))
        listening.settimeout(5)
        pinging.start()
        time.sleep(0.2)  # some pings before
        result = move(name, "esx02", goal_ns=20_000_000)
        time.sleep(0.2)  # and after
        stop.set()
        pinging.join()
        frames = [Ether(listening.recv(2048)) for _ in range(5)]
    (pings,) = found
    stun_ms = result["engine"]["stun_ns"] / 1e6
    assert pings.received >= 60
    assert pings.lost * 5 <= 10 * stun_ms + 50  # tenfold: the machine may be busy
    mac = next(
        v.nics[0].mac for v in topologies.loads(small_topology(name), "x").vms if v.name == "db01"
    )
    for frame in frames:
        assert frame.dst == "ff:ff:ff:ff:ff:ff"
        assert frame.src == mac
        assert frame.type == 0x8035
        rarp = ARP(bytes(frame.payload))
        assert (rarp.op, rarp.hwsrc, rarp.hwdst) == (3, mac, mac)


def test_throughput_follows_the_link(lab: Callable[..., str]) -> None:
    """The first pass over 200 Mb/s carries what jumbo frames leave of it: 198 Mb/s."""
    name = lab("fifth", rate="200Mbit", memory="32MiB")
    for count in range(6):  # a busy machine can only take away; too much would be too much in each
        result = move(name, ("esx02", "esx01")[count % 2])
        first = result["engine"]["iterations"][0]
        bps = first["memory_bytes"] * 8e9 / first["duration_ns"]
        assert result["path_goodput_bps"] == 198008408
        assert bps < 1.02 * 198e6  # a burst of the first milliseconds
        if bps > 0.9 * 198e6:
            return
    pytest.fail(f"{bps / 1e6:.1f} Mbit/s of 198")


def test_a_guest_that_writes_faster_than_the_link_stays_where_it_is(
    lab: Callable[..., str],
) -> None:
    name = lab("tooslow", rate="100Mbit", memory="32MiB", dirty_rate="200MB/s")
    result = move(name, "esx02", goal_ns=10_000_000)
    assert result["outcome"] == "failed"
    assert result["failure"]["phase"] == "pre-copy"
    assert "does not converge" in result["failure"]["cause"]
    assert len(result["engine"]["iterations"]) >= 2  # what was measured is not lost
    assert result["engine"]["iterations"][0]["pages"] == 8192
    assert result["engine"]["stun_ns"] is None
    assert still_running(name)
    run("migrate", "db01", "--to", "esx02", "--lab", name, "--switchover-goal", "20s",
        "--no-results")  # fmt: skip


def still_running(lab: str) -> bool:
    """Whether the guest writes on at esx01, reachable, and nothing is left at esx02."""
    state = vm(lab, "db01")
    assert state["host"] == "esx01"
    assert state["state"] == "running"
    deadline = time.monotonic() + 10
    while vm(lab, "db01")["counters"]["pages_written"] <= state["counters"]["pages_written"]:
        assert time.monotonic() < deadline
    run("ping", "--lab", lab, "client/eth0", "db01/eth0", "--count", "2")
    assert "db01" not in run("exec", lab, "esx02", "--", "ip", "-br", "link").stdout
    inside = netns.identity(f"tb.{lab}.esx02")
    there = [p for p in os.listdir("/proc") if p.isdigit() and _netns_of(p) == inside]  # noqa: PTH208
    names = sorted(Path(f"/proc/{p}/comm").read_text().strip() for p in there)
    assert names == ["agent-esx02", "vmx-client"]
    return True


def _netns_of(pid: str) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


def _vmx_at(lab: str, host: str, but: int) -> int:
    """The pid of the VMX that waits at a host for db01."""
    inside = netns.identity(f"tb.{lab}.{host}")
    for pid in os.listdir("/proc"):  # noqa: PTH208
        if pid.isdigit() and int(pid) != but and _netns_of(pid) == inside:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name == "vmx-db01":
                return int(pid)
    raise AssertionError("no VMX waits there")


@pytest.mark.parametrize("end", ["source", "destination"])
def test_one_end_dies_during_the_copy(lab: Callable[..., str], end: str) -> None:
    name = lab(f"dying-{end}", rate="100Mbit", memory="64MiB")
    source = vm(name, "db01")["vmx_pid"]
    killed = []

    def kill(event: dict[str, Any]) -> None:
        if event.get("phase") == "pre-copy" and not killed:
            killed.append(source if end == "source" else _vmx_at(name, "esx02", source))
            os.kill(killed[0], signal.SIGKILL)

    result = move(name, "esx02", on_event=kill)
    assert killed
    assert result["outcome"] == "failed"
    if end == "destination":
        assert still_running(name)
        # And it can still move.
        assert move(name, "esx02", goal_ns=10**10)["outcome"] == "completed"
    else:
        assert vm(name, "db01")["state"] == "failed"
        assert vm(name, "client")["state"] == "running"


def test_ctrl_c_leaves_the_guest_running_at_its_source(lab: Callable[..., str]) -> None:
    name = lab("cancelled", rate="100Mbit", memory="64MiB")
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed", "migrate", "db01", "--to", "esx02", "--no-results"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while vm(name, "db01")["state"] != "migrating":
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    while vm(name, "db01")["state"] == "migrating":
        assert time.monotonic() < deadline
    assert still_running(name)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["client gone", "destination killed"])
def test_whenever_it_is_disturbed_the_guest_is_on_one_side(
    lab: Callable[..., str], how: str
) -> None:
    """Disturbed at twelve points of a move of about a quarter of a second, up to its end."""
    name = lab("disturbed", memory="64MiB", rate="2Gbit")
    for delay_ms in range(20, 380, 30):
        before = vm(name, "db01")
        to = "esx02" if before["host"] == "esx01" else "esx01"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(LabDirectory(name).socket))
            lines = LineSocket(client)
            lines.send({"command": "migrate", "vm": "db01", "to": to, "verify": False,
                        "switchover_goal_ns": 10_000_000, "command_line": "test"})  # fmt: skip
            assert lines.receive(20)  # the first progress, or the result
            time.sleep(delay_ms / 1000)
            if how == "destination killed":
                with contextlib.suppress(AssertionError):
                    os.kill(_vmx_at(name, to, before["vmx_pid"]), signal.SIGKILL)
                while (said := lines.receive(30)) is None or "event" in said:
                    pass
        deadline = time.monotonic() + 20
        while (after := vm(name, "db01"))["state"] == "migrating" or _journal(name) != "up":
            assert time.monotonic() < deadline
        if after["state"] == "failed":  # it had arrived, and its VMX was killed there
            assert how == "destination killed"
            assert after["host"] == to
            up(topologies.loads(small_topology(name, memory="64MiB", rate="2Gbit"), "again"))
            continue
        assert after["state"] == "running"
        while vm(name, "db01")["counters"]["pages_written"] <= after["counters"]["pages_written"]:
            assert time.monotonic() < deadline
        run("ping", "--lab", name, "client/eth0", "db01/eth0", "--count", "1")


def _journal(lab: str) -> str:
    return Journal.read(LabDirectory(lab).journal).state


def test_what_may_not_move_is_refused_with_the_reason(lab: Callable[..., str]) -> None:
    name = lab("refused")
    for arguments, words in (
        (["ghost", "--to", "esx02"], "there is no VM 'ghost'"),
        (["db01", "--to", "esx09"], "there is no host 'esx09'"),
        (["db01", "--to", "esx01"], "runs on esx01 already"),
        (["db01", "--to", "esx02", "--switchover-goal", "5"], "--switchover-goal"),
    ):
        refused = run("migrate", *arguments, check=False)
        assert refused.returncode in (1, 2)
        assert words in refused.stderr
    assert vm(name, "db01")["host"] == "esx01"


def test_networks_without_a_way_between_them_are_told_at_once(tmp_path: Path) -> None:
    text = small_topology("apart").replace("192.168.20.[11-12]/24", "192.168.2[1,2].11/24")
    text = text.replace("{vMotion: {},", "{vMotion-1: {vlan: 21}, vMotion-2: {vlan: 22},")
    text = text.replace("portgroup: vMotion,", 'portgroup: "vMotion-[1,2]",')
    try:
        up(topologies.loads(text, "apart.yaml"))
        refused = run("migrate", "db01", "--to", "esx02", "--lab", "apart", check=False)
        assert refused.returncode == 1
        assert "vmk1 of esx01 (192.168.21.11/24)" in refused.stderr
        assert "gateway" in refused.stderr
        # And no throughput is made up for a path that there is not.
        iperf = run("iperf", "--lab", "apart", "esx01/vmk1", "esx02/vmk1", check=False)
        assert iperf.returncode == 1
        assert "unreachable" in iperf.stderr
    finally:
        down("apart")


def test_the_result_is_stored_with_its_whole_input(lab: Callable[..., str], tmp_path: Path) -> None:
    name = lab("stored")
    shown = run("migrate", "db01", "--to", "esx02", "--results", tmp_path / "results")
    assert "Stun" in shown.stdout
    (stored,) = (tmp_path / "results").glob("*.json")
    (page,) = (tmp_path / "results").glob("*.html")
    result = json.loads(stored.read_text())
    assert result["topology_text"] == small_topology(name)
    assert result["outcome"] == "completed"
    assert result["engine"]["stun_ns"] > 0
    assert result["engine"]["samples"]
    assert not re.search(r"(src|href)=|url\(|@import", page.read_text())  # self-contained
    assert "Stun" in run("report", stored).stdout


def test_a_move_over_a_router_and_by_ipv6(tmp_path: Path) -> None:
    text = Path("topologies/routed.yaml").read_text()
    found = topologies.loads(text, "routed.yaml")
    try:
        up(found)
        moved = found.vms[0]
        other = next(h.name for h in found.hosts if h.name != moved.host)
        result = request(
            LabDirectory(found.name),
            {
                "command": "migrate",
                "vm": moved.name,
                "to": other,
                "switchover_goal_ns": 500_000_000,
                "verify": True,
                "command_line": "test",
            },
            timeout_s=120,
        )
        assert result["outcome"] == "completed", result["failure"]
        assert result["verification"]["pages_different"] == 0
    finally:
        down(found.name)
