"""Changes of links that overlap: each is taken back alone, and `apply` takes back all."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from .labs import run, small_topology

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

TEXT = """\
name: relink
switches: {t1: {}, t2: {}}
links: [{between: [t1, t2], rate: 1Gbit, rtt: 4ms}]
hosts:
  h1:
    cpu: {cores: 1}
    memory: 1GiB
    nics: {vmnic0: {switch: t1, rate: 1Gbit}, vmnic1: {switch: t2, rate: 1Gbit}}
    vswitches:
      v0: {uplinks: [vmnic0], portgroups: {A: {}}}
      v1: {uplinks: [vmnic1], portgroups: {B: {}}}
    vmks:
      vmk0: {portgroup: A, ip: 10.0.5.1/24, services: [management]}
      vmk1: {portgroup: B, ip: 10.0.5.2/24, services: [vmotion]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "relink.yaml"
    path.write_text(TEXT)
    try:
        run("up", path)
        yield path
    finally:
        with suppress(AssertionError):
            run("down", "relink")


def timed(*words: str) -> subprocess.Popen[str]:
    """A change that is taken back after 8 s."""
    return subprocess.Popen(
        [sys.executable, "-m", "testbed", "link", "relink", *words, "--for", "8s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def differences(file: Path) -> list[str]:
    """What `apply` of the file would change."""
    return [line for line in run("plan", file).stdout.splitlines() if line.startswith(("~", "+"))]


def states() -> set[str]:
    """Whether both ends of the link between the switches have a carrier."""
    links = json.loads(run("status", "relink", "--json").stdout)["links"]
    ends = {("t1", "t2"), ("t2", "t1")}
    return {
        "up" if link["running"] else "down"
        for link in links
        if (link["node"], link["name"]) in ends
    }


def wait_for(file: Path, *words: str) -> None:
    """Until each has been seen to be changed."""
    missing = set(words)
    for _ in range(100):
        seen = " ".join(differences(file))
        missing -= {word for word in missing if word in seen}
        if not missing:
            return
    raise AssertionError(f"{missing} was not changed")


def test_a_timed_change_takes_back_nothing_but_itself(file: Path) -> None:
    with (
        timed("t1", "t2", "--rtt", "20ms") as far,
        timed("h1/vmnic0", "t1", "--rate", "300Mbit") as a,
    ):
        wait_for(file, "delay line", "vmnic0")
        run("link", "relink", "h1/vmnic1", "t2", "--rate", "500Mbit")
        run("link", "relink", "t1", "t2", "--rate", "400Mbit")
        for change in (far, a):
            said, _ = change.communicate(timeout=30)
            assert change.returncode == 0, said
    left = " ".join(differences(file))
    assert "vmnic0" not in left
    assert "delay line" not in left
    assert left.count("HTB 1 Gbit/s") == 4  # both ends of vmnic1's cable, and of the link
    rates = run("status", "relink").stdout
    assert (rates.count("500 Mbit/s"), rates.count("400 Mbit/s")) == (2, 2)
    # The journal says the same: a new supervisor knows of what lasts, and `apply` ends it.
    run("apply", file)
    assert not differences(file)


def test_a_link_that_is_cut_stays_so_when_it_is_made_anew(file: Path) -> None:
    file.write_text(TEXT.replace(", rtt: 4ms", ""))
    run("apply", file)
    run("link", "relink", "t1", "t2", "--down")
    assert "delay line" in run("link", "relink", "t1", "t2", "--rtt", "6ms").stdout
    assert "down" in states()
    run("link", "relink", "t1", "t2", "--up")
    assert "down" not in states()


def test_a_result_says_what_was_changed_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "byhand.yaml"
    file.write_text(small_topology("byhand"))
    run("up", file)
    try:
        run("link", "byhand", "esx01/vmnic0", "tor", "--rate", "5Gbit")
        words = ("migrate", "db01", "--lab", "byhand", "--results", tmp_path)
        run(*words, "--to", "esx02")
        (result,) = [json.loads(one.read_text()) for one in tmp_path.glob("**/*.json")]
        wanted = "not as in the file: esx01/vmnic0 - tor: 5 Gbit/s"
        assert [one for one in result["notices"] if "esx01/vmnic0" in one] == [wanted]
    finally:
        run("down", "byhand")
