#!/usr/bin/env python3
"""Writes docs/reference/ from the code: commands, topology file, result file, profiles, failures.

Run it with the project's Python: .venv/bin/python scripts/reference.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
FAILURES = ROOT / "tests" / "end_to_end" / "failure_table.py"
MADE = "<!-- made by scripts/reference.py: change the code, not this page -->\n"


def commands_page() -> str:
    """Every command's help."""
    import click

    from testbed.cli.main import COMMANDS, cli

    parts = [MADE, "# Commands\n"]
    for name in COMMANDS:
        context = click.Context(cli, info_name="testbed", **cli.context_settings)
        command = cli.get_command(context, name)
        if command is None:
            raise LookupError(name)
        inner = click.Context(command, info_name=name, parent=context, max_content_width=90)
        parts.append(f"## testbed {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    parts.append(
        "## Exit codes\n\n| code | meaning |\n|---|---|\n| 0 | done |\n| 1 | failed |\n"
        "| 2 | wrong input, or not root; nothing was touched |\n| 130 | interrupted |\n"
    )
    return "\n".join(parts)


def _type(schema: dict[str, Any]) -> str:
    """A schema's type in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_type(items)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"name: {_type(schema['additionalProperties'])}"
    return str(kind)


def _table(schema: dict[str, Any]) -> str:
    """The properties of an object as a table."""
    required = set(schema.get("required", []))
    rows = ["| key | value | | |", "|---|---|---|---|"]
    for key, value in schema.get("properties", {}).items():
        default = value.get("default")
        given = f"default `{default}`" if default not in (None, "", [], {}) else ""
        needed = "required" if key in required else given
        text = value.get("description", "").replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{key}` | {_type(value)} | {needed} | {text} |")
    return "\n".join(rows)


def schema_page(title: str, schema: dict[str, Any]) -> str:
    """A JSON Schema as tables, the root first."""
    parts = [MADE, f"# {title}\n", schema.get("description", ""), "", _table(schema), ""]
    for name, inner in sorted(schema.get("$defs", {}).items()):
        parts += [f"## {name}\n", inner.get("description", ""), ""]
        if "properties" in inner:
            parts += [_table(inner), ""]
    return "\n".join(part.rstrip() for part in parts) + "\n"


def profiles_page() -> str:
    """The keys of a profile, and what each generation has."""
    from testbed import profiles
    from testbed.profiles.keys import KEYS

    parts = [MADE, "# Profiles of vMotion's generations\n"]
    parts.append("`testbed profile NAME` says of each value how it is known.\n")
    found = [profiles.load(name) for name in profiles.names()]
    heads = [one.name for one in found]
    for first in range(0, len(found), 6):
        some = found[first : first + 6]
        parts.append("| key | " + " | ".join(heads[first : first + 6]) + " |")
        parts.append("|---" * (len(some) + 1) + "|")
        for name, key in KEYS.items():
            cells = " | ".join(key.show(getattr(one, key.field)) for one in some)
            parts.append(f"| `{name}` | {cells} |")
        parts.append("")
    parts += [
        "## Keys of a profile of your own\n",
        "| key | such as | what it is |",
        "|---|---|---|",
    ]
    parts.append("| `inherits` | `vsphere-7.0`, `ours.yaml` | the profile that says the rest |")
    parts += [f"| `{name}` | `{key.example}` | {key.meaning} |" for name, key in KEYS.items()]
    return "\n".join(parts) + "\n"


def failures_page() -> str:
    """What each fault does in each phase of a migration: the table that the tests prove."""
    spec = importlib.util.spec_from_file_location("failure_table", FAILURES)
    if spec is None or spec.loader is None:
        raise LookupError(FAILURES)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    cells = {(cell.phase, cell.fault): cell for cell in table.CELLS}
    parts = [MADE, f"# {table.TITLE}\n", table.ABOUT]
    parts.append("| fault | " + " | ".join(table.PHASES) + " |")
    parts.append("|---" * (len(table.PHASES) + 1) + "|")
    for fault in table.FAULTS:
        row = [cells.get((phase, fault)) for phase in table.PHASES]
        parts.append(
            f"| {fault} | " + " | ".join(cell.guest if cell else "" for cell in row) + " |"
        )
    parts += ["", "| fault | what happens |", "|---|---|"]
    parts += [f"| {fault} | {meaning} |" for fault, meaning in table.FAULTS.items()]
    for phase, meaning in table.PHASES.items():
        parts += [f"\n## {phase}\n", f"{meaning[0].upper()}{meaning[1:]}.\n"]
        parts += ["| fault | migration | guest | what is said |", "|---|---|---|---|"]
        for cell in (cell for cell in table.CELLS if cell.phase == phase):
            named = f"{cell.named}: " if cell.named else ""
            says = f'{named}"{cell.says[0]} ..."' if cell.says else ""
            parts.append(f"| {cell.fault} | {cell.outcome} | {cell.guest} | {says} |")
    return "\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """File names and texts."""
    from pydantic import TypeAdapter

    from testbed import topology
    from testbed.report.observed import LogResult
    from testbed.report.result import MigrationResult

    return {
        "commands.md": commands_page(),
        "topology.md": schema_page("The topology file", topology.json_schema()),
        "profiles.md": profiles_page(),
        "failures.md": failures_page(),
        "result.md": schema_page(
            "The result file of a migration", TypeAdapter(MigrationResult).json_schema()
        ),
        "log-result.md": schema_page(
            "The result file of a host's log", TypeAdapter(LogResult).json_schema()
        ),
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file_name, text in pages().items():
        (FOLDER / file_name).write_text(text, encoding="utf-8")
        print(f"wrote docs/reference/{file_name}")
