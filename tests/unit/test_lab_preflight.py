"""What preflight makes of echoes: reasons, each with its remedy, notes, and round trips."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed import profiles
from testbed.errors import LabError
from testbed.lab.path_echoes import Answers
from testbed.lab.preflight import Preflight, Way, judged

MS = 10**6


def ways(
    rtt_ms: float = 0.2, *, routed: bool = False, there: Answers | None = None, number: int = 1
) -> list[Way]:
    answers = Answers((round(rtt_ms * MS),) * 5, full=True)
    ends = (f"esx01/vmk{number}", f"esx02/vmk{number}")
    return [
        Way(*ends, f"10.0.{number}.2", 9000, routed, there or answers),
        Way(*ends[::-1], f"10.0.{number}.1", 9000, routed, answers),
    ]


def found(
    *paths: list[Way],
    ours: str = "esx-4.0",
    theirs: str | None = None,
    forced: bool = False,
    busy: bool = False,
) -> Preflight:
    every = [way for path in paths for way in path]
    one, other = profiles.load(ours), profiles.load(theirs or ours)
    return judged(every, one, other, forced=forced, busy=busy)


def test_all_is_well_says_nothing() -> None:
    good = found(ways(0.2), ways(0.4, number=2))
    assert (good.refusals, good.notes, good.rtts_ns) == ((), (), (200_000, 400_000))
    good.require("migrate db01 to esx02")


@pytest.mark.parametrize(
    ("profile", "limit_ms"), [("esx-4.1", 5), ("vsphere-5.5", 10), ("vsphere-7.0", 150)]
)
def test_the_round_trip_is_judged_by_the_profile(profile: str, limit_ms: int) -> None:
    assert found(ways(limit_ms + 0.3), ours=profile).refusals == ()  # the ends take time as well
    (reason,) = found(ways(limit_ms * 1.3), ours=profile).refusals
    assert f"is {limit_ms * 1.3:g} ms, and profile {profile} supports {limit_ms} ms" in reason
    assert "--force" in reason


def test_of_two_profiles_the_stricter_holds() -> None:
    for ours, theirs in (("vsphere-7.0", "esx-4.0"), ("esx-4.0", "unlimited")):
        (reason,) = found(ways(8), ours=ours, theirs=theirs).refusals
        assert "profile esx-4.0 supports 5 ms" in reason
    assert found(ways(900), ours="unlimited").refusals == ()


def test_forced_or_busy_it_is_a_note() -> None:
    for options, words in (({"forced": True}, "forced"), ({"busy": True}, "other migrations")):
        told = found(ways(80), **options)
        assert told.refusals == ()
        assert "is 80 ms, and profile esx-4.0 supports 5 ms" in told.notes[0]
        assert words in told.notes[0]


def test_one_slow_echo_is_no_distance() -> None:
    late = Answers((200_000, 300_000, 60 * MS, 250_000), full=True)
    assert found(ways(0.2, there=late)).refusals == ()


def test_silence_is_a_reason_that_nothing_forces() -> None:
    silent = Answers((), full=False, cause="No route to host")
    with pytest.raises(LabError) as error:
        found(ways(there=silent), ways(9, number=2), forced=True).require("migrate db01 to esx02")
    text = str(error.value)
    assert text.startswith("migrate db01 to esx02: esx01/vmk1 gets no answer from esx02/vmk1")
    assert "No route to host" in text
    assert "'testbed vmkping esx01 10.0.1.2 -I vmk1'" in text
    assert "vmk2" not in text  # that one was forced


@pytest.mark.parametrize(("narrow", "told"), [(0, "to esx02/vmk1; raise"), (1500, "passes 1500")])
def test_narrow_hops_are_a_reason(narrow: int, told: str) -> None:
    cut = Answers((200_000,), full=False, narrow_mtu=narrow)
    (reason,) = found(ways(there=cut)).refusals
    assert "packets of 9000 bytes" in reason
    assert told in reason
    assert "--find-mtu" in reason


def test_both_ways_count() -> None:
    there, back = ways()
    bad = replace(back, answers=Answers((), full=False))
    (reason,) = found([there, bad]).refusals
    assert reason.startswith("esx02/vmk1 gets no answer from esx01/vmk1 (10.0.1.1)")
    assert found([there, bad]).rtts_ns == (200_000,)
    assert found([replace(there, answers=Answers((), full=False)), bad]).rtts_ns == (0,)


def test_routers_are_noted_where_they_are_not_supported() -> None:
    (note,) = found(ways(routed=True), ours="vsphere-5.5").notes
    assert "profile vsphere-5.5 does not support" in note
    assert found(ways(routed=True), ours="vsphere-6.0").notes == ()
    assert "esx-4.0" in found(ways(routed=True), ours="vsphere-7.0", theirs="esx-4.0").notes[0]
    assert found(ways(routed=True), ours="unlimited").notes == ()


def test_a_preflight_is_json() -> None:
    told = found(ways(80), forced=True).to_json()
    assert told["rtts_ns"] == (80 * MS,)
    assert told["ways"][0]["answers"]["full"] is True
