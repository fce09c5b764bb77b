"""The words of `testbed vm NAME ...`: their forms, their options, workloads as KEY=VALUE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FORMS = {
    "workload": "workload KIND [KEY=VALUE ...] [+ KIND ...]",
    "throttle": "throttle 50%|off",
    "record": "record --for 10s [--interval 100ms] FILE",
    "feel": "feel [--for 10s] [--interval 10ms] [--from CLIENT]",
}
OPTIONS = {
    None: ("as_json",),
    "workload": ("as_json",),
    "throttle": (),
    "record": ("duration", "interval"),
    "feel": ("duration", "interval", "client", "late", "as_json"),
}
"""Which options a word takes, beside --lab."""


def refuse_options(context: click.Context, vm: str, word: str | None) -> None:
    """See that every option that was given means something with this word.

    Raises:
        InputError: one doesn't.
    """
    from testbed.errors import InputError

    taken = OPTIONS.get(word)
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if taken is None or name in {"vm", "words", "lab", *taken} or not given:
            continue
        words = [what for what, options in OPTIONS.items() if what and name in options]
        told = f"vm {vm} {word}" if word else f"vm {vm}"
        raise InputError(
            f"{told}: {option.opts[0]} means nothing here; leave it out"
            f" (it goes with {' and '.join(words)})"
        )


def written(words: tuple[str, ...]) -> list[dict[str, Any]]:
    """`oltp commits=500 + web` as the file would have it.

    Raises:
        InputError: a word is no KEY=VALUE.
    """
    from testbed.errors import InputError
    from testbed.topology.tree import resolve_scalar

    groups: list[list[str]] = [[]]
    for word in words:
        if word == "+":
            groups.append([])
        else:
            groups[-1].append(word)
    found = []
    for group in groups:
        if not group or "=" in group[0]:
            raise InputError(f"workload {' '.join(words)}: write {FORMS['workload']}")
        keys: dict[str, Any] = {"kind": group[0]}
        for word in group[1:]:
            key, equals, value = word.partition("=")
            if not equals or key in keys:
                what = "stands twice" if key in keys else "is not KEY=VALUE"
                raise InputError(f"workload {group[0]}: {word!r} {what}; write it like port=8080")
            # The file's trace stands in its directory, this one where the command is given.
            keys[key] = str(Path(value).absolute()) if key == "trace" else resolve_scalar(value)
        found.append(keys)
    return found
