"""A VM's program: what its vCPUs build their tasks from, as text that can be handed on."""

from __future__ import annotations

import json

from testbed.guest.specification import GuestSpec


def encode(spec: GuestSpec) -> bytes:
    """As JSON."""
    return json.dumps(spec.to_json(), separators=(",", ":")).encode()


def decode(text: bytes) -> GuestSpec:
    """What `encode` made."""
    return GuestSpec.from_json(json.loads(text))
