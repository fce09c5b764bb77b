"""What a guest feels is measured wherever it goes, and told with the migration's result."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from testbed import topology as topologies
from testbed.lab.down import down
from testbed.lab.up import up
from testbed.report import store
from tests.end_to_end.labs import run, small_topology

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.measure.series import Series
    from testbed.report.felt import Felt
    from testbed.report.result import MigrationResult

pytestmark = pytest.mark.root

LAB = "feeling"
COMMITS = 500
DOES = (
    f"[{{kind: oltp, commits: {COMMITS}, working_set: 10%}},"
    " {kind: web, file: 1MiB}, {kind: media, rate: 4Mbit}, {kind: echo}, {kind: ping}]"
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    text = small_topology(LAB)
    written = "{kind: uniform, dirty_rate: 20MB/s, working_set: 25%}"
    assert written in text
    up(topologies.loads(text.replace(written, DOES), str(tmp_path / "x.yaml")))
    yield LAB
    down(LAB)


def migrate(to: str, folder: Path, *options: str) -> tuple[MigrationResult, str, str]:
    """A migration as a user starts it: the result that is stored, the page, what was printed."""
    done = run("migrate", "db01", "--lab", LAB, "--to", to, "--results", folder, *options)
    (stored,) = folder.glob("*.json")
    return store.read(stored), stored.with_suffix(".html").read_text(), done.stdout


def course(felt: Felt, name: str) -> Series:
    return next(line for line in felt.series if line.name == name)


def area(line: Series) -> float:
    return sum(
        value * (later - at) / 1e9
        for (at, later), value in zip(pairwise(line.at_ns), line.values, strict=False)
    )


def test_a_migration_is_felt_inside_and_outside(lab: str, tmp_path: Path) -> None:
    result, html, printed = migrate("esx02", tmp_path, "--probe", "5ms", "--from", "client")
    assert result.outcome == "completed"
    assert result.engine is not None
    felt = result.felt
    assert felt is not None
    assert felt.troubles == ()
    guest, ping = felt.guest, felt.ping
    assert guest is not None
    oltp = next(one for one in guest.workloads if one.name == "oltp")
    # The counters went along, and are counted once.
    window_s = (guest.until_ns - guest.from_ns) / 1e9
    assert 0.1 * COMMITS * window_s < oltp.operations < 1.5 * COMMITS * window_s
    assert oltp.before
    assert 0.1 * COMMITS < oltp.usual_per_s < 1.5 * COMMITS
    assert area(course(felt, "oltp commits").window(guest.from_ns, guest.until_ns + 1)) == (
        pytest.approx(oltp.operations, abs=5)
    )
    # It stood still for the stun, and says so itself.
    assert result.engine.stun_ns is not None
    assert result.engine.guest_gap_ns is not None
    assert oltp.halt_ns is not None
    # vCPUs stop one after another: while one stands still the other may still commit.
    assert 10 * oltp.halt_ns >= min(vcpu.stopped_ns for vcpu in guest.vcpus) > 0
    longest = max(vcpu.longest_gap_ns for vcpu in guest.vcpus)
    assert longest >= result.engine.guest_gap_ns
    # A second before and a second after, pings and sessions from elsewhere.
    assert guest.interval_ns == 5_000_000
    assert course(felt, "oltp commits").at_ns[0] <= -900_000_000
    assert ping is not None
    assert ping.by_guest
    assert ping.sent == ping.received + ping.late + ping.lost
    assert ping.sent >= 40
    assert ping.received > 0
    assert {one.service for one in felt.sessions} == {"web", "media", "echo"}
    for session in felt.sessions:
        assert session.trouble is None
        assert session.received_bytes > 0
        assert session.longest_gap_ns > 0
    assert "What the guest felt" in html
    assert "The guest felt" in printed


def test_each_migration_is_felt_a_little_unless_it_is_not_to_be(lab: str, tmp_path: Path) -> None:
    for options, words in (
        (("--from", "nobody"), "nobody"),
        (("--from", "db01"), "it is the VM itself"),
        (("--probe", "1us"), "1ms to 1s"),
    ):
        refused = run("migrate", "db01", "--lab", lab, "--to", "esx02", "--no-results", *options,
                      check=False)  # fmt: skip
        assert refused.returncode == 2
        assert words in refused.stderr
    felt = migrate("esx02", tmp_path / "felt")[0].felt
    assert felt is not None
    assert felt.guest is not None
    assert felt.guest.interval_ns == 10_000_000
    assert felt.guest.workloads[0].operations > 0
    assert all(vcpu.stopped_ns > 0 for vcpu in felt.guest.vcpus)
    assert felt.ping is None
    assert migrate("esx01", tmp_path / "not", "--probe", "off")[0].felt is None


def test_a_vm_is_felt_through_a_migration_that_another_starts(lab: str, tmp_path: Path) -> None:
    feeling = subprocess.Popen(
        [sys.executable, "-m", "testbed", "vm", "db01", "feel", "--lab", lab, "--for", "3s",
         "--from", "client", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert migrate("esx02", tmp_path, "--probe", "off")[0].outcome == "completed"
    out, _ = feeling.communicate(timeout=60)
    assert feeling.returncode == 0
    felt: dict[str, Any] = json.loads(out)
    assert felt["troubles"] == []
    assert all(vcpu["stopped_ns"] > 0 for vcpu in felt["guest"]["vcpus"])
    commits = next(line for line in felt["series"] if line["name"] == "oltp commits")
    assert sum(commits["values"][-20:-1]) > 0  # it is felt at its new host
    assert felt["ping"]["received"] > 0
    assert len(felt["sessions"]) == 3
