"""Teams after `testbed apply`: ports that were made anew or whose uplinks have other numbers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from .labs import run, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

TEXT = """\
name: reteam
switches: {t1: {}, t2: {}}
links: [{between: [t1, t2]}]
distributed_switches:
  DS:
    uplinks: [u1, u2]
    portgroups:
      First: {teaming: {policy: explicit, active: [u1], standby: [u2]}}
      Second: {teaming: {policy: explicit, active: [u2], standby: [u1]}}
hosts:
  "h[1-2]":
    cpu: {cores: 1}
    memory: 1GiB
    nics:
      vmnic0: {switch: t1, uplink: DS/u1}
      vmnic1: {switch: t2, uplink: DS/u2}
    vmks:
      vmk0: {portgroup: First, ip: "10.0.5.[1-2]/24", services: [management]}
      vmk1: {portgroup: Second, ip: "10.0.6.[1-2]/24", services: [vmotion]}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    def write(text: str) -> Path:
        file = tmp_path / "reteam.yaml"
        file.write_text(text)
        return file

    try:
        run("up", write(TEXT))
        yield write
    finally:
        with suppress(AssertionError):
            run("down", "reteam")


def reaches(vmk: str) -> bool:
    """Whether the hosts' adapters of that name talk."""
    words = ("ping", f"h1/{vmk}", f"h2/{vmk}", "--lab", "reteam", "-c", "3")
    return run(*words, check=False).returncode == 0


def uplink(host: str, port: str) -> str:
    """The uplink that a port is pinned to, by the status."""
    teams = status("reteam")["teams"]
    return next(
        t["uplink"] for t in teams if (t["netns"], t["port"]) == (f"tb.reteam.{host}", port)
    )


def test_a_port_that_was_made_anew_fails_over(lab: Callable[[str], Path]) -> None:
    other = TEXT.replace("[management]", '[management], mac: "02:00:00:00:00:0[1-2]"')
    assert other != TEXT
    run("apply", lab(other))
    assert reaches("vmk0")
    run("link", "reteam", "h1/vmnic0", "t1", "--down")
    assert uplink("h1", "vmk0-port") == "vmnic1"
    assert reaches("vmk0")


def test_a_port_leaves_by_the_uplink_that_remains(lab: Callable[[str], Path]) -> None:
    run("link", "reteam", "h1/vmnic0", "t1", "--down")  # so that vmk0's uplink isn't its first
    one = (
        TEXT.replace("uplinks: [u1, u2]", "uplinks: [u2]")
        .replace("      vmnic0: {switch: t1, uplink: DS/u1}\n", "")
        .replace("active: [u1], standby: [u2]", "active: [u2]")
        .replace("active: [u2], standby: [u1]", "active: [u2]")
    )
    run("apply", lab(one))
    assert reaches("vmk0")
    assert reaches("vmk1")
    assert "pinned" not in run("iochain", "reteam", "h1/vmk1").stderr
    run("apply", lab(TEXT))
    assert reaches("vmk0")
    assert uplink("h1", "vmk1-port") == "vmnic1"
    assert reaches("vmk1")


def test_an_uplink_that_gets_another_number_is_left_by_all_the_same(
    lab: Callable[[str], Path],
) -> None:
    swapped = TEXT.replace("uplinks: [u1, u2]", "uplinks: [u2, u1]")
    run("apply", lab(swapped))
    for vmk, nic in (("vmk0", "vmnic0"), ("vmk1", "vmnic1")):
        assert uplink("h1", f"{vmk}-port") == nic
        run("link", "reteam", "h1/" + nic, "t1" if nic == "vmnic0" else "t2", "--down")
        assert reaches(vmk)
        run("link", "reteam", "h1/" + nic, "t1" if nic == "vmnic0" else "t2", "--up")
        assert f"pinned to {nic}" in run("iochain", "reteam", f"h1/{vmk}").stdout
