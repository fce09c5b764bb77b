"""Files written whole or not at all, owned by the person behind sudo."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from testbed.errors import InputError


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader sees all of it or what was there before.

    Raises:
        InputError: the place can't be written.
    """
    try:
        _write(path, text)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_new(directory: Path, stem: str, suffix: str, text: str) -> Path:
    """Writes a file under a name that nobody has: `stem`, `stem-2`, `stem-3` and so on.

    The name is reserved by an empty file, which the finished one then replaces.

    Raises:
        InputError: the directory can't be made or written.
    """
    number = 1
    path = directory / f"{stem}{suffix}"
    try:
        make_directory(directory)
        while True:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                break
            except FileExistsError:
                number += 1
                path = directory / f"{stem}-{number}{suffix}"
        try:
            _write(path, text)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _write(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            if (owner := sudo_owner()) is not None:
                os.fchown(file.fileno(), *owner)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_directory(directory: Path) -> None:
    """Make a folder for results, with those above it, owned by the caller of sudo.

    Raises:
        InputError: it can't be made, or nothing can be written in it.
    """
    try:
        _make(directory)
    except OSError as error:
        raise _unwritable(directory, error) from error
    if not os.access(directory, os.W_OK):
        raise InputError(f"{directory}: can't be written; choose another folder")


def _make(directory: Path) -> None:
    missing = [part for part in (directory, *directory.parents) if not part.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    if (owner := sudo_owner()) is not None:
        for part in missing:
            os.chown(part, *owner, follow_symlinks=False)


def sudo_owner() -> tuple[int, int] | None:
    """User and group of the person who called sudo; None if nobody did."""
    user, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() == 0 and user.isdecimal() and group.isdecimal():
        return int(user), int(group)
    return None


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: can't be written: {error.strerror}; choose another folder for the report"
    )
