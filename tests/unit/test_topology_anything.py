"""Whatever a file holds: a topology, or an error of ours that says where."""

from __future__ import annotations

import json
import re

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


@given(st.text())
@example("\ud800")
@example("a: !")
@example("%YAML 9.9\n---\na")
@example("? ? ? a")
@example("name: !!binary x")
@example("\ufeffname: x")
def test_any_text(text: str) -> None:
    judge(text)


@given(st.text(":-[]{},&*!|>'\"%@#?ab \n\t", max_size=80))
def test_any_text_of_yamls_characters(text: str) -> None:
    judge(text)


@given(FILES | DATA)
@settings(max_examples=300)
def test_any_nested_data(data: object) -> None:
    judge(json.dumps(data))
