"""Names fit the kernel, differ, and a person can read them."""

from hypothesis import given
from hypothesis import strategies as st

from testbed.plan.names import InterfaceNames, netns_name, owner_of, short_name

NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)


def test_what_fits_is_kept() -> None:
    assert short_name("esx01-vmnic0") == "esx01-vmnic0"
    assert short_name("x" * 15) == "x" * 15


def test_what_does_not_fit_keeps_its_ends() -> None:
    name = short_name("esx-frankfurt-01-vmnic0")
    assert len(name) == 15
    assert name.startswith("esx-")
    assert name.endswith("-vmnic0")
    assert name != short_name("esx-frankfurt-02-vmnic0")


@given(st.lists(NAME, max_size=200))
def test_given_names_fit_and_differ(wanted: list[str]) -> None:
    names = InterfaceNames()
    given_names = [names.give("netns", name) for name in wanted]
    assert all(0 < len(name.encode()) <= 15 for name in given_names)
    assert len(set(given_names)) == len(given_names)
    assert "lo" not in given_names


@given(NAME, NAME)
def test_a_namespace_tells_its_owner(lab: str, node: str) -> None:
    assert owner_of(netns_name(lab, node)) == lab


def test_other_peoples_namespaces_have_no_owner() -> None:
    for name in ("esx01", "tb", "tb.", "tb.lab", "tb.lab.", "tb..x", "docker.tb.lab"):
        assert owner_of(name) is None
