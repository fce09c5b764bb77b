"""What isn't built yet is refused with its reason, not accepted and not called unknown."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from testbed.errors import TopologyError
from testbed.topology import later, loads, never


def nested(shape: never.Shape, value: object) -> Any:
    """A file that holds only the key at this shape."""
    if not shape:
        return value
    first, rest = shape[0], shape[1:]
    if first == "*":
        return {"vmnic0": nested(rest, value)}
    inner = nested(rest, value)
    if first == "links" or (first == "nics" and value == "in a VM"):
        inner = [next(iter(inner.values()))]
    return {first: inner}


def refusals(text: str) -> list[str]:
    with pytest.raises(TopologyError) as error:
        loads(text, "f")
    return [str(p) for p in error.value.problems if "not built yet" in p.message]


@pytest.mark.parametrize("shape", never.KEYS, ids=".".join)
def test_a_key_in_the_wrong_place_is_refused_with_its_reason(shape: never.Shape) -> None:
    value = "in a VM" if shape[0] == "vms" else 1
    with pytest.raises(TopologyError) as error:
        loads(yaml.safe_dump({"name": "x", **nested(shape, value)}), "f")
    reason, remedy = never.KEYS[shape]
    (refusal,) = [p for p in error.value.problems if p.message == reason]
    assert refusal.remedy == remedy
    assert refusal.where.endswith(shape[-1])
    assert not any("unknown key" in p.message for p in error.value.problems)


@pytest.mark.parametrize("kind", later.WORKLOADS)
def test_a_workload_to_come_is_refused_with_its_reason(kind: str) -> None:
    (refusal,) = refusals(f"name: x\nvms: {{v: {{workload: {{kind: {kind}}}}}}}")
    assert kind in refusal
    assert later.WORKLOADS[kind] in refusal
