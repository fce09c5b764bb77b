"""The keys profile and mhz: whose vMotion behaves how, on what cores."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from testbed.cli.main import cli
from testbed.errors import TopologyError
from testbed.topology import json_schema, loads

if TYPE_CHECKING:
    from pathlib import Path

MS = 10**6
LAB = """\
name: x
scale: {scale}
profile: {profile}
switches: {{tor: {{}}}}
hosts:
  h[1-2]:
    cpu: {{cores: 8, mhz: 2260}}
    memory: 1GiB
    nics: {{vmnic0: {{switch: tor, rate: 1Gbit}}, vmnic1: {{switch: tor, rate: 10Gbit}}}}
    vswitches:
      v0: {{uplinks: [vmnic0], portgroups: {{a: {{}}}}}}
      v1: {{uplinks: [vmnic1], portgroups: {{b: {{}}}}}}
    vmks:
      vmk0: {{portgroup: a, ip: "10.0.0.[1-2]/24", services: [vmotion]}}
{more}
"""
SECOND = '      vmk1: {portgroup: b, ip: "10.0.1.[1-2]/24", services: [vmotion]}'


def lab(profile: str = "esx-4.0", more: str = "", scale: str = "1") -> str:
    return LAB.format(profile=profile, more=more, scale=scale)


def mistakes(text: str, **files: str) -> list[str]:
    with pytest.raises(TopologyError) as error:
        loads(text, "f", {f"{name}.yaml": text for name, text in files.items()})
    return [str(problem) for problem in error.value.problems]


def test_a_lab_has_the_default_profile_and_no_clock_rate() -> None:
    text = lab().replace("profile: esx-4.0\n", "").replace(", mhz: 2260", "")
    topology = loads(text, "f")
    assert topology.profile.name == "unlimited"
    assert [(host.profile.name, host.mhz) for host in topology.hosts] == [("unlimited", None)] * 2


def test_hosts_have_the_lab_s_profile_or_their_own() -> None:
    text = lab() + (
        "  h3:\n    cpu: {cores: 4, mhz: 2600}\n    memory: 1GiB\n    profile: vsphere-5.0\n"
    )
    topology = loads(text, "f")
    assert topology.profile.name == "esx-4.0"
    assert {host.name: (host.profile.name, host.mhz) for host in topology.hosts} == {
        "h1": ("esx-4.0", 2260),
        "h2": ("esx-4.0", 2260),
        "h3": ("vsphere-5.0", 2600),
    }


def test_scale_divides_clock_rates_and_windows() -> None:
    topology = loads(lab("esx-4.1", scale="1/4"), "f")
    host = topology.hosts[0]
    assert (topology.scale, host.mhz, host.cores) == (Fraction(1, 4), 565, 8)
    assert host.profile.window_bytes == topology.profile.window_bytes == 140_635
    assert host.profile.cycles_per_byte == loads(lab("esx-4.1"), "f").profile.cycles_per_byte


def test_a_profile_may_be_changed_in_the_file() -> None:
    own = "{inherits: vsphere-7.0, window: 1MiB, sdps: false, vmks: 2, cycles_per_byte: 0.5}"
    profile = loads(lab(own), "f").profile
    assert (profile.name, profile.window, profile.sdps) == ("vsphere-7.0, changed", 2**20, False)
    assert (profile.vmks, profile.cycles_per_byte, profile.bitmap) == (2, 0.5, "compacted")
    assert profile.sources["vmks"].line == 3


def test_a_profile_of_one_s_own_is_embedded_with_all_that_it_inherits(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "a.yaml").write_text("inherits: b.yaml\nrtt_limit: 7ms\n")
    (tmp_path / "ours" / "b.yaml").write_text("inherits: esx-4.0\nvmks: 2\n")
    text, file = lab("ours/a.yaml"), str(tmp_path / "lab.yaml")
    topology = loads(text, file)
    assert (topology.profile.rtt_limit_ns, topology.profile.vmks) == (7 * MS, 2)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / "ours" / name).unlink()
    again = loads(topology.text, file, dict(topology.traces))
    assert again == topology
    with pytest.raises(TopologyError, match="is no file"):
        loads(text, file)


def test_another_value_makes_another_lab_and_another_place_of_it_does_not() -> None:
    one = loads(lab("{inherits: esx-4.0, vmks: 2}"), "f")
    moved = loads("# moved\n" + lab("{vmks: 2, inherits: esx-4.0}"), "f")
    other = loads(lab("{inherits: esx-4.0, vmks: 3}"), "f")
    assert replace(moved, text=one.text) == one
    assert replace(other, text=one.text) != one


@pytest.mark.parametrize(
    ("profile", "place", "words"),
    [
        ("esx-4.2", "f:3:10: profile: ", ["there is no profile 'esx-4.2'", "there are unlimited"]),
        ("7.0", "f:3:10: profile: ", ["7.0 is not a profile", "vsphere-7.0"]),
        ("[esx-4.0]", "f:3:10: profile: ", ["a list"]),
        ("none.yaml", "f:3:10: profile: ", ["'none.yaml' is no file", "topology file"]),
        ("{inherits: esx-4.0, vmkz: 1}", "f:3:30: vmkz: ", ["unknown key", "did you mean vmks?"]),
        ("{inherits: esx-4.0, vmks: 1ms}", "f:3:36: vmks: ", ["1 to 256"]),
        ("{inherits: none.yaml}", "f:3:21: inherits: ", ["'none.yaml' is no file"]),
        ("{vmks: 4}", "f:", ["missing", "inherits: unlimited"]),
        ("mine.yaml", "mine.yaml:2:7: vmks: ", ["1 to 256"]),
    ],
)
def test_a_mistake_in_a_profile_has_its_place(profile: str, place: str, words: list[str]) -> None:
    (mistake,) = mistakes(lab(profile), mine="inherits: esx-4.0\nvmks: x\n")
    assert mistake.startswith(place)
    for word in words:
        assert word in mistake


def test_a_mistake_in_the_hosts_profile_is_told_once() -> None:
    text = lab(more="    profile: {inherits: esx-4.0, vmks: x}")
    (mistake,) = mistakes(text)
    assert mistake.startswith("f:15:")


def test_what_costs_cycles_needs_a_clock_rate() -> None:
    (mistake,) = mistakes(lab().replace(", mhz: 2260", ""))
    assert mistake.startswith("f:7:10: hosts.h1.cpu: profile esx-4.0 costs CPU cycles")
    assert "add mhz" in mistake
    (mistake,) = mistakes(lab().replace("2260", "2.26GHz"))
    assert "whole number" in mistake
    assert "2260" in mistake


def test_before_5_0_a_host_has_one_vmotion_adapter() -> None:
    (mistake,) = mistakes(lab(more=SECOND))
    assert mistake.startswith("f:15:7: hosts.h1.vmks.vmk1: h1 has 2 vMotion adapters")
    assert "profile esx-4.0 uses at most 1" in mistake
    assert "vsphere-5.0 or later" in mistake
    assert len(loads(lab("vsphere-5.0", more=SECOND), "f").hosts[0].vmks) == 2
    own = lab("{inherits: vsphere-5.0, vmks_10gbe: 1}", more=SECOND)
    assert len(loads(own, "f").hosts[0].vmks) == 2  # one of them is on a NIC of 1 GbE
    (mistake,) = mistakes(own.replace("rate: 1Gbit", "rate: 40Gbit"))
    assert "2 vMotion adapters on NICs of 10 GbE" in mistake


def test_a_window_that_scale_makes_too_small_is_refused() -> None:
    assert loads(lab(scale="1/2"), "f").profile.window_bytes == 263_536 // 2
    (mistake,) = mistakes(lab(scale="1/4"))
    assert "263536 bytes of profile esx-4.0 at scale 1/4 is less than 128 KiB" in mistake
    assert "at least 1/2" in mistake
    assert loads(lab("vsphere-7.0", scale="1/256"), "f").profile.window == "path"


def test_editors_see_profiles_and_their_keys() -> None:
    key = json_schema()["properties"]["profile"]
    name, _, own = key["anyOf"]
    assert "esx-4.0" in name["enum"]
    assert {"inherits", "window", "sdps"} <= set(own["properties"])
    assert all(one.get("description") for one in own["properties"].values())
    assert key["default"] == "unlimited"


def run(*arguments: str) -> str:
    shown = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert shown.exit_code == 0
    return shown.output


def test_the_command_lists_and_shows_profiles(tmp_path: Path) -> None:
    assert "vsphere-8.0" in run("profile")
    assert len(json.loads(run("profile", "--json"))) == 11
    table = run("profile", "esx-4.0")
    assert "263536B" in table
    assert "row 7" in table
    shown = json.loads(run("profile", "esx-4.0", "--json"))
    assert (shown["name"], shown["window"], shown["vmotion_cores"]) == ("esx-4.0", 263_536, 1)
    assert shown["sources"]["window"]["kind"] == "sourced"
    (tmp_path / "mine.yaml").write_text("inherits: esx-4.0\nwindow: 1MiB\n")
    assert json.loads(run("profile", str(tmp_path / "mine.yaml"), "--json"))["window"] == 2**20


def test_the_plan_tells_whose_profile_is_which(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(lab())
    assert "profile esx-4.0, 8 cores of 2260 MHz: h1, h2\n" in run("plan", str(file), "--fresh")
