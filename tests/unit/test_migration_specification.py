"""What both ends are told crosses between processes as JSON, and is refused if it can't be."""

from __future__ import annotations

import json

import pytest

from testbed.guest.specification import GuestSpec
from testbed.guest.trace import TraceMode
from testbed.guest.workloads import Writer
from testbed.migration.sdps import SdpsSpec
from testbed.migration.specification import MigrationSpec, StreamSpec

GUEST = GuestSpec("vm", 1 << 20, 1, (Writer("uniform", 10**6, 1 << 20),), affinity=(0, 1))


def spec(**changes):
    fields = {"migration_id": 1, "secret": bytes(range(32)), "guest": GUEST, **changes}
    return MigrationSpec(source_address="10.0.0.1", destination_address="10.0.0.2", **fields)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "streams": (StreamSpec("10.0.0.1", "10.0.0.2", "vmk1"), StreamSpec("fd::1", "fd::2")),
            "window_bytes": 263536,
            "cycles_per_byte": 1.5,
            "cycles_per_packet": 10000,
            "zero_pages": True,
            "bitmap": "compacted",
            "remaining_pages": "after resume",
            "sdps": SdpsSpec(400, 3_000_000),
            "quick_resume": True,
            "resume_file": "/datastore/vm/vm.resume",
            "encrypted": True,
            "downtime_limit_ns": 10**9,
            "deadline_ns": 10**12,
            "trace": TraceMode("loose", "1GiB"),
        },
    ],
    ids=["defaults", "everything"],
)
def test_it_is_the_same_at_the_other_end(changes):
    one = spec(**changes)
    assert MigrationSpec.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_key_that_nobody_knows_is_refused():
    with pytest.raises(TypeError, match="shape"):
        MigrationSpec.from_json(spec().to_json() | {"shape": "round"})


def test_without_streams_there_is_one():
    assert spec(source_device="vmk1").connections == (StreamSpec("10.0.0.1", "10.0.0.2", "vmk1"),)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_bytes": 0},
        {"downtime_limit_ns": -1},
        {"deadline_ns": 0},
        {"cycles_per_byte": -1.0},
        {"streams": (StreamSpec("10.0.0.1", "10.0.0.2"),) * 129},
    ],
    ids=str,
)
def test_limits_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must|allowed"):
        spec(**wrong)
