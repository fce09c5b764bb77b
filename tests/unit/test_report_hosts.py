"""A result says what its hosts were modelled as, at both scales."""

from __future__ import annotations

from dataclasses import asdict, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from testbed import profiles
from testbed.profiles.keys import KEYS
from testbed.report import store
from testbed.report.figures import summary
from testbed.report.hosts import HostReport, host_report
from tests.unit.test_report_store import RESULT

if TYPE_CHECKING:
    from pathlib import Path


def report(profile: str, scale: Fraction = Fraction(1)) -> HostReport:
    return host_report("esx01", 8, float(2260 * scale), profiles.load(profile).scaled(scale))


def test_every_value_stands_there_with_its_source() -> None:
    found = report("esx-4.0")
    assert set(found.values) == set(KEYS)
    window = found.values["window"]
    assert (window.value, window.kind, window.basis) == ("263536B", "sourced", "row 7")


def test_figures_are_of_the_lab_and_nominal_beside() -> None:
    half = report("esx-4.0", Fraction(1, 2))
    assert half.values["window"].value == "131768B"
    figures = summary(replace(RESULT, scale_divisor=2, hosts=(half, replace(half, name="esx02"))))
    (first, second) = [one for one in figures if one.name.startswith("Host ")]
    assert first.value == "esx-4.0, 8 cores of 1130 MHz (nominal 2260 MHz)"
    assert "calibrated" in first.measured
    assert second.name == "Host esx02"


def test_the_default_profile_is_not_worth_a_line() -> None:
    figures = summary(replace(RESULT, hosts=(report("unlimited"),)))
    assert not [one for one in figures if one.name.startswith("Host ")]


def test_it_is_stored_and_read_again(tmp_path: Path) -> None:
    result = replace(RESULT, hosts=(report("vsphere-7.0"),), topology_files={"a.yaml": "vmks: 2"})
    path = store.write(result, tmp_path)
    assert store.read(path) == result
    assert asdict(result)["hosts"][0]["profile"] == "vsphere-7.0"
