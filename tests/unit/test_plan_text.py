"""Each kind of step in one line that says what an engineer would ask."""

from __future__ import annotations

import pytest

from testbed.guest.workloads import Ping
from testbed.plan import stages
from testbed.plan.policies import Chain, Delay, DelayLine, Netem, Offloads, Shape, TrafficClass
from testbed.plan.policy_text import describe_stage
from testbed.plan.stages import Carry, Classify, Lose, MarkRule, Queue, Tag, Team, Untag
from testbed.plan.steps import End, PowerOn, Veth
from testbed.plan.text import describe, describe_altered

CLASSES = (
    TrafficClass(0x10, "vmotion", 25 * 10**6, 75 * 10**6, 163840, 65536),
    TrafficClass(0x11, "vms", 1000, 125 * 10**6, 81920, 65536),
    TrafficClass(0x8001, "db01", 5 * 10**6, 125 * 10**6, 245760, 65536, major=2),
    TrafficClass(0x8000, "others", 1000, 125 * 10**6, 81920, 65536, major=2),
)
SHAPE = ("n", "vmnic0", 10**9, 1500, 125 * 10**6, 62500, "")


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Shape(*SHAPE), "HTB 1 Gbit/s (told 1 Gbit/s, burst 62500 B) on vmnic0 in n"),
        (
            Shape(*SHAPE, ceil_bytes_per_s=250 * 10**6),
            "HTB 1 Gbit/s (told 1 Gbit/s, peak 2 Gbit/s, burst 62500 B) on vmnic0 in n",
        ),
        (
            Shape(*SHAPE, classes=CLASSES, default=0x11, lends_idle=False),
            ("HTB 1 Gbit/s (told 1 Gbit/s, burst 62500 B) on vmnic0 in n; by weight: vmotion 2"
            " (200 Mbit/s up to 600 Mbit/s), vms 1 [db01 3 (40 Mbit/s), others 1]; idle"
            " reservations are lent to nobody"),
        ),
        (
            Chain("n", "p", "", (Tag(5, 3), Classify(3, 0x13), Team()), (Team(), Untag(5))),
            ("IOChain on p in n: in tag 5 CoS 3, vmotion traffic in class 13, team;"
            " out team, untag 5"),
        ),
        (Chain("n", "p", "", (), (Queue(),)), "IOChain on p in n: out queue by class"),
        (Chain("n", "p", "", (), (), "sw"), "IOChain on p in n: no stages"),
        (Offloads("n", "vmnic0", "", segmentation=False),
         "offloads of vmnic0 in n: TSO off, checksum on"),
        (Netem("n", "p", "", 2_500_000, 0, 1000), "netem 2.5 ms on p in n, at most 1000 packets"),
        (
            DelayLine("n", "tor-a - tor-b", ("a", "b"), (Delay(5 * 10**6, 10**5), Delay(10**6))),
            "delay line tor-a - tor-b in n: 5 ms ± 100 us from a, 1 ms from b",
        ),
        (
            Veth(
                End("n", "vmnic0", 9000, "", None, "sw", isolated=True, learning=False),
                End("m", "p", 9000, "", flooding=False),
            ),
            ("veth vmnic0 in n <-> p in m, MTU 9000/9000; vmnic0 isolated, without learning;"
            " p without flooding"),
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)  # fmt: skip
def test_a_step_in_one_line(step, text):
    assert describe(step) == text


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (Tag(0), "untagged only"),
        (Carry(((10, 10), (20, 29)), untagged=True), "carry 10,20-29 and untagged"),
        (Carry(()), "carry nothing"),
        (Lose(stages.LOSS_UNIT // 1000), "lose 0.1 %"),
        (stages.Marking((MarkRule(cos=4),)), "marking by 1 rule"),
        (stages.Arrive(2, True), "arrive by uplink 2, no reflections"),
        (stages.MaxSize(1500), "at most 1500 bytes"),
        (stages.QueueByDscp(()), "queue by DSCP"),
        (stages.MacChanges("00:50:56:00:00:01"), "no MAC changes"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_stage_in_a_few_words(stage, text):
    assert describe_stage(stage) == text


def test_a_vm_with_other_workloads_is_not_said_to_be_powered_on() -> None:
    step = PowerOn("db01", "n", "esx01", "m", "shared01", 1 << 20, 1, 7, (Ping(),))
    assert describe(step).startswith("power on db01 on esx01")
    assert describe_altered(step) == "db01 on esx01 does ping"
