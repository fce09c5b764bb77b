"""A VM of which a part is in its swap file moves in a lab, and is verified there and on disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from testbed import topology as topologies
from testbed.lab.client import request
from testbed.lab.directory import LabDirectory
from testbed.lab.down import down
from testbed.lab.up import up
from tests.end_to_end.labs import small_topology

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

LAB = "overcommitted"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[None]:
    """Hosts of 64 MiB: one has 16 MiB left for a VM of 96, of which it has 48 in memory."""
    text = small_topology(LAB, memory="96MiB\n    reservation: 25%", dirty_rate="40MB/s")
    for old, new in (
        ("memory: 1GiB", "memory: 64MiB"),
        ("25%}", "90%}"),
        ("host: esx02", "host: esx01"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    up(topologies.loads(text, str(tmp_path / "overcommitted.yaml")))
    yield
    down(LAB)


def db01() -> dict[str, Any]:
    found = request(LabDirectory(LAB), {"command": "status"}, timeout_s=20)
    return next(dict(one) for one in found["vms"] if one["name"] == "db01")


def swap_ins() -> int:
    return int(db01()["counters"]["swap"]["swap_ins"])


def move(to: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"command": "migrate", "vm": "db01", "to": to, "command_line": "test"}
    asked |= {"switchover_goal_ns": 500_000_000, "verify": True}
    return request(LabDirectory(LAB), asked, timeout_s=60)


def test_an_overcommitted_vm_moves_there_and_back(lab: None) -> None:
    for to in ("esx02", "esx01"):
        before, deadline = swap_ins(), time.monotonic() + 20
        while swap_ins() < before + 500:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        result = move(to)
        assert result["outcome"] == "completed", result["failure"]
        assert result["verification"] == {
            "pages_compared": 24576,
            "pages_different": 0,
            "compared_by": "content",
        }
        switchover = result["engine"]["switchover"]
        assert switchover["swapped_pages"] > 10000
        assert switchover["swap_bitmap_bytes"] > 4 * switchover["swapped_pages"]
        assert result["engine"]["iterations"][0]["pages"] < 24576 - 10000
        after = db01()
        assert after["host"] == to
        assert after["counters"]["swap"]["swap_ins"] >= before + 500
