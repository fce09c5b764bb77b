"""Whatever a file holds: a topology, or an error of ours that says where."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from testbed.errors import InputError, TopologyError
from testbed.topology import json_schema, loads

KEYS = sorted(
    {k for model in json_schema()["$defs"].values() for k in model["properties"]}
    | set(json_schema()["properties"])
    | {"esx01", "esx[01-02]", "vmk0", "vmnic0", "tor", "rtt", "", "a/b"}
)
WORDS = ["esx01", "esx[01-02]", "tor", "10Gbit", "1GiB", "20%", "10.0.0.[1-2]/24", "fd00::1/64"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(WORDS),
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=40,
)
FILES = st.fixed_dictionaries(
    {"name": st.just("x")},
    optional={key: DATA for key in sorted(json_schema()["properties"]) if key != "name"},
)


def judge(text: str) -> None:
    refusal: InputError | None = None
    try:
        loads(text, "f")
    except InputError as error:
        refusal = error
    if isinstance(refusal, TopologyError):
        lines = text.count("\n") + 1 + len(re.findall("[\r\x85\u2028\u2029]", text))
        assert refusal.problems
        for problem in refusal.problems:
            assert 1 <= problem.line <= lines + 1
            assert problem.column >= 1
            assert "\n" not in str(problem)
    else:
        assert "\n" not in str(refusal)


@settings(deadline=None)
@given(st.text())
@example("\ud800")
@example("a: !")
@example("%YAML 9.9\n---\na")
@example("? ? ? a")
@example("name: !!binary x")
@example("\ufeffname: x")
def test_any_text(text: str) -> None:
    judge(text)


@settings(deadline=None)
@given(st.text(":-[]{},&*!|>'\"%@#?ab \n\t", max_size=80))
def test_any_text_of_yamls_characters(text: str) -> None:
    judge(text)


@given(FILES | DATA)
@settings(max_examples=300, deadline=None)
def test_any_nested_data(data: object) -> None:
    judge(json.dumps(data))


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [path] + [p for key, below in items for p in places(below, (*path, key))]


LABS = [
    yaml.safe_load(path.read_text().replace("1/10", '"1/10"'))
    for path in sorted((Path(__file__).parents[2] / "topologies").glob("*.yaml"))
]
SPOTS = [(number, path) for number, lab in enumerate(LABS) for path in places(lab) if path]


@given(st.lists(st.tuples(st.sampled_from(SPOTS), DATA | st.just(...)), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_a_good_file_with_any_values_replaced_or_left_out(changes: list[Any]) -> None:
    number = changes[0][0][0]
    lab = copy.deepcopy(LABS[number])
    for (other, path), value in changes:
        if other != number:
            continue
        holder = lab
        try:
            for part in path[:-1]:
                holder = holder[part]
            if value is ...:
                del holder[path[-1]]
            else:
                holder[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    judge(json.dumps(lab))
