from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.report import store
from testbed.report.result import (
    SCHEMA_VERSION,
    EngineReport,
    Failure,
    Guest,
    Iteration,
    MigrationResult,
    Sample,
    StreamReport,
    Switchover,
    Verification,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NUMBERS = st.integers(0, 2**63)
TEXT = st.text(max_size=20)
OPTIONAL = st.none() | NUMBERS


def records(kind: type[Any], /, **given_fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    simple: dict[Any, st.SearchStrategy[Any]]
    simple = {int: NUMBERS, str: TEXT, bool: st.booleans()}
    hints = get_type_hints(kind)
    plain = {f.name: simple[hints[f.name]] for f in fields(kind) if hints[f.name] in simple}
    return st.builds(kind, **{**plain, **given_fields})


def some(kind: type[Any], least: int = 0) -> st.SearchStrategy[Any]:
    return st.lists(records(kind), min_size=least, max_size=3).map(tuple)


ENGINES = records(
    EngineReport,
    iterations=some(Iteration, 1),
    samples=some(Sample),
    streams=some(StreamReport),
    stun_ns=OPTIONAL,
    guest_gap_ns=OPTIONAL,
    switchover=st.none()
    | records(Switchover, bitmap=st.none() | st.sampled_from(["full", "compacted"])),
)
COMMON = {
    "schema_version": st.just(SCHEMA_VERSION),
    "kind": st.just("migration"),
    "scale_divisor": st.integers(1, 1000),
    "mechanisms": st.dictionaries(TEXT, TEXT, max_size=3),
    "guest": records(Guest),
    "verification": st.none() | records(Verification),
    "path_goodput_bps": OPTIONAL,
}
COMPLETED = records(
    MigrationResult, outcome=st.just("completed"), failure=st.none(), engine=ENGINES, **COMMON
)
FAILED = records(
    MigrationResult,
    outcome=st.just("failed"),
    failure=records(Failure),
    engine=st.none() | ENGINES,
    **COMMON,
)


@given(COMPLETED | FAILED)
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_what_is_written_is_read(tmp_path: Path, result: MigrationResult) -> None:
    assert store.read(store.write(result, tmp_path)) == result


RESULT = MigrationResult(
    schema_version=SCHEMA_VERSION,
    kind="migration",
    testbed_version="0.1.0",
    created="2026-01-31T12:00:00+00:00",
    command="testbed migrate db01 --to esx02",
    lab="quickstart",
    topology_file="quickstart.yaml",
    topology_text="name: quickstart",
    scale_divisor=1,
    kernel="Linux 6.18",
    mechanisms={"rate": "HTB"},
    source="esx01",
    destination="../../esx02",
    guest=Guest("db01", 2**30, 2, "uniform 100 MB/s in 256 MiB"),
    switchover_goal_ns=500_000_000,
    outcome="failed",
    failure=Failure("0", "link down"),
    engine=None,
    verification=None,
)


def test_a_name_tells_what_it_is_stays_in_its_folder_and_is_never_used_twice(
    tmp_path: Path,
) -> None:
    paths = [store.write(RESULT, tmp_path / "new" / "folder") for _ in range(3)]
    assert paths[0].parent == tmp_path / "new" / "folder"
    assert len(set(paths)) == 3
    assert paths[0].name.startswith("2026-01-31T120000+0000-db01-esx01-")
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)  # and no temporary file


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        store.write(RESULT, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_the_person_behind_sudo_owns_file_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "12346")
    path = store.write(RESULT, tmp_path / "reports")
    for made in (path, path.parent):
        assert (made.stat().st_uid, made.stat().st_gid) == (12345, 12346)
    assert tmp_path.stat().st_uid == 0


def set_version(found: dict[str, Any]) -> None:
    found["schema_version"] = SCHEMA_VERSION + 1


def test_a_result_of_version_2_is_read(tmp_path: Path) -> None:
    iteration = Iteration(-1, 1, 4096, 4200, 5, 6, 0, True)
    stream = StreamReport("10.0.0.1", "10.0.0.2", "cubic", 8948, 0, 100, 1, 2)
    engine = EngineReport((iteration,), (), (stream,), 1, 2, 3, 4, "pagemap", 5, 6)
    result = replace(RESULT, outcome="completed", failure=None, engine=engine)
    path = store.write(result, tmp_path)
    found = json.loads(path.read_text())
    found["schema_version"] = 2
    for key in ("switchover", "slowdowns", "encryption"):
        del found["engine"][key]
    for key in ("bytes", "most_in_flight_bytes", "window_bytes"):
        del found["engine"]["streams"][0][key]
    del found["engine"]["iterations"][0]["zero_pages"]
    path.write_text(json.dumps(found))
    assert store.read(path) == replace(result, schema_version=2)


def drop_guest(found: dict[str, Any]) -> None:
    del found["guest"]


def add_key(found: dict[str, Any]) -> None:
    found["guest"]["color"] = "red"


def float_for_int(found: dict[str, Any]) -> None:
    found["guest"]["vcpus"] = 2.0


def bool_for_int(found: dict[str, Any]) -> None:
    found["scale_divisor"] = True


def other_outcome(found: dict[str, Any]) -> None:
    found["outcome"] = "perhaps"


def contradiction(found: dict[str, Any]) -> None:
    found["outcome"] = "completed"


def null_text(found: dict[str, Any]) -> None:
    found["lab"] = None


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (set_version, "schema version 4, but this testbed reads 2 and 3"),
        (drop_guest, "lacks 'guest'"),
        (add_key, "result.guest has the unknown key 'color'"),
        (float_for_int, "result.guest.vcpus is 2.0"),
        (bool_for_int, "result.scale_divisor is True"),
        (other_outcome, "result.outcome is 'perhaps'"),
        (contradiction, "contradict"),
        (null_text, "result.lab is None"),
    ],
)
def test_a_file_that_was_changed_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], cause: str
) -> None:
    path = store.write(RESULT, tmp_path)
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match=cause) as raised:
        store.read(path)
    assert str(path) in str(raised.value)


def test_the_sum_of_several_migrations_is_no_result_of_one(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text('{"schema_version": 1, "kind": "migrations", "migrations": []}')
    with pytest.raises(InputError, match="give the results that it names"):
        store.read_any(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json"):
        store.read(path)
    with pytest.raises(InputError, match="can't be read"):
        store.read(tmp_path / "absent.json")
