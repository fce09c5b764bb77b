"""The store: one JSON file per result, with its schema version, checked when read."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from testbed.errors import InputError
from testbed.report.felt import Felt
from testbed.report.files import write_new
from testbed.report.observed import LOG_SCHEMA_VERSION, LogResult
from testbed.report.result import READABLE_VERSIONS, MigrationResult

LARGEST_FILE_BYTES = 256 << 20
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+-]+")


def write(result: MigrationResult | LogResult, directory: Path | str) -> Path:
    """Stores a result under a new name, such as `2026-01-31T120000-db01-esx01-esx02.json`.

    Never overwrites; the file is whole or not there, and belongs to the caller of sudo.

    Raises:
        InputError: the directory can't be written.
    """
    time = result.created.replace(":", "")
    if isinstance(result, LogResult):
        parts = (time, "log", str(result.observed.migration_id))
    else:
        parts = (time, result.guest.name, f"{result.source}-{result.destination}")
    stem = "-".join(NOT_IN_NAMES.sub("_", part) for part in parts)[:200].lstrip(".")
    text = json.dumps(asdict(result), indent=2, allow_nan=False) + "\n"
    return write_new(Path(directory), stem, ".json", text)


def read(path: Path | str) -> MigrationResult:
    """The result of a migration in a file that `write` made.

    Raises:
        InputError: the file isn't there, is no result, is damaged, or has another schema.
    """
    return from_json(_parsed(Path(path)), str(path))


def read_any(path: Path | str) -> MigrationResult | LogResult:
    """The result of a migration or of a host's log in a file that `write` made.

    Raises:
        InputError: as `read`.
    """
    found = _parsed(Path(path))
    if isinstance(found, dict) and found.get("kind") == "esxi-log":
        return log_from_json(found, str(path))
    if isinstance(found, dict) and found.get("kind") == "migrations":
        raise InputError(f"{path}: the sum of several migrations; give the results that it names")
    return from_json(found, str(path))


def _parsed(path: Path) -> object:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise InputError(f"{path}: larger than any result; give a file that migrate wrote")
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}; give a result file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); give a file that migrate wrote") from error
    return found


def from_json(found: object, where: str) -> MigrationResult:
    """A result from parsed JSON, checked as a file is; `where` it came from begins the messages.

    Raises:
        InputError: it is no result, is damaged, or has another schema.
    """
    version = found.get("schema_version") if isinstance(found, dict) else None
    if type(version) is not int or version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise InputError(
            f"{where}: schema version {version!r}, but this testbed reads {readable}; "
            "read it with the testbed that wrote it (see its testbed_version)"
        )
    try:
        result = _value(MigrationResult, found, "result")
        _require_sense(result)
    except ValueError as error:
        raise InputError(f"{where}: {error}; it was changed or damaged, migrate again") from error
    assert isinstance(result, MigrationResult)
    return result


def log_from_json(found: object, where: str) -> LogResult:
    """The result of a host's log, from parsed JSON, checked likewise.

    Raises:
        InputError: it is none, is damaged, or has another schema.
    """
    version = found.get("schema_version") if isinstance(found, dict) else None
    if type(version) is not int or version != LOG_SCHEMA_VERSION:
        raise InputError(
            f"{where}: schema version {version!r} of a log's result, but this testbed reads "
            f"{LOG_SCHEMA_VERSION}; parse the log again"
        )
    try:
        result = _value(LogResult, found, "result")
    except ValueError as error:
        raise InputError(
            f"{where}: {error}; it was changed or damaged, parse the log again"
        ) from error
    assert isinstance(result, LogResult)
    return result


def felt_from_json(found: object, where: str) -> Felt:
    """What was felt, from parsed JSON, checked likewise.

    Raises:
        InputError: it is damaged.
    """
    try:
        felt = _value(Felt, found, "felt")
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    assert isinstance(felt, Felt)
    return felt


def _value(kind: Any, found: Any, where: str) -> Any:  # noqa: C901
    """`found` as the annotated type `kind`; strict: an int is no float, a bool no int."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _record(kind, found, where)
    if origin in (Union, UnionType):  # X | None; with a Literal it is typing's own
        if found is None:
            return None
        (kind,) = (part for part in arguments if part is not NoneType)
        return _value(kind, found, where)
    if origin is tuple:
        if isinstance(found, list):
            return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(found))
        raise ValueError(f"{where} is not a list")
    if origin is dict:
        if isinstance(found, dict):
            return {key: _value(arguments[1], v, f"{where}.{key}") for key, v in found.items()}
        raise ValueError(f"{where} is not an object")
    if origin is Literal:
        if found in arguments and isinstance(found, str):
            return found
        raise ValueError(f"{where} is {found!r}, not one of {', '.join(map(repr, arguments))}")
    if type(found) is not kind:
        raise ValueError(f"{where} is {found!r}, not of type {kind.__name__}")
    return found


def _record(kind: Any, found: Any, where: str) -> Any:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not an object")
    hints = _hints(kind)
    if unknown := sorted(found.keys() - hints.keys()):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}")
    required = {f.name for f in fields(kind) if f.default is f.default_factory is MISSING}
    if missing := sorted(required - found.keys()):
        raise ValueError(f"{where} lacks {missing[0]!r}")
    return kind(**{key: _value(hints[key], v, f"{where}.{key}") for key, v in found.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _require_sense(result: MigrationResult) -> None:
    """What types don't say.

    Raises:
        ValueError: the parts contradict one another.
    """
    if (result.outcome == "failed") != (result.failure is not None):
        raise ValueError("result.outcome and result.failure contradict one another")
    # A source that ended once the guest had moved could not tell what it had measured.
    measured = result.engine
    if result.outcome == "completed" and measured is not None and not measured.iterations:
        raise ValueError("result.engine has no iterations, though the migration completed")
    if result.scale_divisor < 1:
        raise ValueError("result.scale_divisor is below 1")
