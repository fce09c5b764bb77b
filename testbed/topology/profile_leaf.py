"""The key `profile`: a name, a path, or a profile of one's own; and how editors see it."""

from typing import Any

from testbed import profiles
from testbed.profiles.keys import KEYS
from testbed.topology.leaf import Leaf
from testbed.topology.node import Node
from testbed.topology.problems import Refusal, shown


def _parse(value: object) -> str | Node:
    """The name or path; a mapping stays as it is, to be read when the file's place is known."""
    if isinstance(value, Node):
        return value
    if not isinstance(value, str):
        raise Refusal(f"{shown(value)} is not a profile", "write a name, such as vsphere-7.0")
    if not profiles.is_path(value) and value not in profiles.names():
        known = ", ".join(profiles.names())
        raise Refusal(f"there is no profile {shown(value)}", f"there are {known}, or a .yaml file")
    return value


def _schema() -> dict[str, Any]:
    keys = {
        name: {"description": key.meaning, "examples": [key.example]} for name, key in KEYS.items()
    }
    inherits = {"type": "string", "description": "the profile that says the rest"}
    own = {
        "type": "object",
        "properties": {"inherits": inherits, **keys},
        "required": ["inherits"],
        "additionalProperties": False,
    }
    name = {"type": "string", "enum": list(profiles.names())}
    path = {"type": "string", "pattern": r"\.ya?ml$"}
    return {"anyOf": [name, path, own], "examples": ["vsphere-7.0"]}


PROFILE = Leaf(_parse, _schema(), "a profile such as vsphere-7.0", takes_mapping=True)
