"""Profiles: their numbers are those of the facts, and one's own inherit and are judged."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from importlib import resources
from typing import TYPE_CHECKING

import pytest

from testbed.errors import InputError, TopologyError
from testbed.guest import trace
from testbed.profiles import Entry, Profile, load, names, own
from testbed.profiles.keys import KEYS

if TYPE_CHECKING:
    from pathlib import Path

ESX = ("esx-3.5", "esx-4.0", "esx-4.1")
VSPHERE = tuple(name for name in names() if name.startswith("vsphere-"))
GENERATIONS = (*ESX, *VSPHERE)
MS = 10**6
ROW_14_HZ = 2_260 * 10**6
REFERENCE_HZ = 2_600 * 10**6  # the core that row 14 makes of section 6's 2.6 Gb/s for ESX 4.0
MSS = {1500: 1448, 9000: 8948}


def cycles(profile: Profile, mtu: int) -> float:
    """Of one byte."""
    return profile.cycles_per_byte + profile.cycles_per_packet / MSS[mtu]


def gbps(name: str, mtu: int, hz: int = REFERENCE_HZ) -> float:
    """What one core carries."""
    return hz / cycles(load(name), mtu) * 8 / 1e9


# ---------------------------------------------------------------- pinned to the facts


def test_there_is_a_file_for_each_name_and_no_other() -> None:
    folder = resources.files("testbed.profiles") / "data"
    assert sorted(item.name for item in folder.iterdir()) == sorted(f"{n}.yaml" for n in names())
    assert [load(name).name for name in names()] == list(names())


@pytest.mark.parametrize("name", names())
def test_each_value_says_how_it_is_known(name: str) -> None:
    profile = load(name)
    values = {one.name for one in fields(Profile)} - {"name", "sources"}
    assert set(profile.sources) == values == {key.field for key in KEYS.values()}
    for field, origin in profile.sources.items():
        assert origin.basis, field
        if origin.kind != "assumed":
            assert "row" in origin.basis or "section" in origin.basis, (field, origin.basis)


def test_rows_4_13_and_14_a_core_of_2260_mhz_carries_282_mb_per_s() -> None:
    profile = load("esx-4.0")
    assert profile.vmotion_cores == profile.helpers_per_vmk == 1
    assert ROW_14_HZ / cycles(profile, 1500) == pytest.approx(282.5e6, rel=1e-3)
    assert gbps("esx-4.0", 1500, ROW_14_HZ) == pytest.approx(2.26, rel=1e-3)


@pytest.mark.parametrize("name", ["esx-3.5", "esx-4.0"])
def test_row_15_jumbo_frames_are_not_much_quicker(name: str) -> None:
    assert gbps(name, 9000) / gbps(name, 1500) == pytest.approx(1.1, rel=1e-3)


@pytest.mark.parametrize("name", ["esx-4.1", *VSPHERE])
def test_row_17_jumbo_frames_cost_two_fifths(name: str) -> None:
    profile = load(name)
    assert cycles(profile, 1500) / cycles(profile, 9000) == pytest.approx(5 / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "mtu", "expected"),
    [
        ("esx-3.5", 1500, 1.0),
        ("esx-4.0", 1500, 2.6),
        ("esx-4.1", 9000, 8.0),
        *((name, 9000, 15.0) for name in VSPHERE),
    ],
)
def test_section_6_what_one_vmotion_of_each_generation_carries(
    name: str, mtu: int, expected: float
) -> None:
    assert gbps(name, mtu) == pytest.approx(expected, rel=1e-3)


def test_row_16_eight_times_as_fast_and_four_to_eight_at_a_time() -> None:
    assert gbps("esx-4.1", 9000) / gbps("esx-3.5", 1500) == pytest.approx(8, rel=1e-3)
    for name in GENERATIONS:
        profile = load(name)
        expected = (2, 2) if name in ("esx-3.5", "esx-4.0") else (4, 8)
        assert (profile.concurrent(10**9), profile.concurrent(10**10)) == expected


@pytest.mark.parametrize("vmknics", [1, 2, 3])
def test_section_6_vmknics_of_a_nic_of_40_gbe(vmknics: int) -> None:
    measured = {1: 18, 2: 28, 3: 36}[vmknics]
    helper = min(15, gbps("vsphere-6.5", 9000))
    assert min(helper * vmknics, 40) == pytest.approx(measured, rel=0.2)


def test_row_7_and_metro_vmotion_windows() -> None:
    assert load("esx-4.0").window_bytes == 263_536
    assert load("esx-4.1").window_bytes == 562_540
    for name in VSPHERE:
        profile = load(name)
        assert profile.window_bytes is None
        assert profile.window_for(10**9, 10 * MS) == 1_250_000 + 128 * 1024
        assert profile.window_for(10**9, 0) == 562_540
        assert profile.window_for(None, 10 * MS) is None


def test_row_24_vmotion_nics() -> None:
    for name in ESX:
        assert load(name).most_vmks(10**9) == load(name).most_vmks(10**10) == 1
    for name in VSPHERE:
        profile = load(name)
        assert [profile.most_vmks(rate) for rate in (10**9, 10**10, None)] == [16, 4, 4]


def test_rows_25_and_27_how_generations_converge() -> None:
    quick = [name for name in GENERATIONS if load(name).quick_resume]
    slowed = [name for name in GENERATIONS if load(name).sdps]
    assert quick == ["esx-4.1"]
    assert slowed == list(VSPHERE)
    assert {load(name).sdps_target_percent for name in VSPHERE} == {500}


def test_row_26_and_section_6_round_trips() -> None:
    limits = {name: (load(name).rtt_limit_ns or 0) // MS for name in GENERATIONS}
    assert {limits[name] for name in ESX} == {5}
    assert limits["vsphere-5.0"] == limits["vsphere-5.5"] == 10
    assert {limits[name] for name in VSPHERE[2:]} == {150}
    assert [load(name).layer3_supported for name in ("vsphere-5.5", "vsphere-6.0")] == [False, True]


def test_rows_34_to_40_what_came_with_7() -> None:
    for name in GENERATIONS:
        profile = load(name)
        new = name in ("vsphere-7.0", "vsphere-8.0")
        mode = trace.parse_mode(f"{profile.trace_stop}/{profile.trace_granularity}")
        assert mode == (
            trace.TraceMode("loose", "1GiB") if new else trace.TraceMode("stop-based", "4KiB")
        )
        assert profile.bitmap == ("compacted" if new else "full")
        assert profile.remaining_pages == ("after resume" if new else "before resume")


def test_section_6_stream_helpers_by_rate_from_7_on() -> None:
    rates = [10**9, 10**10, 25 * 10**9, 40 * 10**9, 100 * 10**9, None]
    assert [load("vsphere-6.7").helpers(rate) for rate in rates] == [1] * 6
    assert [load("vsphere-7.0").helpers(rate) for rate in rates] == [1, 1, 2, 3, 7, 1]


def test_row_44_and_section_6_what_all_have() -> None:
    for name in names():
        profile = load(name)
        assert profile.switchover_goal_ns == 500 * MS
        assert profile.min_progress_percent == 130
        assert profile.timeout_ns == 20_000 * MS
    encrypted = [name for name in GENERATIONS if load(name).encryption == "opportunistic"]
    assert encrypted == ["vsphere-6.5", "vsphere-6.7", "vsphere-7.0", "vsphere-8.0"]


def test_the_default_models_nothing() -> None:
    profile = load("unlimited")
    assert not profile.charges_cpu
    assert profile.window_for(10**9, 10 * MS) is None
    assert profile.rtt_limit_ns is profile.trace_stop is profile.bitmap is None
    assert {profile.sdps, profile.quick_resume, profile.zero_pages} == {False}
    assert profile.management_bytes == profile.heartbeat_bytes == 0


def test_scale_divides_what_has_bytes_and_nothing_else() -> None:
    whole = load("esx-4.1")
    half = whole.scaled(Fraction(1, 2))
    changed = {
        one.name for one in fields(Profile) if getattr(whole, one.name) != getattr(half, one.name)
    }
    assert changed == {"window", "management_bytes", "heartbeat_bytes"}
    assert half.window_bytes == 562_540 // 2
    assert load("vsphere-7.0").scaled(Fraction(1, 10)).window == "path"
    assert half.sources == whole.sources


# ---------------------------------------------------------------- one's own


def own_profile(**files: str) -> Profile:
    """From files by their names without .yaml; the first is the profile."""
    texts = {f"{name}.yaml": text for name, text in files.items()}
    return load(next(iter(texts)), texts.__getitem__)


def mistakes(**files: str) -> list[str]:
    with pytest.raises(TopologyError) as error:
        own_profile(**files)
    return [str(problem) for problem in error.value.problems]


def test_one_s_own_inherits_and_overrides() -> None:
    profile = own_profile(
        mine="inherits: base.yaml\nwindow: 1MiB\nsdps: off\n",
        base="inherits: vsphere-7.0\nrtt_limit: {value: 20ms, sourced: 'our own test'}\n",
    )
    inherited = load("vsphere-7.0")
    assert profile.name == "mine"
    assert (profile.window_bytes, profile.rtt_limit_ns, profile.sdps) == (2**20, 20 * MS, False)
    assert profile.trace_granularity == inherited.trace_granularity == "1GiB"
    window, limit = profile.sources["window"], profile.sources["rtt_limit_ns"]
    assert (window.kind, window.file, window.line) == ("assumed", "mine.yaml", 2)
    assert (limit.kind, limit.basis, limit.given_by) == ("sourced", "our own test", "base")
    assert profile.sources["bitmap"].given_by == "vsphere-7.0"


def test_a_file_is_read_from_the_directory_of_the_one_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "mine.yaml").write_text("inherits: below/a.yaml\nvmks: 3\n")
    (tmp_path / "below" / "a.yaml").write_text("inherits: b.yaml\n")
    (tmp_path / "below" / "b.yaml").write_text("inherits: vsphere-8.0\nsdps: off\n")
    profile = load(str(tmp_path / "mine.yaml"))
    assert (profile.vmks, profile.sdps, profile.bitmap) == (3, False, "compacted")


def test_every_value_can_be_written_as_it_is_shown() -> None:
    for name in names():
        profile = load(name)
        for key in KEYS.values():
            value = getattr(profile, key.field)
            shown = key.show(value)
            assert key.read(shown) == value, shown
    for key in KEYS.values():
        key.read(key.example)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("inherits: esx-4.0\nwindoww: 1MiB\n", (2, 1), ["unknown key 'windoww'", "mean window?"]),
        ("inherits: esx-4.0\nrtt_limit: 5 miles\n", (2, 12), ["rtt_limit", "not a duration"]),
        ("inherits: esx-4.0\nwindow: 5ms\n", (2, 9), ["not a window", "263536B"]),
        ("inherits: esx-4.0\nwindow: 64KiB\n", (2, 9), ["128KiB to 1GiB"]),
        ("inherits: esx-4.0\ncycles_per_byte: 7 MHz\n", (2, 18), ["CPU cycles", "7.13"]),
        ("inherits: esx-4.0\nmin_progress: 1.3\n", (2, 15), ["not a percentage", "130%"]),
        ("inherits: esx-4.0\nsdps: maybe\n", (2, 7), ["on or off"]),
        ("inherits: esx-4.0\nvmks: 0\n", (2, 7), ["1 to 256"]),
        ("inherits: esx-4.0\nbitmap: sparse\n", (2, 9), ["full or compacted or none"]),
        ("inherits: esx-4.0\nvmks: [4]\n", (2, 7), ["a list stands where one value belongs"]),
        ("inherits: esx-4.0\nvmks: {value: 4}\n", (2, 7), ["how the value is known"]),
        ("inherits: esx-4.0\nvmks: {sourced: row 1}\n", (2, 7), ["the value is missing"]),
        ("inherits: esx-4.0\nvmks: {value: 4, sourced: ''}\n", (2, 7), ["sourced on what"]),
        ("inherits: esx-4.2\n", (1, 11), ["no profile 'esx-4.2'", "esx-4.1"]),
        ("inherits: [esx-4.0]\n", (1, 11), ["this is no profile"]),
        ("vmks: 4\n", (1, 1), ["congestion_control, window", "inherits: unlimited"]),
        ("vmks: 4\nvmks: 5\n", (2, 1), ["a second time"]),
        ("- 1\n", (1, 1), ["no mapping"]),
        ("", (1, 1), ["no mapping"]),
        ("a: [\n", (2, 1), ["not YAML"]),
        ("a: *b\n", (1, 4), ["not YAML"]),
        ("[" * 5000, (1, 1), ["not YAML"]),
    ],
)
def test_a_mistake_has_its_place_and_a_remedy(
    text: str, place: tuple[int, int], words: list[str]
) -> None:
    (mistake, *_) = mistakes(mine=text)
    if text.startswith("[["):
        assert mistake.startswith("mine.yaml:")
    else:
        assert mistake.startswith(f"mine.yaml:{place[0]}:{place[1]}: ")
    assert "; " in mistake
    for word in words:
        assert word in mistake


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    assert len(mistakes(mine="inherits: esx-4.0\nwindow: 1\nx: 2\nsdps: 3\n")) == 3


def test_a_circle_is_refused_where_it_closes() -> None:
    (mistake,) = mistakes(a="inherits: b.yaml\n", b="vmks: 3\ninherits: a.yaml\n")
    assert mistake.startswith("b.yaml:2:11: inherits: a.yaml inherits this one again")
    (mistake,) = mistakes(a="inherits: a.yaml\n")
    assert "in a circle" in mistake


def test_a_chain_without_an_end_is_refused() -> None:
    texts = {f"p{n}.yaml": f"inherits: p{n + 1}.yaml\n" for n in range(100)}
    with pytest.raises(TopologyError, match="in a row"):
        load("p0.yaml", texts.__getitem__)


def test_unknown_names_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no profile 'esx-9'; there are unlimited, esx-3\.5"):
        load("esx-9")
    with pytest.raises(InputError, match="is no file"):
        load(str(tmp_path / "none.yaml"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text"):
        load(str(binary))
    with pytest.raises(TopologyError, match="too many"):
        own_profile(mine="#" * 200_000)


def test_a_profile_within_another_file_is_named_after_its_base() -> None:
    def entry(value: str, line: int) -> Entry:
        return Entry(value, line, 5, line, 3)

    profile = own({"inherits": entry("esx-4.1", 7), "vmks": entry("2", 8)}, "lab.yaml")
    assert (profile.name, profile.vmks) == ("esx-4.1, changed", 2)
    with pytest.raises(TopologyError, match=r"lab\.yaml:9:5: sdps"):
        own({"inherits": entry("esx-4.1", 7), "sdps": entry("2", 9)}, "lab.yaml")
