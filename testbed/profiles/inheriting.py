"""Profiles from their names or files: each takes over what it doesn't say itself."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources
from os.path import normpath
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

from testbed.errors import InputError, Problem, TopologyError
from testbed.profiles.keys import KEYS
from testbed.profiles.profile import Profile
from testbed.profiles.reading import INHERITS, MAX_CHARACTERS, Entry, Layer, compose, read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT = "unlimited"
_NAMES = (
    DEFAULT,
    "esx-3.5",
    "esx-4.0",
    "esx-4.1",
    "vsphere-5.0",
    "vsphere-5.5",
    "vsphere-6.0",
    "vsphere-6.5",
    "vsphere-6.7",
    "vsphere-7.0",
    "vsphere-8.0",
)
MOST_LAYERS = 32


def names() -> tuple[str, ...]:
    """The profiles that there are: the default one, then by generation."""
    return _NAMES


def is_path(name: str) -> bool:
    """Whether a name means a file of the user's own."""
    return name.endswith((".yaml", ".yml"))


def load(name_or_path: str, read_file: Callable[[str], str] | None = None) -> Profile:
    """A profile by its name, or from a YAML file.

    Args:
        name_or_path: one of `names()`, or a path that ends in .yaml.
        read_file: gives the text of a file by its path; without it files are read.

    Raises:
        InputError: there is no such profile, or its file can't be read.
        TopologyError: a file has mistakes; it carries them with their places.
    """
    name = normpath(name_or_path) if is_path(name_or_path) else name_or_path
    read_file = read_file or _text
    return _resolved(_layer(name, read_file), name, read_file)


def own(
    entries: Mapping[str, Entry], file: str, read_file: Callable[[str], str] | None = None
) -> Profile:
    """A profile that is written within another file, such as a topology.

    Args:
        entries: its keys and values.
        file: what messages call that file.
        read_file: as `load`.

    Raises:
        InputError, TopologyError: as `load`.
    """
    inherited = entries.get(INHERITS)
    base = inherited.value if inherited is not None else None
    name = f"{base}, changed" if isinstance(base, str) else "own"
    return _resolved(read(entries, name, file), None, read_file or _text)


def _layer(name: str, read_file: Callable[[str], str]) -> Layer:
    """One file.

    Raises:
        InputError, TopologyError: as `load`.
    """
    if is_path(name):
        text, file = read_file(name), name
        own_name = PurePosixPath(name).stem
    else:
        known = names()
        if name not in known:
            raise InputError(
                f"there is no profile {name[:60]!r}; there are {', '.join(known)},"
                " or name a file of your own, such as mine.yaml"
            )
        file, own_name = f"{name}.yaml", name
        source = resources.files("testbed.profiles") / "data" / file
        text = source.read_text(encoding="utf-8")
    root = compose(text, file)
    assert root.value is not None
    assert not isinstance(root.value, str)
    return read(root.value, own_name, file)


def _resolved(first: Layer, where: str | None, read_file: Callable[[str], str]) -> Profile:
    """The first layer over all that it inherits; `where` is its own name, None within a file."""
    layers = [first]
    seen = {where}
    while (base := layers[-1].inherits) is not None:
        last = layers[-1]
        if where is not None and is_path(where) and is_path(base):
            base = normpath(PurePosixPath(where).parent / base)
        if base in seen:
            how = "let one of them inherit a profile such as vsphere-7.0"
            raise _at_inherits(last, f"{base} inherits this one again, in a circle", how)
        if len(layers) == MOST_LAYERS:
            raise _at_inherits(last, f"more than {MOST_LAYERS} profiles in a row", "inherit fewer")
        where = base
        seen.add(base)
        try:
            layers.append(_layer(base, read_file))
        except TopologyError:
            raise
        except InputError as error:
            message, _, remedy = str(error).rpartition("; ")
            raise _at_inherits(last, message, remedy) from error
    values = {key: value for layer in reversed(layers) for key, value in layer.values.items()}
    origins = {key: value for layer in reversed(layers) for key, value in layer.origins.items()}
    missing = [name for name, key in KEYS.items() if key.field not in values]
    if missing:
        last = layers[-1]
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        problem = Problem(
            last.file, 1, 1, "", f"{some} missing", f"add {INHERITS}: {DEFAULT}, or all of them"
        )
        raise TopologyError((problem,))
    ordered = {one.name: origins[one.name] for one in fields(Profile) if one.name in origins}
    return Profile(name=first.name, **values, sources=MappingProxyType(ordered))


def _at_inherits(layer: Layer, message: str, remedy: str) -> TopologyError:
    return TopologyError((Problem(layer.file, *layer.inherits_at, INHERITS, message, remedy),))


def _text(name: str) -> str:
    path = Path(name)
    try:
        if not path.is_file() or path.stat().st_size > 4 * MAX_CHARACTERS:
            raise InputError(f"{name} is no file that could be a profile; check the path")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{name} can't be read: {error.strerror}; check its path") from error
    except ValueError as error:
        raise InputError(f"{name} is not text; save the file as UTF-8") from error
